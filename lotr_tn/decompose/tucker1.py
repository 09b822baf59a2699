"""One shared side: the best subspace for all layers, in closed form."""

from lotr_tn._arguments import door
from lotr_tn._arrays import (
    UNIT_ROUNDOFF,
    Array,
    Namespace,
    cast,
    float64,
    narrow,
    to_numpy,
)
from lotr_tn.decompose.assemble import beyond, fix_signs, underflow
from lotr_tn.decompose.core_space import CoreSpace, Side, core_space
from lotr_tn.decompose.guarded import guarded
from lotr_tn.decompose.search import asked_dtype, meet_error, resolution
from lotr_tn.decompose.weights import Weights, weighted
from lotr_tn.errors import OptionError
from lotr_tn.formats import Certificate, SharedSide, Stack, Tucker1
from lotr_tn.linalg import cross_gram
from lotr_tn.linalg.bases import GRAM_RESOLUTION
from lotr_tn.linalg.factor import pinv
from lotr_tn.linalg.ranks import (
    Budget,
    FixedRank,
    RankRule,
    as_rule,
    rank_for,
    smallest_rank,
    tail_energies,
)
from lotr_tn.ops.arrays import common_namespace
from lotr_tn.ops.checks import refuse_gradient
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.layers import layer_of
from lotr_tn.ops.moving import astype
from lotr_tn.ops.norms import layer_norms, root_sum_squares
from lotr_tn.ops.primitives import lowered


@door
@guarded
def tucker1(
    stack: Stack,
    ranks: RankRule | int,
    side: SharedSide = "in",
    *,
    dtype: str | None = None,
    weights: Weights = None,
) -> Tucker1:
    """The best stack that shares one side: V for "in", U for "out".

    The leading right (left) singular vectors of all layers one below (beside) the other are the
    best factor there is, so the error is the tail of those singular values.

    Args:
        stack: any stack (L, m, n).
        ranks: how many directions to share, or a rule: `FixedRank`, `RelativeError`, `Energy`, or
            `Budget`; one more direction costs n + L·m numbers (m + L·n for "out").
        side: which side to share.
        dtype: storage dtype of the result; the stack's own where left out.
        weights: as for `hosvd`.

    Returns:
        A Tucker1 with orthonormal shared factor (to the rounding of dtype) and a certificate.

    Raises:
        RankError: a rank is negative or a rule is out of range.
        OptionError: side or weights make no sense.
        DerivativeError: torch would record the decomposition.

    Warns:
        PrecisionWarning: the storage dtype is too coarse for the error asked for.

    Cost: that of the core space of `hosvd`, and 2·L·m·r·r_l flops for the layers' own factors.
    Accuracy: the best of its rank.
    Source: Eckart and Young (1936), on the unfolding of the stack.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import Dense, FixedRank
        >>> found = tucker1(Dense(np.arange(24.0).reshape(2, 3, 4)), 2)
        >>> found.own.shape, found.shared.shape, found.certificate.relative_error < 1e-14
        ((2, 3, 2), (4, 2), True)
    """
    if side not in ("in", "out"):
        raise OptionError(f'side must be "in" or "out"; found {side!r}')
    dtype = asked_dtype(stack, dtype)
    rule = as_rule(ranks, dtype)
    refuse_gradient("tucker1", stack)
    stack = lowered(stack)
    weighed, weight = weighted(stack, weights)
    space = core_space(weighed)
    found = space.right if side == "in" else space.left

    def attempt(rank: int) -> Tucker1:
        return _project(stack, space, found, rank, side, dtype, weight)

    if isinstance(rule, FixedRank):
        return attempt(min(rule.r1, int(found.sigma.shape[0])))
    tails = tail_energies(to_numpy(found.sigma))
    if isinstance(rule, Budget):
        layers, m, n = stack.shape
        return attempt(rank_for(rule, tails, n + layers * m if side == "in" else m + layers * n))
    total = float(tails[0])

    def within(budget: float) -> Tucker1:
        return attempt(smallest_rank(tails, max(budget, float(tails[-1]))))

    return meet_error(within, rule, total, resolution(space.wide) ** 2 * total, dtype)


def _project(
    stack: Stack,
    space: CoreSpace,
    side_space: Side,
    rank: int,
    side: SharedSide,
    dtype: str,
    weights: Array | None,
) -> Tucker1:
    """Every layer projected on the leading directions of one side, as stored, and measured."""
    xp = common_namespace(stack)
    sigma = side_space.sigma
    count = int(sigma.shape[0])
    axes = xp.eye(count, rank, dtype=sigma.dtype, device=sigma.device)
    shared = cast(fix_signs(side_space.lift(axes, xp=xp), xp=xp), dtype, xp=xp)
    wide = float64(shared, xp=xp)
    inverse = pinv(xp.matrix_transpose(wide) @ wide, xp=xp)  # as rounded, not quite orthonormal
    own = [
        narrow(_times(stack, index, shared, side, xp=xp) @ inverse, dtype, xp=xp)
        for index in range(stack.shape[0])
    ]
    result = Tucker1(shared, xp.stack(own), side)
    distances = layer_distances(*(astype(s, "float64") for s in (stack, result)))
    norms = space.layer_norms if weights is None else layer_norms(stack)
    lower, upper = _bounds(space, sigma, rank, dtype)
    upper = upper + underflow(dtype, stack.shape[0] * result.own.shape[1] * rank)
    certificate = Certificate(distances, norms, lower, upper, "tucker-1", 0, weights)
    return Tucker1(shared, result.own, side, certificate)


def _times(stack: Stack, index: int, shared: Array, side: SharedSide, *, xp: Namespace) -> Array:
    """ΔW_l shared (m, r), or ΔW_lᵀ shared (n, r), in float64."""
    layer = layer_of(stack, index, xp=xp)
    if layer.left is None:
        matrix = layer.middle
        return cross_gram(xp.matrix_transpose(matrix) if side == "in" else matrix, shared, xp=xp)
    near, far = (layer.right, layer.left) if side == "in" else (layer.left, layer.right)
    inside = cross_gram(near, shared, xp=xp)
    if layer.middle is not None:
        middle = float64(layer.middle, xp=xp)
        inside = (middle if side == "in" else xp.matrix_transpose(middle)) @ inside
    return float64(far, xp=xp) @ inside


def _bounds(space: CoreSpace, sigma: Array, rank: int, dtype: str) -> tuple[Array, Array]:
    tail = root_sum_squares(sigma[rank:])
    size = int(sigma.shape[0])
    share = UNIT_ROUNDOFF["float64"] if space.wide else GRAM_RESOLUTION
    noise = space.norm * (4 * share * size**0.5 if rank < size else 0.0)
    rounding = space.norm * (UNIT_ROUNDOFF[dtype] * (2 + rank**0.5) + 2.0**-48)
    return beyond(tail, noise), tail + noise + rounding
