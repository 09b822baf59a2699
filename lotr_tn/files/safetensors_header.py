"""The header of a safetensors file: what it has to say for its tensors to lie where it says.

The rules are those of the safetensors library, checked here so that a file is opened once, and is
never mapped before its size is known to fit.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

from lotr_tn.adapters.raw_tensor import DTYPES

LONGEST = 100_000_000
"""Bytes of a header that the safetensors library reads, at most."""

MOST_AXES = 64
"""Axes that NumPy's arrays can have."""


class HeaderError(Exception):
    """What is wrong with a header; the message is part of a sentence."""


def parse_header(raw: bytes, size: int) -> dict[str, Any]:
    """The header as it says itself, of a file with `size` bytes of data.

    Raises:
        HeaderError: it makes no sense, or does not fit the data.
    """
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_once, parse_constant=_no_number)
        _require(isinstance(header, dict), "its header is no JSON object")
        "".join(header).encode()  # halves of characters are no names
        _check_metadata(header.get("__metadata__"))
    except UnicodeError:
        raise HeaderError("its header is no text") from None
    except RecursionError:
        raise HeaderError("its header nests too deep") from None
    except ValueError as error:
        raise HeaderError(f"its header is invalid: {error}") from None
    places = [_place(key, entry) for key, entry in header.items() if key != "__metadata__"]
    end = 0
    for start, stop, key in sorted(places):
        _require(start == end, f"tensor {key} does not begin where the one before it ends")
        end = stop
    _require(end == size, f"its tensors take {end} bytes, and it has {size}")
    return header


def _require(fits: bool, otherwise: str) -> None:
    if not fits:
        raise HeaderError(otherwise)


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise HeaderError(f"its header says {max(names, key=names.count)} twice")
    return found


def _no_number(text: str) -> None:
    raise HeaderError(f"its header holds {text}")


def _check_metadata(metadata: Any) -> None:
    if metadata is None:
        return
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    _require(texts, "its metadata are no texts by name")
    for key, text in metadata.items():
        f"{key}{text}".encode()


def _place(key: str, entry: Any) -> tuple[int, int, str]:
    """Where a tensor lies; its dtype, shape and place have to agree."""
    _require(isinstance(entry, dict), f"tensor {key} is not described")
    code, shape, place = (entry.get(name) for name in ("dtype", "shape", "data_offsets"))
    _require(isinstance(code, str) and code in DTYPES, f"tensor {key} has the dtype {code!r}")
    fits = _whole(shape) and len(shape) <= MOST_AXES
    _require(fits, f"tensor {key} has a shape that makes no sense")
    fits = _whole(place) and len(place) == 2 and place[0] <= place[1]
    _require(fits, f"tensor {key} has a place that makes no sense")
    start, stop = place
    fits = 8 * (stop - start) == math.prod(shape) * DTYPES[code][1]
    _require(fits, f"tensor {key} has {stop - start} bytes for {code} {shape}")
    return start, stop, key


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)
