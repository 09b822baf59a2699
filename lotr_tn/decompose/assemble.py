"""From subspaces in core space to a stored, measured Tucker-2."""

import math

from lotr_tn._arrays import UNIT_ROUNDOFF, Array, Namespace, cast, dtype_name, narrow
from lotr_tn.decompose.core_space import CoreSpace
from lotr_tn.decompose.sweeps import Subspaces
from lotr_tn.formats import Certificate, LoRAStack, Tucker2
from lotr_tn.linalg.bases import GRAM_RESOLUTION
from lotr_tn.ops.arithmetic import as_tucker
from lotr_tn.ops.distance import distances_from, frame_of, project
from lotr_tn.ops.norms import root_sum_squares

__all__ = ["assemble", "keep_whole"]

ARITHMETIC = 32
"""Unit roundoffs that the float64 arithmetic itself may lose, relative to the norm."""


def assemble(
    stack: LoRAStack,
    space: CoreSpace,
    subspaces: Subspaces,
    *,
    dtype: str,
    method: str,
    xp: Namespace,
) -> Tucker2:
    """Lift both subspaces, round them to `dtype`, project every layer onto what is stored, measure.

    The cores are the best ones for the factors as rounded, and the distances are those of the
    arrays as stored. Cost: O((m + n)·R·r) flops; memory of the factors and one layer.
    """
    u = cast(_fix_signs(space.left.lift(subspaces.left, xp=xp), xp=xp), dtype, xp=xp)
    v = cast(_fix_signs(space.right.lift(subspaces.right, xp=xp), xp=xp), dtype, xp=xp)
    frame = frame_of(u, v, xp=xp)
    to_u = xp.linalg.pinv(frame.left_factor)  # of less than full rank where u has zero columns
    to_v = xp.matrix_transpose(xp.linalg.pinv(frame.right_factor))
    projection = project(stack, frame, xp=xp)
    cores = [
        narrow(to_u @ projection.core(index, xp=xp) @ to_v, dtype, xp=xp)
        for index in range(stack.shape[0])
    ]
    in_frame = (frame.core(core, xp=xp) for core in cores)
    distances = distances_from(projection, in_frame, xp=xp)
    lower, upper = _bounds(space, subspaces, dtype, xp=xp)
    certificate = Certificate(distances, space.layer_norms, lower, upper, method, subspaces.sweeps)
    return Tucker2(u, xp.stack(cores), v, certificate)


def keep_whole(
    stack: LoRAStack, space: CoreSpace, *, dtype: str, method: str, xp: Namespace
) -> Tucker2:
    """The stack itself as a Tucker-2 of full ranks: its own factors, and cores of 0 and 1.

    Where nothing can be cut off, this is as small as orthonormal factors, and loses not even
    rounding. In another dtype than the stack's, the distances are measured.
    """
    whole = as_tucker(stack, xp=xp)
    u, core, v = (narrow(x, dtype, xp=xp) for x in (whole.u, whole.core, whole.v))
    if dtype == dtype_name(stack.up):
        distances = xp.zeros_like(space.layer_norms)  # the very same numbers
    else:
        frame = frame_of(u, v, xp=xp)
        in_frame = (frame.core(core[index, ...], xp=xp) for index in range(stack.shape[0]))
        distances = distances_from(project(stack, frame, xp=xp), in_frame, xp=xp)
    full = Subspaces(space.left.mixing, space.right.mixing, None, 0)
    lower, upper = _bounds(space, full, dtype, xp=xp)
    certificate = Certificate(distances, space.layer_norms, lower, upper, method, 0)
    return Tucker2(u, core, v, certificate)


def _fix_signs(u: Array, *, xp: Namespace) -> Array:
    """Flip columns so that the entry of largest size is positive: equal spaces, equal factors."""
    if 0 in u.shape:
        return u
    negative = -xp.min(u, axis=0) > xp.max(u, axis=0)
    one = xp.ones_like(u[0, :])
    return u * xp.where(negative, -one, one)[None, :]


def _bounds(
    space: CoreSpace, subspaces: Subspaces, dtype: str, *, xp: Namespace
) -> tuple[Array, Array]:
    """Bounds on the distance: below for any Tucker-2 of these ranks, above for the HOSVD's.

    Computed singular values carry rounding of their own; the bounds step aside by as much.
    """
    ranks = subspaces.left.shape[1], subspaces.right.shape[1]
    tails, noise = [], []
    for side, rank in zip((space.left, space.right), ranks, strict=True):
        tails.append(root_sum_squares(side.sigma[rank:]))
        share = UNIT_ROUNDOFF["float64"] if space.wide else GRAM_RESOLUTION
        size = side.sigma.shape[0]
        noise.append(space.norm * (4 * share * math.sqrt(size) if rank < size else 0.0))
    below = xp.stack([xp.clip(t - e, 0.0, None) for t, e in zip(tails, noise, strict=True)])
    rounding = UNIT_ROUNDOFF[dtype] * (1 + math.sqrt(ranks[0]) + math.sqrt(ranks[1]))
    rounding += ARITHMETIC * UNIT_ROUNDOFF["float64"]
    above = root_sum_squares(xp.stack([t + e for t, e in zip(tails, noise, strict=True)]))
    return xp.max(below), above + rounding * space.norm
