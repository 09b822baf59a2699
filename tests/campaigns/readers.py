"""Files as damage, other programs and ill will make them: read right, or refused politely."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lotr_tn.errors import LotrError
from tests.campaigns import inputs
from tests.campaigns.campaign import DefectError
from tests.campaigns.program import lotr

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), "", "x", "1", "None", "\x1b[31mred\x1b[0m", "a\nb", "\u202eabc"),
    *("é" * 300, "a" * 5000, "../../up", "/", "\ud800", [], [None], [1, 2], [[]], {}, {"a": 1}),
)
"""Values of JSON that stand where others are meant."""

PATTERNS = (
    *(".*", "q", ".*q$", "^q$", "[", "(", "(a+)+$", "(a|a)*b", "q{1,99999999999}", "(?i)Q", "\\"),
    *("(?P<x>q)", "q|v", "model.layers.0.q", "", "(" * 200 + ")" * 200),
)


def readers(rng: random.Random, folder: Path) -> str:
    """A damaged input is refused, or read; and what is read can be written and read again."""
    name = rng.choice(inputs.NAMES)
    path = inputs.copied(name, folder)
    _damage(rng, path)
    try:
        found = inputs.updates(path)
    except LotrError as refusal:
        _require_line(str(refusal))
        found = None
    except Exception as error:
        raise DefectError(f"{name}: {type(error).__name__} leaves the reader: {error}") from error
    inspected = lotr("inspect", path)
    if found is None:
        return "refused"
    if not all(np.isfinite(w).all() for one in found.values() for w in one.values()):
        raise DefectError(f"{name}: numbers that are not finite are read")
    if inspected.status != 0:
        raise DefectError(f"{name}: read, but inspect refuses it: {inspected.message.strip()}")
    _write_again(rng, path, folder / "again")
    return "read"


def _require_line(text: str) -> None:
    if "\n" in text or len(text) > 500:
        raise DefectError(
            f"a message of {len(text)} characters and {text.count(chr(10)) + 1} lines"
        )


def _write_again(rng: random.Random, path: Path, target: Path) -> None:
    """One of the commands that make something of it."""
    if "bank" in path.name:
        lotr("export", path, "--all", "-o", target)
    elif path.is_dir():
        lotr(
            "convert",
            path,
            "--rel-error",
            rng.choice(["0.3", "10%"]),
            "-o",
            f"{target}.safetensors",
        )
    else:
        lotr("export", path, "-o", target)


def _damage(rng: random.Random, path: Path) -> None:
    """Change one thing in one of its files."""
    config, weights = path / "adapter_config.json", inputs.weights_of(path)
    if path.is_dir() and rng.random() < 0.4:
        config.write_bytes(_config(rng, config.read_bytes()))
        return
    how: tuple[Callable[[random.Random, bytes], bytes], ...] = (_bytes,)
    if weights.suffix == ".safetensors":
        how = (_bytes, _header, _header, _metadata)
    weights.write_bytes(rng.choice(how)(rng, weights.read_bytes()))


def _bytes(rng: random.Random, raw: bytes) -> bytes:
    """Cut, grow, fill or change a few bytes anywhere."""
    at, size = rng.randrange(len(raw)), rng.choice([1, 1, 2, 8, 64])
    made = bytearray(raw)
    match rng.randrange(6):
        case 0:
            del made[at:]
        case 1:
            made[at:at] = rng.randbytes(size)
        case 2:
            made[at : at + size] = bytes([rng.choice([0, 255, 127])]) * len(made[at : at + size])
        case 3:
            del made[at : at + size]
        case 4:
            made += rng.randbytes(size)
        case _:
            made[at] ^= 1 << rng.randrange(8)
    return bytes(made)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each place in a JSON value, but for its root."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from _places(inner, (*path, key))


def _changed(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value with something else at one place, or that place gone."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return rng.choice(ODD)
    *way, last = rng.choice(places)
    parent = value
    for key in way:
        parent = parent[key]
    match rng.randrange(5):
        case 0:
            del parent[last]
        case 1 if isinstance(parent, dict):
            parent[str(rng.choice(ODD))] = parent.pop(last)
        case 2 if isinstance(parent[last], int):
            parent[last] += rng.choice([-1, 1, 10**9])
        case 3:
            other = rng.choice(places)
            found = value
            for key in other:
                found = found[key] if isinstance(found, list | dict) and _has(found, key) else None
            parent[last] = copy.deepcopy(found)
        case _:
            parent[last] = copy.deepcopy(rng.choice(ODD))
    return value


def _has(value: Any, key: Any) -> bool:
    return key in value if isinstance(value, dict) else isinstance(key, int) and key < len(value)


def _text(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _nested(rng: random.Random) -> bytes:
    depth = rng.choice([100, 1000, 100_000])
    return b"[" * depth + b"]" * depth


def _header(rng: random.Random, raw: bytes) -> bytes:
    """Something else in the header, which names tensors and says where they lie."""
    header, data = inputs.header_of(raw)
    if rng.random() < 0.1:
        text = _text(header)[:-1] + b',"x":' + _nested(rng) + b"}"
        return inputs.with_header(text, data)
    return inputs.with_header(_text(_changed(rng, header)), data)


def _metadata(rng: random.Random, raw: bytes) -> bytes:
    """Something else in the JSON that the metadata hold."""
    header, data = inputs.header_of(raw)
    metadata = header.get("__metadata__") or {}
    inner = [key for key, text in metadata.items() if isinstance(text, str) and text[:1] == "{"]
    if not inner:
        return _header(rng, raw)
    key = rng.choice(inner)
    made = _nested(rng).decode() if rng.random() < 0.05 else None
    metadata[key] = made or json.dumps(_changed(rng, json.loads(metadata[key])))
    return inputs.with_header(_text(header), data)


def _config(rng: random.Random, raw: bytes) -> bytes:
    """Something else in adapter_config.json."""
    config = json.loads(raw)
    match rng.randrange(6):
        case 0:
            return _bytes(rng, raw)
        case 1:
            return rng.choice([b"", b"null", b"[]", b"\xff\xfe", raw * 2, _nested(rng)])
        case 2:
            key = rng.choice(["rank_pattern", "alpha_pattern"])
            config[key] = {rng.choice(PATTERNS): rng.choice([1, 2, 8, 0.5, *ODD])}
        case 3:
            config[rng.choice(["r", "lora_alpha", "use_rslora", "peft_type"])] = rng.choice(ODD)
        case 4:
            key = rng.choice(["target_modules", "exclude_modules", "layers_to_transform"])
            config[key] = rng.choice([rng.choice(PATTERNS), rng.choice(ODD)])
        case _:
            config = _changed(rng, config)
    return _text(config)
