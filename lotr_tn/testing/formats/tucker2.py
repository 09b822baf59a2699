"""What the laws know of Tucker-2 stacks."""

import itertools
from collections.abc import Sequence

import numpy as np

from lotr_tn.formats import Tucker2
from lotr_tn.testing.entries import Kind, factor, layered, plain
from lotr_tn.testing.formats.lora import RANKS
from lotr_tn.testing.formats.registry import Arrays, Cut, Drawn, FormatLaws, Sizes

_POSITIVE = tuple(itertools.permutations((1, 2, 3, 4, 5), 2))

PAIR = Sizes((*_POSITIVE, *((0, r) for r in RANKS), *((r, 0) for r in RANKS[:-1])), _POSITIVE)
"""Ranks of both sides, which differ, or are both 0."""


def shared_factors(
    kind: Kind, rng: np.random.Generator, shape: tuple, pair: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """U (m, r1) and V (n, r2)."""
    u = factor(plain(kind) if kind != "dependent columns" else kind, rng, shape[1], pair[0])
    return u, factor(plain(kind), rng, shape[2], pair[1])


def _make(kind: Kind, rng: np.random.Generator, shape: tuple, sizes: Drawn, dtype: str) -> Tucker2:
    u, v = shared_factors(kind, rng, shape, sizes["ranks"])
    return Tucker2(u, np.stack(layered(kind, rng, [sizes["ranks"]] * shape[0], dtype)), v)


def _dense(stack: Tucker2, arrays: Arrays) -> np.ndarray:
    return np.stack([arrays["u"] @ core @ arrays["v"].T for core in arrays["core"]])


def _regauge(stack: Tucker2, arrays: Arrays, matrices: Sequence[np.ndarray]) -> Arrays:
    """U P, P⁻¹ G_l Q⁻ᵀ and V Q."""
    p, q = matrices
    inverse = np.linalg.inv(q).T
    core = np.stack([np.linalg.solve(p, x) @ inverse for x in arrays["core"]])
    return {"u": arrays["u"] @ p, "core": core, "v": arrays["v"] @ q}


def _cuts(stack: Tucker2, pair: tuple[int, int]) -> list[Cut]:
    r1, r2 = stack.ranks
    return [Cut("r1", r1, pair[0], "out"), Cut("r2", r2, pair[1], "in")]


TUCKER2 = FormatLaws(
    Tucker2,
    _make,
    _dense,
    layer_ranks=lambda stack: (min(stack.ranks),) * stack.shape[0],
    sizes={"ranks": PAIR},
    gauge_sizes=lambda stack: stack.ranks,
    regauge=_regauge,
    cuts=_cuts,
    factors=("u", "v"),
)
