"""What the laws know of Tucker-2 stacks with low-rank cores."""

from collections.abc import Sequence

import numpy as np

from lotr_tn.formats import LowRankTucker2
from lotr_tn.testing.entries import Kind, layered, plain
from lotr_tn.testing.formats.lora import EACH_RANK, block_diagonal, layer_cuts, terms
from lotr_tn.testing.formats.registry import Arrays, Drawn, FormatLaws
from lotr_tn.testing.formats.tucker2 import PAIR, shared_factors


def _make(
    kind: Kind, rng: np.random.Generator, shape: tuple, sizes: Drawn, dtype: str
) -> LowRankTucker2:
    (r1, r2), found = sizes["shared_ranks"], sizes["ranks"]
    own = found[:1] * shape[0] if kind == "equal layers" else found
    u, v = shared_factors(kind, rng, shape, (r1, r2))
    up = np.concatenate(layered(kind, rng, [(r1, k) for k in own], dtype), axis=1)
    down = np.concatenate(layered(plain(kind), rng, [(r2, k) for k in own], dtype), axis=1)
    return LowRankTucker2(u, up, down.T.copy(), v, own)


def _dense(stack: LowRankTucker2, arrays: Arrays) -> np.ndarray:
    cores = terms(arrays["up"], arrays["down"], stack.ranks)
    return np.stack([arrays["u"] @ core @ arrays["v"].T for core in cores])


def _regauge(stack: LowRankTucker2, arrays: Arrays, matrices: Sequence[np.ndarray]) -> Arrays:
    """U P, P⁻¹ up_l Q_l, Q_l⁻¹ down_l Q⁻ᵀ and V Q."""
    p, q, *each = matrices
    total = block_diagonal(each)
    up = np.linalg.solve(p, arrays["up"]) @ total
    down = np.linalg.solve(total, arrays["down"]) @ np.linalg.inv(q).T
    return {"u": arrays["u"] @ p, "up": up, "down": down, "v": arrays["v"] @ q}


LOW_RANK_TUCKER2 = FormatLaws(
    LowRankTucker2,
    _make,
    _dense,
    layer_ranks=lambda stack: tuple(min(k, *stack.shared_ranks) for k in stack.ranks),
    sizes={"shared_ranks": PAIR, "ranks": EACH_RANK},
    gauge_sizes=lambda stack: (*stack.shared_ranks, *stack.ranks),
    regauge=_regauge,
    cuts=lambda stack, pair: layer_cuts(stack.ranks, pair),
    factors=("u", "v"),
)
