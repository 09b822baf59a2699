"""Numbers to fewer bytes, of which none is lost: planes of their bytes, packed by zstandard.

The first byte of most entries is sign and exponent, which takes some three bits; the last ones are
noise. So entries of one width are taken in blocks, all first bytes of a block before all second
ones, and what can be packed is (Collet and Kucherawy (2021), RFC 8878).
"""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lotr_tn.coding.columns import DAMAGED, MOST
from lotr_tn.errors import FormatError

BLOCK = 1 << 18
"""Entries whose planes are held at a time."""

LEVEL = 1
"""Of zstandard: more effort finds nothing more in planes."""

WIDTHS = (8, 4, 2, 1)
"""Bytes of entries, in the order in which they lie."""

Part = tuple[int, np.ndarray]
"""The bytes of one entry, and all bytes, as uint8."""


def pack(parts: Sequence[Part]) -> bytes | None:
    """The bytes of `unpack`; None where they would stand for too much, such as zeros alone.

    Cost: some 400 MB a second; memory of the result and of a block.
    """
    packer = importlib.import_module("zstandard").ZstdCompressor(level=LEVEL).compressobj()
    found = [packer.compress(planes) for width in WIDTHS for planes in _planes(parts, width)]
    data = b"".join([*found, packer.flush()])
    return data if may_hold(len(data), sum(part.nbytes for _, part in parts)) else None


def unpack(data: np.ndarray, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """The parts again, by the widths of their entries and their bytes.

    Cost: some 1 GB a second, and memory of the result, which the size of the data bounds.

    Raises:
        FormatError: the data are damaged, or hold something else.
    """
    if not may_hold(len(data), sum(size for _, size in sizes)):
        raise FormatError(DAMAGED)
    module: Any = importlib.import_module("zstandard")
    found = [np.empty(size, np.uint8) for _, size in sizes]
    try:
        with module.ZstdDecompressor().stream_reader(data.tobytes()) as reader:
            for width in WIDTHS:
                mine = [x for x, (one, _) in zip(found, sizes, strict=True) if one == width]
                _fill(mine, width, reader)
            ended = not reader.read(1)
    except module.ZstdError:
        raise FormatError(DAMAGED) from None
    if not ended:
        raise FormatError(DAMAGED)
    return found


def may_hold(packed: int, size: int) -> bool:
    """Whether so many packed bytes may stand for so many; else a small file would fill memory."""
    return size <= MOST * packed


def _planes(parts: Sequence[Part], width: int) -> Iterator[bytes]:
    """The blocks of all parts of one width, one after another."""
    for block in _blocks([part for one, part in parts if one == width], width):
        joined = np.concatenate(block) if len(block) > 1 else block[0]
        yield joined.reshape(-1, width).T.tobytes()


def _fill(parts: Sequence[np.ndarray], width: int, reader: Any) -> None:
    """Read what `_planes` gave."""
    for block in _blocks(parts, width):
        size = sum(map(len, block))
        planes = np.frombuffer(_exactly(reader, size), np.uint8).reshape(width, -1)
        joined, start = planes.T.reshape(-1), 0
        for piece in block:
            piece[:] = joined[start : start + len(piece)]
            start += len(piece)


def _blocks(parts: Sequence[np.ndarray], width: int) -> Iterator[list[np.ndarray]]:
    """Views of parts, a block of bytes at a time; large ones in pieces, small ones together."""
    block: list[np.ndarray] = []
    room = most = BLOCK * width
    for part in parts:
        start = 0
        while start < len(part):
            piece = part[start : start + room]
            block.append(piece)
            start, room = start + len(piece), room - len(piece)
            if not room:
                yield block
                block, room = [], most
    if block:
        yield block


def _exactly(reader: Any, size: int) -> bytes:
    data = reader.read(size)
    if len(data) != size:
        raise FormatError(DAMAGED)
    return data
