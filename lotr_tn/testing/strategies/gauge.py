"""Strategies for changes of gauge."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from lotr_tn._arrays import Array
from lotr_tn.testing.strategies.formats import ToArray, stored

SMALLEST_SCALE = 0.5


def gauges(
    *, sizes: Sequence[int], dtype: str = "float64", array: ToArray | None = None
) -> SearchStrategy[tuple[Array, ...]]:
    """Invertible matrices of the sizes given, for `laws.change_gauge`. Requires hypothesis.

    They are well conditioned: the simplest exchange and subtract directions, with whole numbers
    as entries and as entries of the inverse; the others turn directions and scale them by 0.5 to 2.

    Args:
        sizes: one for each matrix, such as a LoRA stack's `ranks`; 0 is a size too.
        dtype: storage dtype: "float64", "float32", "float16" or "bfloat16".
        array: a function that each NumPy array goes through, such as `torch.from_numpy`.
    """
    return _gauges(tuple(sizes), dtype, array)


@st.composite
def _gauges(
    draw: st.DrawFn, sizes: tuple[int, ...], dtype: str, array: ToArray | None
) -> tuple[Array, ...]:
    make = draw(st.sampled_from((_exchange, _turn)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return tuple(stored(make(rng, size), dtype, array) for size in sizes)


def _exchange(rng: np.random.Generator, size: int) -> np.ndarray:
    """A permutation with signs, times a matrix with ones on and some just above the diagonal."""
    signed = np.eye(size)[rng.permutation(size)] * rng.choice([-1.0, 1.0], size)
    return signed @ (np.eye(size) + np.diag(rng.integers(0, 2, max(size - 1, 0)), 1)[:size, :size])


def _turn(rng: np.random.Generator, size: int) -> np.ndarray:
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    return left @ np.diag(rng.uniform(SMALLEST_SCALE, 1 / SMALLEST_SCALE, size)) @ right
