"""Each layer's own rank, cut where the whole stack gains most."""

from dataclasses import dataclass

import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF, Array, Namespace, narrow, to_numpy, wants_gradient, zeros
from lotr_tn.decompose.assemble import signs
from lotr_tn.decompose.search import meet_error, resolution
from lotr_tn.errors import DerivativeError
from lotr_tn.formats import Certificate, LoRAStack
from lotr_tn.linalg import svd_of_product
from lotr_tn.linalg.derivatives import truncated_svd_with_gradient
from lotr_tn.linalg.ranks import Budget, FixedRank, RankRule, rank_for
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.layers import common_namespace, storage_dtype
from lotr_tn.ops.moving import astype
from lotr_tn.ops.norms import layer_norms, layer_singular_values

__all__ = ["GlobalOrder", "global_order", "truncate", "without_null_terms"]

TIE = 16
"""Unit roundoffs of the largest singular value within which values count as equal."""


@dataclass(frozen=True)
class GlobalOrder:
    """The singular values of all layers in the order in which they are worth keeping.

    Every rank term costs the same m + n numbers wherever it is, so the best assignment of any
    number of terms keeps the largest values of all layers together (Eckart and Young (1936), for
    the block-diagonal matrix of all layers). Values that are equal to rounding are taken layer by
    layer, so that rounding does not choose.
    """

    layers: np.ndarray  # (K,) the layer of each value
    tails: np.ndarray  # (K + 1,) squared energy lost after keeping 0, 1, …, K values
    count: int  # L

    def ranks(self, kept: int) -> tuple[int, ...]:
        """How many values each layer keeps when `kept` are kept in all."""
        counts = np.bincount(self.layers[:kept], minlength=self.count)
        return tuple(int(rank) for rank in counts)


def global_order(values: list[np.ndarray]) -> GlobalOrder:
    """The order of the singular values of L layers, each (r_l,) descending."""
    layers = np.concatenate([np.full(len(s), index) for index, s in enumerate(values)])
    places = np.concatenate([np.arange(len(s)) for s in values])
    sizes = np.concatenate(values) if values else np.zeros(0)
    order = np.argsort(-sizes, kind="stable")
    tie = TIE * UNIT_ROUNDOFF["float64"] * sizes.max(initial=0.0)
    gaps = -np.diff(sizes[order]) > tie
    clusters = np.concatenate([[0], np.cumsum(gaps)])[: len(order)]
    order = order[np.lexsort((places[order], layers[order], clusters))]
    squares = sizes[order] ** 2
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    return GlobalOrder(layers[order].astype(np.int64), tails, len(values))


def truncate(stack: LoRAStack, rule: RankRule, dtype: str, stacklevel: int) -> LoRAStack:
    """The stack with each layer cut to leading singular values, certified.

    Args:
        stack: a LoRA stack (L, m, n).
        rule: `FixedRank` keeps at most that rank in every layer; an error or a budget chooses the
            layers' ranks together.
        dtype: storage dtype of the result.
        stacklevel: for warnings.
    """
    if wants_gradient(stack.up, stack.down):
        return _truncate_with_gradient(stack, rule, dtype)
    _, m, n = stack.shape
    if isinstance(rule, FixedRank):
        return _cut(stack, tuple(min(rule.r1, rank, m, n) for rank in stack.ranks), dtype)
    order = global_order([to_numpy(s) for s in layer_singular_values(stack)])
    if isinstance(rule, Budget):
        return _cut(stack, order.ranks(rank_for(rule, order.tails, m + n)), dtype)

    def attempt(budget: float) -> LoRAStack:
        within = int(np.flatnonzero(order.tails <= max(budget, order.tails[-1]))[0])
        return _cut(stack, order.ranks(within), dtype)

    total = float(order.tails[0])
    floor = resolution(wide=dtype == "float64") ** 2 * total
    return meet_error(attempt, rule, total, floor, dtype, stacklevel=stacklevel)


def without_null_terms(stack: LoRAStack) -> LoRAStack:
    """Each layer by its singular vectors, with signs fixed, and without terms of only rounding."""
    dtype = storage_dtype(stack)
    values = [to_numpy(s) for s in layer_singular_values(stack)]
    floor = resolution(dtype == "float64") * max(float(s.max(initial=0.0)) for s in values)
    return _cut(stack, tuple(int((s > floor).sum()) for s in values), dtype, keep_whole=False)


def _cut(
    stack: LoRAStack, ranks: tuple[int, ...], dtype: str, *, keep_whole: bool = True
) -> LoRAStack:
    """Each layer with its leading singular values, √σ in both factors.

    With `keep_whole` layers that lose nothing keep the factors they have.
    """
    xp = common_namespace(stack)
    ups, downs, lost = [], [], []
    for part, rank in zip(stack.slices, ranks, strict=True):
        up, down = stack.up[:, part], stack.down[part, :]
        if rank < part.stop - part.start or not keep_whole:
            u, s, vt = svd_of_product(up, down)
            lost.append(s[rank:])
            root, sign = xp.sqrt(s[:rank]), signs(u[:, :rank], xp=xp)
            up = u[:, :rank] * (root * sign)[None, :]
            down = (root * sign)[:, None] * vt[:rank, :]
        ups.append(narrow(up, dtype, xp=xp))
        downs.append(narrow(down, dtype, xp=xp))
    kept = tuple(int(down.shape[0]) for down in downs)
    cut = LoRAStack(xp.concat(ups, axis=1), xp.concat(downs, axis=0), kept)
    return LoRAStack(cut.up, cut.down, cut.ranks, _certified(stack, cut, lost, dtype, xp=xp))


def _certified(
    stack: LoRAStack, cut: LoRAStack, lost: list[Array], dtype: str, *, xp: Namespace
) -> Certificate:
    norms = layer_norms(stack)
    if not lost and dtype == storage_dtype(stack):
        nothing = zeros((), stack.up, xp=xp)
        return Certificate(xp.zeros_like(norms), norms, nothing, nothing, "truncated-svd", 0)
    distances = layer_distances(*(astype(s, "float64") for s in (stack, cut)))
    none = zeros((1,), stack.up, xp=xp)
    tail = xp.sqrt(xp.sum(xp.concat([none, *lost]) ** 2))
    size = xp.sqrt(xp.sum(norms**2))
    noise = size * (4 * UNIT_ROUNDOFF["float64"] * max(1, len(lost)) ** 0.5)
    below = xp.where(tail > noise, tail - noise, xp.zeros_like(tail))
    rounding = (2.5 * UNIT_ROUNDOFF[dtype] + 32 * UNIT_ROUNDOFF["float64"]) * size
    rounding = rounding * max(1.0, float(max(cut.ranks)) ** 0.5)
    return Certificate(distances, norms, below, tail + noise + rounding, "truncated-svd", 0)


def _truncate_with_gradient(stack: LoRAStack, rule: RankRule, dtype: str) -> LoRAStack:
    """The same at a fixed rank, through which torch can differentiate; not certified."""
    if not isinstance(rule, FixedRank):
        raise DerivativeError(
            "round chooses ranks by comparing numbers, which has no derivative; give a fixed "
            "rank, or detach the factors"
        )
    xp = common_namespace(stack)
    _, m, n = stack.shape
    ups, downs = [], []
    for part in stack.slices:
        up, down = stack.up[:, part], stack.down[part, :]
        rank = min(rule.r1, part.stop - part.start, m, n)
        if 0 < rank < part.stop - part.start:
            u, s, v = truncated_svd_with_gradient(up, down, rank)
            root = xp.sqrt(s)
            up, down = u * root[None, :], xp.matrix_transpose(v * root[None, :])
        ups.append(narrow(up[:, :rank], dtype, xp=xp))
        downs.append(narrow(down[:rank, :], dtype, xp=xp))
    kept = tuple(int(down.shape[0]) for down in downs)
    return LoRAStack(xp.concat(ups, axis=1), xp.concat(downs, axis=0), kept)
