"""Tucker-2 with low-rank cores: shared factors first, then every core cut to its own rank."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lotr_tn._arguments import door
from lotr_tn._arrays import (
    UNIT_ROUNDOFF,
    Array,
    Namespace,
    dtype_name,
    float64,
    namespace_of,
    narrow,
    to_numpy,
)
from lotr_tn.decompose.assemble import bounds_of, lifted, underflow_of_terms
from lotr_tn.decompose.core_space import core_space
from lotr_tn.decompose.guarded import guarded
from lotr_tn.decompose.search import PairSearch, asked_dtype
from lotr_tn.decompose.sweeps import leading_axes
from lotr_tn.decompose.truncation import limited_order
from lotr_tn.decompose.tucker import hosvd
from lotr_tn.errors import RankError
from lotr_tn.formats import Certificate, LoRAStack, LowRankTucker2, Stack
from lotr_tn.linalg.bases import signs
from lotr_tn.linalg.factor import pinv, qr, svd
from lotr_tn.linalg.ranks import FixedRank, RankLimits, fixed_pair
from lotr_tn.ops.arrays import common_namespace
from lotr_tn.ops.batches import in_batches, side_by_side
from lotr_tn.ops.checks import refuse_gradient
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.frame import frame_of
from lotr_tn.ops.layers import each_core
from lotr_tn.ops.moving import astype
from lotr_tn.ops.norms import root_sum_squares
from lotr_tn.ops.primitives import lowered


@door
@guarded
def low_rank_tucker2(
    stack: Stack,
    ranks: tuple[int, int],
    terms: int,
    *,
    limits: RankLimits | None = None,
    dtype: str | None = None,
) -> LowRankTucker2:
    """Shared factors by the truncated HOSVD, and cores that keep the largest singular values.

    One threshold over the cores of all layers chooses their ranks, since every term costs r1 + r2
    wherever it is.

    Args:
        stack: any stack (L, m, n).
        ranks: (r1, r2), or the largest that the stack has.
        terms: how many rank terms all cores keep together, or as many as they have.
        limits: on the rank of each core.
        dtype: storage dtype of the result; the stack's own where left out.

    Returns:
        A LowRankTucker2 with a certificate: measured distances; no Tucker-2 of ranks (r1, r2) is
        closer than its lower bound.

    Raises:
        RankError: `ranks` is no pair, or a rank or `terms` is negative.
        DerivativeError: torch would record the decomposition.

    Cost: that of `hosvd` at these ranks, and O(L·r1·r2·min(r1, r2)) flops.
    Accuracy: the squared error is that of the HOSVD and the cores' singular values cut off, added.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import LoRAStack
        >>> rng = np.random.default_rng(0)
        >>> stack = LoRAStack(rng.standard_normal((9, 6)), rng.standard_normal((6, 7)), (2, 3, 1))
        >>> found = low_rank_tucker2(stack, (5, 5), terms=4)
        >>> found.shared_ranks, sum(found.ranks), round(found.certificate.relative_error, 3)
        ((5, 5), 4, 0.313)
    """
    if terms < 0:
        raise RankError(f"terms must be at least 0; found {terms}")
    pair, limits, stack = fixed_pair(ranks), limits or RankLimits(), lowered(stack)
    if isinstance(stack, LowRankTucker2):
        return _inside_bases(stack, pair, terms, limits, asked_dtype(stack, dtype))
    whole = hosvd(stack, pair, dtype=asked_dtype(stack, dtype))
    most = stack.ranks if isinstance(stack, LoRAStack) else (min(stack.shape[1:]),) * stack.shape[0]
    xp, known = common_namespace(whole), whole.certificate
    assert known is not None
    bounds = _Bounds(known.lower, known.upper, known.norms)
    given = each_core(whole, xp=xp)

    def made(places: list[int]) -> Iterable[tuple[Array, Array, Array]]:
        factors = map(xp.unstack, svd(xp.stack([next(given) for _ in places]), xp=xp))
        for place, (u, s, vt) in zip(places, zip(*factors, strict=True), strict=True):
            left, right = u[:, : most[place]], vt[: most[place], :]  # as a layer has at most
            yield xp.asarray(left, copy=True), s, xp.asarray(right, copy=True)

    cores = in_batches([0] * len(most), math.prod(whole.ranks), made)
    return _cut(stack, (whole.u, whole.v), cores, terms, limits, bounds)


@dataclass(frozen=True)
class _Bounds:
    """What is known of the Tucker-2 before its cores are cut."""

    lower: Array
    upper: Array
    norms: Array  # (L,) of the layers


def _inside_bases(
    stack: LowRankTucker2, ranks: FixedRank, terms: int, limits: RankLimits, dtype: str
) -> LowRankTucker2:
    """The same from a stack of low-rank cores, none of which is ever formed whole."""
    refuse_gradient("low_rank_tucker2", stack)
    xp = common_namespace(stack)
    space = core_space(stack)
    chosen = PairSearch(space, stack.shape, leading_axes, False).asked(ranks)
    u, v = lifted(space, chosen, dtype)
    frame = frame_of(u, v, xp=xp)
    sides = ((frame.left, frame.left_factor, stack.u), (frame.right, frame.right_factor, stack.v))
    left, right = (
        pinv(factor, xp=xp) @ (xp.matrix_transpose(basis) @ float64(own, xp=xp))
        for basis, factor, own in sides
    )
    bounds = _Bounds(*bounds_of(space, chosen, dtype), space.layer_norms)
    del space, chosen  # as large as the stack
    up = left @ float64(stack.up, xp=xp)
    down = float64(stack.down, xp=xp) @ xp.matrix_transpose(right)
    cores = _svds_of_cores(LoRAStack(up, down, stack.ranks), xp=xp)
    del up, down
    return _cut(stack, (u, v), cores, terms, limits, bounds)


def _svds_of_cores(stack: LoRAStack, *, xp: Namespace) -> list[tuple[Array, Array, Array]]:
    """The SVD of each up (r1, k) @ down (k, r2), from matrices of the smaller of both sizes."""
    parts, sides = stack.slices, (stack.up, stack.down.mT)

    def made(places: list[int]) -> Iterable[tuple[Array, Array, Array]]:
        up, down = (side_by_side(x, parts, places, xp) for x in sides)
        if 0 in up.shape or 0 in down.shape:
            nothing = up[0, :, :0], xp.sum(up[0, ...], axis=0)[:0], down[0, ...].mT[:0, :]
            return [nothing] * len(places)
        (left, r_left), (right, r_right) = qr(up, xp=xp), qr(down, xp=xp)
        u, s, vt = svd(r_left @ r_right.mT, xp=xp)
        return zip(*map(xp.unstack, (left @ u, s, vt @ right.mT)), strict=True)

    return in_batches(stack.ranks, sum(stack.shape[1:]) * max(stack.ranks), made)


def _cut(
    stack: Stack,
    bases: tuple[Array, Array],
    cores: Sequence[tuple[Array, Array, Array]],
    terms: int,
    limits: RankLimits,
    bounds: _Bounds,
) -> LowRankTucker2:
    """Cores, by their SVDs, cut to `terms` rank terms; only values with vectors may be kept."""
    (u, v), xp = bases, namespace_of(u=bases[0])
    values = [to_numpy(s)[: left.shape[1]] for left, s, _ in cores]
    order = limited_order(values, limits)
    kept = order.ranks(min(terms, len(order.layers)))
    ups, downs = [], []
    for (left, s, right), rank in zip(cores, kept, strict=True):
        root = xp.sqrt(s[:rank]) * signs(left[:, :rank], xp=xp)
        ups.append(left[:, :rank] * root[None, :])
        downs.append(root[:, None] * right[:rank, :])
    dtype = dtype_name(u)
    up, down = (
        narrow(xp.concat(parts, axis=axis), dtype, xp=xp) for parts, axis in ((ups, 1), (downs, 0))
    )
    del ups, downs
    result = LowRankTucker2(u, up, down, v, kept)
    lost = [s[rank:] for (_, s, _), rank in zip(cores, kept, strict=True)]
    tail = root_sum_squares(xp.concat(lost))
    return replace(result, certificate=_certified(stack, result, bounds, tail, xp=xp))


def _certified(
    stack: Stack, result: LowRankTucker2, bounds: _Bounds, tail: Array, *, xp: Namespace
) -> Certificate:
    """Measured distances; the Tucker-2's own bounds, the upper one with the cores' tail beside."""
    distances = layer_distances(*(astype(s, "float64") for s in (stack, result)))
    share = 2.5 * UNIT_ROUNDOFF[dtype_name(result.u)] + 2.0**-48
    rounding = share * max(1, *result.ranks) ** 0.5 * root_sum_squares(bounds.norms)
    lost = underflow_of_terms(
        dtype_name(result.u), result.shared_ranks, sum(result.ranks), root_sum_squares(bounds.norms)
    )
    upper = root_sum_squares(xp.stack([bounds.upper, tail])) + rounding + lost
    return Certificate(distances, bounds.norms, bounds.lower, upper, "hosvd, low-rank cores", 0)
