"""Columns of whole numbers to one stream of bytes, and back: a range coder over integer tables."""

import importlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from lotr_tn.coding.tables import LARGEST, MODELS, frequencies, lengths
from lotr_tn.errors import FormatError

MOST = 256
"""Numbers that a byte may stand for, at most: what a stream says of itself is bounded by its size.
The narrowest table takes more than 1/32 of a bit for each."""

DAMAGED = "the stream of coded numbers is damaged; restore it from a copy"

TOGETHER = 1 << 18
"""Counts that are held at a time."""

NO_CODE = 1e9
"""Bits of a number that a table does not have: more than any column takes by another."""


def models_of(columns: np.ndarray) -> np.ndarray | None:
    """(N,) the model by which each column (N, size) takes fewest bits, of all that there are.

    None where a number is too large to have a code.
    """
    magnitudes = np.abs(columns.astype(np.int64))
    most = int(magnitudes.max(initial=0)) + 1
    if most > LARGEST + 1:
        return None
    table = lengths_by_model()[:most]
    found = [np.zeros(0, np.uint8)]
    rows = max(1, TOGETHER // most)
    for start in range(0, len(columns), rows):
        part = magnitudes[start : start + rows]
        each = part + most * np.arange(len(part))[:, None]
        counts = np.bincount(each.ravel(), minlength=most * len(part)).reshape(len(part), most)
        found.append(np.argmin(counts @ table, axis=1).astype(np.uint8))
    return np.concatenate(found)


@cache
def lengths_by_model() -> np.ndarray:
    """(LARGEST + 1, MODELS) bits of each magnitude by each model."""
    each = np.stack([lengths(model) for model in range(MODELS)], axis=1)
    return np.minimum(each, NO_CODE)


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
            symbols = decoder.decode(_categorical(model), size)
            found.append(symbols - np.int32(len(frequencies(model)) - 1))
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
