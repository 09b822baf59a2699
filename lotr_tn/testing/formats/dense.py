"""What the laws know of dense stacks."""

import numpy as np

from lotr_tn._arrays import to_numpy
from lotr_tn.formats import Dense
from lotr_tn.testing.entries import Kind, layered
from lotr_tn.testing.formats.registry import Cut, Drawn, FormatLaws


def _make(kind: Kind, rng: np.random.Generator, shape: tuple, sizes: Drawn, dtype: str) -> Dense:
    layers, m, n = shape
    return Dense(np.stack(layered(kind, rng, [(m, n)] * layers, dtype)))


def _cuts(stack: Dense, pair: tuple[int, int]) -> list[Cut]:
    """The ranks of both unfoldings, as a dense result names none."""
    w = to_numpy(stack.w).astype(np.float64)
    outputs, inputs = (w.transpose(1, 0, 2).reshape(w.shape[1], -1), w.reshape(-1, w.shape[2]))
    share = 1e-10 if to_numpy(stack.w).dtype == np.float64 else 1e-3
    found = [_rank(x, share) for x in (outputs, inputs)]
    return [Cut("r1", found[0], pair[0], "out"), Cut("r2", found[1], pair[1], "in")]


def _rank(x: np.ndarray, share: float) -> int:
    values = np.linalg.svd(x, compute_uv=False)
    return int((values > share * values.max(initial=0.0)).sum())


DENSE = FormatLaws(
    Dense,
    _make,
    dense=lambda stack, arrays: arrays["w"],
    layer_ranks=lambda stack: (min(stack.shape[1:]),) * stack.shape[0],
    cuts=_cuts,
)
