"""Columns of whole numbers to one stream of bytes, and back: a range coder over integer tables."""

import importlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from lotr_tn.coding.tables import LARGEST, LEVELS, MODELS, frequencies, lengths
from lotr_tn.errors import FormatError

MOST = 256
"""Numbers that a byte may stand for, at most: what a stream says of itself is bounded by its size.
The narrowest table takes more than 1/32 of a bit for each."""

NEAR = 2
"""Levels tried on either side of that of a column's mean square."""

DAMAGED = "the stream of coded numbers is damaged; restore it from a copy"


def model_of(column: np.ndarray) -> int | None:
    """The model by which a column takes fewest bits; None where a number has no code."""
    counts = np.bincount(np.abs(column))
    if len(counts) > LARGEST + 1:
        return None
    square = float(counts @ np.arange(len(counts), dtype=float) ** 2) / column.size
    level = 6 + round(2 * float(np.log2(max(square, 1e-3))))
    near = range(max(0, level - NEAR), min(LEVELS, level + NEAR + 1))
    for levels in (near, range(LEVELS)):  # all of them where one number lies far from the others
        tried = [2 * at + heavy for at in levels for heavy in (0, 1)]
        bits = [_bits(counts, model) for model in tried]
        if min(bits, default=np.inf) < np.inf:
            return tried[int(np.argmin(bits))]
    return None


def _bits(counts: np.ndarray, model: int) -> float:
    """What so many numbers of each magnitude take; infinite where one has no code."""
    each = lengths(model)[: len(counts)]
    return float(counts @ each) if np.isfinite(each[-1]) else np.inf


def encoded(columns: Iterable[np.ndarray], models: Iterable[int]) -> bytes:
    """The stream of columns, one after another, each by its model."""
    encoder = _coding().queue.RangeEncoder()
    for column, model in zip(columns, models, strict=True):
        centre = len(frequencies(model)) - 1
        encoder.encode(column.astype(np.int32) + np.int32(centre), _categorical(model))
    return encoder.get_compressed().astype("<u4").tobytes()


def decoded(stream: bytes, sizes: Sequence[int], models: Sequence[int]) -> list[np.ndarray]:
    """The columns of a stream.

    Raises:
        FormatError: it holds more than its bytes can, names no model, or does not end where it
            should.
    """
    if len(stream) % 4 or sum(sizes) > MOST * (len(stream) + 4) or max(models, default=0) >= MODELS:
        raise FormatError(DAMAGED)
    decoder = _coding().queue.RangeDecoder(np.frombuffer(stream, "<u4").astype(np.uint32))
    found = []
    try:
        for size, model in zip(sizes, models, strict=True):
            symbols = decoder.decode(_categorical(int(model)), size)
            found.append(symbols - np.int32(len(frequencies(int(model))) - 1))
    except (AssertionError, ValueError):
        raise FormatError(DAMAGED) from None
    if not decoder.maybe_exhausted():
        raise FormatError(DAMAGED)
    return found


@cache
def _categorical(model: int) -> Any:
    """The table of a model as the coder takes it: shares that are exact in binary."""
    one_side = frequencies(model)
    table = np.concatenate([one_side[:0:-1], one_side]).astype(np.float64)
    return _coding().model.Categorical(table / table.sum(), perfect=False)


def _coding() -> Any:
    """The coder: compiled, and not needed by files without streams."""
    return importlib.import_module("constriction").stream
