"""Each layer's own rank, cut where the whole stack gains most."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import device

from lotr_tn._arrays import (
    UNIT_ROUNDOFF,
    Array,
    Namespace,
    float64,
    identity,
    narrow,
    to_numpy,
    wants_gradient,
    zeros,
)
from lotr_tn.decompose.assemble import beyond, underflow_of_terms
from lotr_tn.decompose.search import Result, meet_error, resolution
from lotr_tn.errors import DerivativeError
from lotr_tn.formats import Certificate, LoRAStack
from lotr_tn.linalg.bases import signs
from lotr_tn.linalg.derivatives import truncated_svd_with_gradient
from lotr_tn.linalg.product import svds_of_products
from lotr_tn.linalg.ranks import Budget, FixedRank, RankLimits, RankRule, rank_for, tail_energies
from lotr_tn.ops.arrays import common_namespace, storage_dtype
from lotr_tn.ops.batches import in_batches, side_by_side
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.frame import distances_in
from lotr_tn.ops.norms import layer_norms, layer_singular_values, root_sum_squares
from lotr_tn.ops.stacking import take_layers

TIE = 16  # unit roundoffs of the largest singular value within which values count as equal


@dataclass(frozen=True)
class GlobalOrder:
    """The singular values of all layers in the order in which they are worth keeping.

    Each term costs m + n numbers wherever it is, so keeping the largest of all layers is best
    (Eckart and Young (1936), for the block-diagonal matrix of all layers). Values that are equal to
    rounding are taken layer by layer, so that rounding does not choose.
    """

    layers: np.ndarray  # (K,) the layer of each value
    tails: np.ndarray  # (K + 1,) squared energy lost after keeping 0, 1, …, K values
    count: int  # L

    def ranks(self, kept: int) -> tuple[int, ...]:
        """How many values each layer keeps when `kept` are kept in all."""
        counts = np.bincount(self.layers[:kept], minlength=self.count)
        return tuple(int(rank) for rank in counts)

    def with_first(self, least: list[int], values: list[np.ndarray]) -> "GlobalOrder":
        """The same order, but with the `least` largest values of each layer before all others."""
        seen = np.zeros(self.count, dtype=int)
        must, sizes = np.zeros(len(self.layers), dtype=bool), np.zeros(len(self.layers))
        for place, layer in enumerate(self.layers):
            must[place] = seen[layer] < least[layer]
            sizes[place] = values[layer][seen[layer]]
            seen[layer] += 1
        order = np.argsort(~must, kind="stable")
        tails = tail_energies(sizes[order])
        return GlobalOrder(self.layers[order], tails, self.count)


def global_order(values: list[np.ndarray]) -> GlobalOrder:
    """The order of the singular values of L layers, each (r_l,) descending."""
    counts = np.array([len(s) for s in values], dtype=np.int64)
    layers = np.repeat(np.arange(len(values)), counts)
    places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    sizes = np.concatenate([*values, np.zeros(0)])
    order = np.argsort(-sizes, kind="stable")
    tie = TIE * UNIT_ROUNDOFF["float64"] * sizes.max(initial=0.0)
    gaps = -np.diff(sizes[order]) > tie
    clusters = np.concatenate([[0], np.cumsum(gaps)])[: len(order)]
    order = order[np.lexsort((places[order], layers[order], clusters))]
    return GlobalOrder(layers[order].astype(np.int64), tail_energies(sizes[order]), len(values))


def limited_order(values: Sequence[np.ndarray], limits: RankLimits) -> GlobalOrder:
    """The order within limits: each layer's least ranks first, then the largest values."""
    # values beyond the largest rank are in no layer's list, and are always lost
    if limits == RankLimits():
        return global_order(list(values))
    bounds = [limits.bounds(len(s)) for s in values]
    within = [s[:most] for s, (_, most) in zip(values, bounds, strict=True)]
    order = global_order(within)
    if limits.least:
        order = order.with_first([least for least, _ in bounds], within)
    beyond = sum(float((s[most:] ** 2).sum()) for s, (_, most) in zip(values, bounds, strict=True))
    return GlobalOrder(order.layers, order.tails + beyond, order.count)


def truncate(stack: LoRAStack, rule: RankRule, dtype: str) -> LoRAStack:
    """The stack with each layer cut to leading singular values, certified."""
    # a `FixedRank` keeps at most that in every layer; an error or a budget chooses for all together
    if wants_gradient(stack.up, stack.down):
        return _truncate_with_gradient(stack, rule, dtype)
    _, m, n = stack.shape
    if isinstance(rule, FixedRank):
        return cut_layers(stack, tuple(min(rule.r1, rank, m, n) for rank in stack.ranks), dtype)
    order = global_order([to_numpy(s) for s in layer_singular_values(stack)])
    if isinstance(rule, Budget):
        return cut_layers(stack, order.ranks(rank_for(rule, order.tails, m + n)), dtype)
    return meet_in_order(order, rule, dtype, lambda ranks: cut_layers(stack, ranks, dtype))


def meet_in_order(
    order: GlobalOrder, rule: RankRule, dtype: str, keep: Callable[[tuple[int, ...]], Result]
) -> Result:
    """What `keep` makes of the fewest values, in the order of their worth, that meet an error."""

    def attempt(budget: float) -> Result:
        within = int(np.flatnonzero(order.tails <= max(budget, order.tails[-1]))[0])
        return keep(order.ranks(within))

    total = float(order.tails[0])
    floor = resolution(wide=dtype == "float64") ** 2 * total
    return meet_error(attempt, rule, total, floor, dtype)


def without_null_terms(stack: LoRAStack) -> LoRAStack:
    """Each layer by its singular vectors, with signs fixed, and without terms of only rounding."""
    dtype = storage_dtype(stack)
    values = [to_numpy(s) for s in layer_singular_values(stack)]
    floor = resolution(dtype == "float64") * max(float(s.max(initial=0.0)) for s in values)
    return cut_layers(stack, tuple(int((s > floor).sum()) for s in values), dtype, keep_whole=False)


@dataclass(frozen=True)
class _Cut:
    """One layer, cut: factors as stored, what was cut off, and how far they are from the layer."""

    up: Array  # (m, rank)
    down: Array  # (rank, n)
    lost: Array  # singular values cut off
    distance: Array
    untouched: bool = False


def cut_layers(
    stack: LoRAStack, ranks: tuple[int, ...], dtype: str, *, keep_whole: bool = True
) -> LoRAStack:
    """Each layer at its own rank: the leading singular values, √σ in both factors; certified."""
    # with `keep_whole` layers that lose nothing keep the factors they have
    xp = common_namespace(stack)
    whole = [keep_whole and rank == own for rank, own in zip(ranks, stack.ranks, strict=True)]
    rest = [layer for layer, all_of_it in enumerate(whole) if not all_of_it]
    parts = stack.slices

    def made(places: list[int]) -> list[_Cut]:
        layers = [rest[place] for place in places]
        return _cut_alike(stack, parts, layers, [ranks[i] for i in layers], dtype, xp=xp)

    entries = sum(stack.shape[1:]) * max(stack.ranks)
    kept = iter(_kept_layers(stack, np.flatnonzero(whole).tolist(), dtype, xp=xp))
    cut = iter(in_batches([stack.ranks[layer] for layer in rest], entries, made))
    cuts = [next(kept if all_of_it else cut) for all_of_it in whole]
    up = xp.concat([cut.up for cut in cuts], axis=1)
    down = xp.concat([cut.down for cut in cuts], axis=0)
    kept = tuple(int(cut.down.shape[0]) for cut in cuts)
    return LoRAStack(up, down, kept, _certified(stack, cuts, dtype, xp=xp))


def _kept_layers(
    stack: LoRAStack, layers: Sequence[int], dtype: str, *, xp: Namespace
) -> list[_Cut]:
    """Layers with the factors that they have, in the storage dtype."""
    if not layers:
        return []
    own = take_layers(stack, layers)
    up, down = own.up, own.down
    nothing, none = zeros((0,), up, xp=xp), zeros((), up, xp=xp)
    if untouched := dtype == storage_dtype(stack):
        distances = [none] * len(layers)
    else:
        up, down = narrow(up, dtype, xp=xp), narrow(down, dtype, xp=xp)
        wide = [
            LoRAStack(float64(x, xp=xp), float64(y, xp=xp), own.ranks)
            for x, y in ((own.up, own.down), (up, down))
        ]
        distances = list(layer_distances(*wide))
    pairs = zip(own.slices, distances, strict=True)
    return [_Cut(up[:, part], down[part, :], nothing, d, untouched) for part, d in pairs]


def _cut_alike(
    stack: LoRAStack,
    parts: Sequence[slice],
    layers: Sequence[int],
    ranks: Sequence[int],
    dtype: str,
    *,
    xp: Namespace,
) -> list[_Cut]:
    """Layers of one rank, cut: their singular vectors are all found at once."""
    ups = side_by_side(stack.up, parts, layers, xp)
    downs = side_by_side(stack.down.mT, parts, layers, xp).mT
    u, s, vt = svds_of_products(ups, downs, xp=xp)
    ranks = [min(rank, s.shape[1]) for rank in ranks]
    most = max(ranks)
    root = xp.sqrt(s[:, :most]) * signs(u[:, :, :most], xp=xp)
    if min(ranks) < most:  # what is cut off a layer is zero, so that all have one size
        kept = np.arange(most) < np.array(ranks)[:, None]
        root = root * xp.asarray(kept.astype(np.float64), device=device(s))
    up = narrow(u[:, :, :most] * root[:, None, :], dtype, xp=xp)
    down = narrow(root[:, :, None] * vt[:, :most, :], dtype, xp=xp)
    # in the singular vectors, which are an orthonormal frame already, the layer is diag(s)
    core = identity(s.shape[1], s, xp=xp) * s[:, None, :]
    wide = float64(up, xp=xp), float64(down, xp=xp).mT
    distances = distances_in(*wide, u, vt.mT, core, xp=xp)
    return [
        _Cut(up[at, :, :rank], down[at, :rank, :], s[at, rank:], distances[at])
        for at, rank in enumerate(ranks)
    ]


def _certified(stack: LoRAStack, cuts: list[_Cut], dtype: str, *, xp: Namespace) -> Certificate:
    norms = layer_norms(stack)
    distances = xp.stack([cut.distance for cut in cuts])
    lost = xp.concat([cut.lost for cut in cuts], axis=0)
    if all(cut.untouched for cut in cuts):
        nothing = zeros((), stack.up, xp=xp)
        return Certificate(distances, norms, nothing, nothing, "truncated-svd", 0)
    tail, size = root_sum_squares(lost), root_sum_squares(norms)
    noise = size * (4 * UNIT_ROUNDOFF["float64"] * len(cuts) ** 0.5)
    below = beyond(tail, noise)
    most = max(int(cut.down.shape[0]) for cut in cuts)
    rounding = (2.5 * UNIT_ROUNDOFF[dtype] + 32 * UNIT_ROUNDOFF["float64"]) * max(1, most) ** 0.5
    above = tail + noise + rounding * size
    terms = sum(int(cut.down.shape[0]) for cut in cuts)
    above = above + underflow_of_terms(dtype, stack.shape[1:], terms, size)
    return Certificate(distances, norms, below, above, "truncated-svd", 0)


def differentiable_rule(rule: RankRule) -> FixedRank:
    """The rule, if it is one through which derivatives flow."""
    if not isinstance(rule, FixedRank):
        raise DerivativeError(
            "round chooses ranks by comparing numbers, which has no derivative; give fixed ranks, "
            "or detach the factors"
        )
    return rule


def _truncate_with_gradient(stack: LoRAStack, rule: RankRule, dtype: str) -> LoRAStack:
    """The same at a fixed rank, through which torch can differentiate; not certified."""
    fixed = differentiable_rule(rule)
    xp = common_namespace(stack)
    _, m, n = stack.shape
    ups, downs = [], []
    for part in stack.slices:
        up, down = stack.up[:, part], stack.down[part, :]
        rank = min(fixed.r1, part.stop - part.start, m, n)
        if 0 < rank < part.stop - part.start:
            u, s, v = truncated_svd_with_gradient(up, down, rank)
            root = xp.sqrt(s)
            up, down = u * root[None, :], xp.matrix_transpose(v * root[None, :])
        ups.append(narrow(up[:, :rank], dtype, xp=xp))
        downs.append(narrow(down[:rank, :], dtype, xp=xp))
    kept = tuple(int(down.shape[0]) for down in downs)
    return LoRAStack(xp.concat(ups, axis=1), xp.concat(downs, axis=0), kept)
