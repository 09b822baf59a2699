"""Tables of frequencies of whole numbers around zero, made by integer arithmetic alone.

A model is one byte: twice a level, plus one for the heavier of two shapes. At level j the numbers
have a scale s = 2^((j - 6) / 4); a magnitude k has the weight exp(-k² / 2s²), a discrete Gaussian,
or exp(-√2 k / s), a discrete Laplacian. Whole numbers of `BITS` binary places stand for reals, so
that no library of functions and no processor has a say: a table is the same everywhere, for ever.
"""

from functools import cache
from math import isqrt

import numpy as np

LEVELS = 42
"""Scales from 0.35 to 430 steps, a quarter of an octave apart: between two, a column takes less
than a hundredth of a bit too much for each entry."""

MODELS = 2 * LEVELS

LARGEST = 4095
"""The largest magnitude that any table has."""

TOTAL = 1 << 24
"""The sum of a table's frequencies, of which each is at least 1."""

BITS = 96
_ONE = 1 << BITS


def exponential(x: int) -> int:
    """exp(-x) of x ≥ 0, both in units of 2^-BITS."""
    halvings = max(0, x.bit_length() - BITS + 8)
    y, term, total, count = x >> halvings, _ONE, _ONE, 0
    while term:
        count += 1
        term = -(-term * y >> BITS) // count if count % 2 else (term * y >> BITS) // count
        total += -term if count % 2 else term
    for _ in range(halvings):
        total = total * total >> BITS
    return total


def _weights(model: int) -> list[int]:
    """The weights of the magnitudes 0, 1, …, as far as they count or `LARGEST`."""
    level, heavy = divmod(model, 2)
    if heavy:  # √2 / s = 2^((8 - level) / 4)
        ratio, falls = exponential(isqrt(isqrt((_ONE**4 << 8) >> level))), _ONE
    else:  # 1 / 2s² = 2^((4 - level) / 2)
        ratio = exponential(isqrt((_ONE**2 << 4) >> level))
        falls = ratio * ratio >> BITS
    weights, weight = [], _ONE
    while len(weights) <= LARGEST and weight >> (BITS - 40):
        weights.append(weight)
        weight, ratio = weight * ratio >> BITS, ratio * falls >> BITS
    return weights


@cache
def frequencies(model: int) -> np.ndarray:
    """(K + 1,) frequencies of 0, of 1 and of -1, and so on; with both signs they sum to `TOTAL`."""
    weights = _weights(model)
    whole = weights[0] + 2 * sum(weights[1:])
    rest = TOTAL - (2 * len(weights) - 1)
    each = [1 + (2 * weight * rest + whole) // (2 * whole) for weight in weights]
    each[0] = TOTAL - 2 * sum(each[1:])  # what rounding has left
    return np.array(each, dtype=np.int64)


@cache
def lengths(model: int) -> np.ndarray:
    """(LARGEST + 1,) bits that a number of each magnitude takes; infinite where it has no code."""
    found = np.full(LARGEST + 1, np.inf)
    table = frequencies(model)
    found[: len(table)] = np.log2(TOTAL) - np.log2(table)
    return found
