"""Numbers to whole steps, with an eye on the bits that they take."""

from functools import cache
from math import log

import numpy as np

from lotr_tn.coding.tables import LEVELS, frequencies

SLOPE = log(2) / 6
"""Squared error, in squared steps, that a bit is worth: dD/dR of a uniform quantiser."""

LEAST = 0.6
"""Columns are drawn towards zero by this at most."""


def rounded(x: np.ndarray, step: float) -> np.ndarray:
    """Columns (…, size, k) in whole steps, each drawn towards zero where that saves bits.

    In a Gaussian column of scale s a magnitude of q takes q² / (2 s² ln 2) bits: with a bit worth
    `SLOPE`, the best whole number is that next to x / (1 + 1 / 12 s²).
    """
    scaled = x / step
    square = np.mean(scaled * scaled, axis=-2, keepdims=True)
    drawn = np.maximum(square / (square + 1 / 12), LEAST)
    return np.trunc(scaled * drawn + np.copysign(0.5, scaled))


def bits(q: np.ndarray) -> np.ndarray:
    """(…, k) bits of whole columns (…, size, k): those of a discrete Gaussian of their mean square.

    For that model the length of a column depends on the mean square alone.
    """
    return q.shape[-2] * bits_of_squares(np.mean(q * q, axis=-2))


def bits_of_squares(squares: np.ndarray) -> np.ndarray:
    """Bits of one entry of discrete Gaussians of these mean squares."""
    return np.interp(squares, *_entropies())


def cost(bits: float, lost: np.ndarray, step: float) -> float:
    """Squared errors with bits at what they are worth: of ways at one step the best has least."""
    return float(lost.sum()) + SLOPE * step**2 * bits


@cache
def _entropies() -> tuple[np.ndarray, np.ndarray]:
    """Mean squares of discrete Gaussians of all levels, from 0, and bits for each entry."""
    squares, entropies = [0.0], [0.0]
    for level in range(LEVELS):
        table = frequencies(2 * level) / frequencies(2 * level).sum()
        shares = np.concatenate([table[:1], 2 * table[1:]])
        shares /= shares.sum()
        each = shares.copy()
        each[1:] /= 2
        squares.append(float(shares @ np.arange(len(shares)) ** 2))
        entropies.append(float(-(shares @ np.log2(each))))
    return np.array(squares), np.array(entropies)
