"""What the laws know of CP stacks."""

from collections.abc import Sequence

import numpy as np

from lotr_tn.formats import CP
from lotr_tn.testing.entries import Kind, layered
from lotr_tn.testing.formats.lora import RANKS
from lotr_tn.testing.formats.registry import Arrays, Cut, Drawn, FormatLaws, Sizes
from lotr_tn.testing.formats.tucker2 import shared_factors


def _make(kind: Kind, rng: np.random.Generator, shape: tuple, sizes: Drawn, dtype: str) -> CP:
    rank = sizes["ranks"]
    a, b = shared_factors(kind, rng, shape, (rank, rank))
    rows = layered(kind, rng, [(1, rank)] * shape[0], dtype)
    return CP(a, np.concatenate(rows, axis=0), b)


def _dense(stack: CP, arrays: Arrays) -> np.ndarray:
    return np.stack([(arrays["a"] * row) @ arrays["b"].T for row in arrays["weights"]])


def _regauge(stack: CP, arrays: Arrays, matrices: Sequence[np.ndarray]) -> Arrays:
    """A D, W D⁻¹ E⁻¹ and B E with diagonal D and E."""
    d, e = (np.array([float(x[0, 0]) for x in part]) for part in np.array_split(matrices, 2))
    return {"a": arrays["a"] * d, "weights": arrays["weights"] / (d * e), "b": arrays["b"] * e}


CP_LAWS = FormatLaws(
    CP,
    _make,
    _dense,
    layer_ranks=lambda stack: (stack.rank,) * stack.shape[0],
    sizes={"ranks": Sizes(RANKS, RANKS[:-1])},
    gauge_sizes=lambda stack: (1,) * (2 * stack.rank),
    regauge=_regauge,
    cuts=lambda stack, pair: [Cut("R", stack.rank, pair[0], "out")],
)
