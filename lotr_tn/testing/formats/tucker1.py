"""What the laws know of Tucker-1 stacks."""

from collections.abc import Sequence

import numpy as np

from lotr_tn.formats import Tucker1
from lotr_tn.testing.entries import Kind, factor, layered, plain
from lotr_tn.testing.formats.lora import RANKS
from lotr_tn.testing.formats.registry import Arrays, Cut, Drawn, FormatLaws, Sizes


def _make(kind: Kind, rng: np.random.Generator, shape: tuple, sizes: Drawn, dtype: str) -> Tucker1:
    layers, m, n = shape
    wide, long = (n, m) if sizes["side"] == "in" else (m, n)
    shared = factor(plain(kind), rng, wide, sizes["ranks"])
    own = layered(kind, rng, [(long, sizes["ranks"])] * layers, dtype)
    return Tucker1(shared, np.stack(own), sizes["side"])


def _dense(stack: Tucker1, arrays: Arrays) -> np.ndarray:
    own, shared = arrays["own"], arrays["shared"]
    return np.stack([x @ shared.T if stack.side == "in" else shared @ x.T for x in own])


def _regauge(stack: Tucker1, arrays: Arrays, matrices: Sequence[np.ndarray]) -> Arrays:
    """Shared Q and own_l Q⁻ᵀ."""
    (q,) = matrices
    return {"shared": arrays["shared"] @ q, "own": arrays["own"] @ np.linalg.inv(q).T}


TUCKER1 = FormatLaws(
    Tucker1,
    _make,
    _dense,
    layer_ranks=lambda stack: (stack.rank,) * stack.shape[0],
    sizes={"ranks": Sizes(RANKS, RANKS[:-1]), "side": Sizes(("in", "out"))},
    gauge_sizes=lambda stack: (stack.rank,),
    regauge=_regauge,
    cuts=lambda stack, pair: [Cut("r", stack.rank, pair[0], stack.side)],
)
