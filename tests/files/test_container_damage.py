"""Damage of a container is seen: at once in its header, by checksums in its data."""

import base64
import hashlib
import json
import os
import struct

import pytest

from lotr_tn.errors import CheckpointError
from lotr_tn.files import container as module
from lotr_tn.files.container import (
    Entry,
    is_container,
    read_container,
    verify_container,
    write_container,
    write_digested,
)
from lotr_tn.files.tensors import read_safetensors
from tests.files.test_container import ARRAYS, entries, meaning, split


@pytest.fixture
def small(tmp_path):
    """A container of a few bytes."""
    kept = ("half", "flags", "brain", "double", "whole")  # with two widths twice
    path = tmp_path / "small.safetensors"
    write_container(path, entries({name: ARRAYS[name] for name in kept}), '{"of": ["ä", "b"]}')
    return path


def joined(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_the_digest_is_what_the_page_says(small):
    header, _ = split(small.read_bytes())
    metadata = header.pop("__metadata__")
    digest = metadata.pop("digest")
    said = json.dumps([metadata, header], sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(said.encode("ascii")).hexdigest() == digest


def opened(path):
    """A container, or nothing where it is refused in one sentence that names it."""
    try:
        return read_container(path)
    except CheckpointError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert "\n" not in message
    return None


def test_every_flipped_byte_of_the_header_is_seen_or_means_nothing(small):
    good = small.read_bytes()
    wanted = meaning(read_container(small))
    _, data = split(good)
    harmless = set()
    with small.open("r+b", buffering=0) as file:
        for place in range(len(good) - len(data)):
            for mask in (1, 0x29, 0x20, 0xFF):  # 0x29 makes a space a tab
                os.pwrite(file.fileno(), bytes([good[place] ^ mask]), place)
                found = opened(small)
                if found is not None:
                    assert meaning(found) == wanted, place
                    harmless.add(place)
            os.pwrite(file.fileno(), good[place : place + 1], place)
    assert meaning(read_container(small)) == wanted
    length = len(good) - len(data)
    assert harmless == set(range(len(good[:length].rstrip()), length)), "spaces at the end"
    assert harmless, "there are some to be flipped"


def test_every_flipped_byte_of_the_data_is_found(small):
    good = small.read_bytes()
    header, data = split(good)
    header.pop("__metadata__")
    for place in range(len(data)):
        raw = bytearray(good)
        raw[len(good) - len(data) + place] ^= 1 << place % 8
        small.write_bytes(raw)
        (name,) = (
            name
            for name, e in header.items()
            if e["data_offsets"][0] <= place < e["data_offsets"][1]
        )
        assert verify_container(read_container(small)) == [name], place


def test_every_length_is_refused(small):
    good = small.read_bytes()
    lengths = [*range(len(good)), len(good) + 1, len(good) + 8]
    for length in lengths:
        small.write_bytes((good + b" " * 8)[:length])
        with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
            read_container(small)
        with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
            is_container(small)


def swapped_names(header):
    header["double"], header["whole"] = header["whole"], header["double"]


def swapped_places(header):
    a, b = header["half"], header["brain"]
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]
    a["shape"], b["shape"] = b["shape"], a["shape"]


def another_dtype(header):
    header["brain"]["dtype"] = "F16"


def another_shape(header):
    header["half"]["shape"] = [5, 3]


def another_text(header):
    header["__metadata__"]["lotr_bank"] += " "


def another_checksum(header):
    together = base64.b64decode(json.loads(header["__metadata__"]["checksums"]))
    swapped = base64.b64encode(together[32:] + together[:32]).decode()
    header["__metadata__"]["checksums"] = json.dumps(swapped)


def no_checksums(header):
    del header["__metadata__"]["checksums"]


def no_digest(header):
    del header["__metadata__"]["digest"]


def another_key(header):
    header["__metadata__"]["more"] = "text"


@pytest.mark.parametrize(
    "change",
    [
        swapped_names,
        swapped_places,
        another_dtype,
        another_shape,
        another_text,
        another_checksum,
        no_checksums,
        no_digest,
        another_key,
    ],
)
def test_a_header_that_says_something_else_is_refused(small, change):
    header, data = split(small.read_bytes())
    small.write_bytes(joined(header, data))
    read_container(small)  # spaces, and longer escapes, mean nothing
    change(header)
    small.write_bytes(joined(header, data))
    read_safetensors(small)  # the library sees nothing wrong
    with pytest.raises(CheckpointError, match=r"header does not match its digest; restore it"):
        read_container(small)


@pytest.mark.parametrize("checksums", ["{}", '"AAAA"', '"?"', "7", "null", "", '{"half": 1}'])
def test_checksums_of_other_tensors_are_refused(small, checksums):
    header, data = split(small.read_bytes())
    metadata = header.pop("__metadata__")
    metadata["checksums"] = checksums
    metadata["digest"] = module._digest(metadata, header)
    small.write_bytes(joined({"__metadata__": metadata, **header}, data))
    with pytest.raises(CheckpointError, match="has not one checksum for each tensor"):
        read_container(small)


def test_a_damaged_source_is_refused(small, tmp_path):
    raw = bytearray(small.read_bytes())
    raw[-1] ^= 1
    small.write_bytes(raw)
    source = read_container(small)
    (damaged,) = verify_container(source)
    target = tmp_path / "target.safetensors"
    for name in source.tensors:
        if name == damaged:
            with pytest.raises(
                CheckpointError,
                match=rf"{small} is damaged: the bytes of tensor {name} .*restore it from a copy",
            ):
                write_digested(target, {name: source.entry(name)}, "", force=False)
            assert not target.exists()
        else:
            write_container(tmp_path / name, {name: source.entry(name)}, "")
    anonymous = Entry.of_raw(source.tensors[damaged], source.checksums[damaged])
    with pytest.raises(CheckpointError, match="the source is damaged"):
        write_container(tmp_path / "x", {"x": anonymous}, "")
