"""From subspaces in core space to a stored, measured Tucker-2."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from lotr_tn._arrays import (
    HALF_SUBNORMAL,
    UNIT_ROUNDOFF,
    Array,
    Namespace,
    cast,
    dtype_name,
    namespace_of,
    narrow,
)
from lotr_tn.decompose.core_space import CoreSpace
from lotr_tn.decompose.sweeps import Subspaces
from lotr_tn.formats import Certificate, LoRAStack, Stack, Tucker2
from lotr_tn.linalg.bases import GRAM_RESOLUTION, signs
from lotr_tn.linalg.factor import pinv
from lotr_tn.ops.arrays import common_namespace
from lotr_tn.ops.conversion import as_tucker2
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.frame import cores_in, distances_from, frame_of, project
from lotr_tn.ops.moving import astype
from lotr_tn.ops.norms import layer_norms, root_sum_squares
from lotr_tn.ops.primitives import lowered

ARITHMETIC = 32  # unit roundoffs that the float64 arithmetic itself may lose, relative to the norm


@dataclass(frozen=True)
class Storage:
    """How a result is stored and certified."""

    dtype: str
    method: str
    weights: Array | None = None  # (L,) float64


def assemble(stack: Stack, space: CoreSpace, subspaces: Subspaces, how: Storage) -> Tucker2:
    """Lift both subspaces, round them to the dtype, give every layer its best core, and measure."""
    # Cost: O((m + n)·R·r) flops; memory of the factors and one layer.
    u, v = lifted(space, subspaces, how.dtype)
    return with_best_cores(
        stack, u, v, lambda found: _certified(stack, space, subspaces, how, found)
    )


def lifted(space: CoreSpace, subspaces: Subspaces, dtype: str) -> tuple[Array, Array]:
    """The factors (m, r1) and (n, r2) of both subspaces, rounded to the dtype."""
    xp = space.xp
    u, v = (
        cast(fix_signs(side.lift(part, xp=xp), xp=xp), dtype, xp=xp)
        for side, part in ((space.left, subspaces.left), (space.right, subspaces.right))
    )
    return u, v


def with_best_cores(
    stack: Stack, u: Array, v: Array, certify: Callable[[Array], Certificate | None]
) -> Tucker2:
    """The Tucker-2 closest to the stack with these factors, orthonormal or not, and measured."""
    xp = namespace_of(u=u, v=v)
    dtype = dtype_name(u)
    frame = frame_of(u, v, xp=xp)
    to_u = pinv(frame.left_factor, xp=xp)  # of less than full rank where u has zero columns
    to_v = xp.matrix_transpose(pinv(frame.right_factor, xp=xp))
    stack, layers = lowered(stack), range(stack.shape[0])
    if not isinstance(stack, LoRAStack):
        inside = cores_in(stack, frame, xp=xp)
        core = xp.stack([narrow(to_u @ c @ to_v, dtype, xp=xp) for c in inside])
        wide = (astype(s, "float64") for s in (stack, Tucker2(u, core, v)))
        return Tucker2(u, core, v, certify(layer_distances(*wide)))
    projection = project(stack, frame, xp=xp)
    cores = [narrow(to_u @ projection.core(i, xp=xp) @ to_v, dtype, xp=xp) for i in layers]
    in_frame = (frame.core(core, xp=xp) for core in cores)
    certificate = certify(distances_from(projection, in_frame, xp=xp))
    return Tucker2(u, xp.stack(cores), v, certificate)


def keep_whole(stack: LoRAStack, space: CoreSpace, how: Storage) -> Tucker2:
    """The stack itself as a Tucker-2 of full ranks: its own factors, and cores of 0 and 1."""
    # In another dtype than the stack's, the distances are measured.
    xp = common_namespace(stack)
    whole = as_tucker2(stack)
    u, core, v = (narrow(x, how.dtype, xp=xp) for x in (whole.u, whole.core, whole.v))
    if how.dtype == dtype_name(stack.up):
        distances = xp.zeros_like(space.layer_norms)  # the very same numbers
    else:
        frame = frame_of(u, v, xp=xp)
        in_frame = (frame.core(core[index, ...], xp=xp) for index in range(stack.shape[0]))
        distances = distances_from(project(stack, frame, xp=xp), in_frame, xp=xp)
    full = Subspaces(space.left.mixing, space.right.mixing, None, 0)
    return Tucker2(u, core, v, _certified(stack, space, full, how, distances))


def _certified(
    stack: Stack, space: CoreSpace, subspaces: Subspaces, how: Storage, distances: Array
) -> Certificate:
    lower, upper = bounds_of(space, subspaces, how.dtype)
    norms = space.layer_norms if how.weights is None else layer_norms(stack)
    return Certificate(distances, norms, lower, upper, how.method, subspaces.sweeps, how.weights)


def beyond(tail: Array, noise: Array) -> Array:
    """What a tail of singular values surely is, with so much rounding in it: tail - noise, or 0."""
    xp = namespace_of(tail=tail)
    return xp.where(tail <= noise, xp.zeros_like(tail), tail - noise)


def underflow(dtype: str, count: int) -> float:
    """What rounding to the dtype takes at most of so many entries, however small they are."""
    return 2 * HALF_SUBNORMAL[dtype] * math.sqrt(count)


def underflow_of_terms(dtype: str, sizes: tuple[int, int], terms: int, size: Array) -> Array:
    """The same of a stack of that norm in so many terms, each of whose factors has a root of it."""
    lost = sum(underflow(dtype, one * terms) for one in sizes)
    return lost * (size**0.5 + lost)


def fix_signs(u: Array, *, xp: Namespace) -> Array:
    """Flip columns so that the entry of largest size is positive: equal spaces, equal factors."""
    return u * signs(u, xp=xp)[None, :]


def bounds_of(space: CoreSpace, subspaces: Subspaces, dtype: str) -> tuple[Array, Array]:
    """Bounds on the distance: below for any Tucker-2 of these ranks, above for the HOSVD's."""
    # computed singular values carry rounding of their own; the bounds step aside by as much
    xp, ranks = space.xp, (subspaces.left.shape[1], subspaces.right.shape[1])
    tails, noise = [], []
    for side, rank in zip((space.left, space.right), ranks, strict=True):
        tails.append(root_sum_squares(side.sigma[rank:]))
        share = UNIT_ROUNDOFF["float64"] if space.wide else GRAM_RESOLUTION
        size = side.sigma.shape[0]
        noise.append(space.norm * (4 * share * math.sqrt(size) if rank < size else 0.0))
    whole = tails
    if space.missed is not None:  # the tail inside a sketch is below the true one
        whole = [root_sum_squares(xp.stack(both)) for both in zip(tails, space.missed, strict=True)]
    below = xp.stack([beyond(t, e) for t, e in zip(tails, noise, strict=True)])
    rounding = UNIT_ROUNDOFF[dtype] * (1 + math.sqrt(ranks[0]) + math.sqrt(ranks[1]))
    rounding += ARITHMETIC * UNIT_ROUNDOFF["float64"]
    above = root_sum_squares(xp.stack([t + e for t, e in zip(whole, noise, strict=True)]))
    lost = underflow(dtype, len(space.slices) * ranks[0] * ranks[1])  # of the cores
    return xp.max(below), above + rounding * space.norm + lost
