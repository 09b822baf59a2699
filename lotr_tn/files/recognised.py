"""Files that are something else than their names say, known by their first bytes."""

LOOKED_AT = 512
"""Bytes of a file's beginning that tell what it is."""

_KINDS = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, a text that stands for the file: run git lfs pull in its "
        "repository, or download the file itself",
    ),
    (
        b"GGUF",
        "is in llama.cpp's GGUF format; needed the PEFT folder that it was converted from "
        "(adapter_config.json and adapter_model.safetensors)",
    ),
    (b"PK\x03\x04", "is a torch file (a zip archive), not safetensors; give it the ending .bin"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
)


def what_it_is(begin: bytes, *, torch: bool = False) -> str | None:
    """What a file is instead, and what to do, to follow its name; None where nothing tells.

    With `torch` a zip archive is as it should be.
    """
    plain = begin[:LOOKED_AT].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if plain.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return (
            "is a web page, which a download left in place of the file; you may have to log in, or "
            "to take the link of the file itself"
        )
    for magic, what in _KINDS:
        if begin.startswith(magic) and not (torch and magic.startswith(b"PK")):
            return what
    return None
