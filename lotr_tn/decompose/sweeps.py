"""Alternating optimisation of the two subspaces in core space.

Each half-sweep finds the leading left singular vectors of the stack projected onto the other side's
fixed subspace, and can only lower the error.
"""

from dataclasses import dataclass, replace

from lotr_tn._arrays import Array, Namespace
from lotr_tn.decompose.core_space import CoreSpace, Side, weigh
from lotr_tn.linalg.factor import eigh_descending, qr, svd
from lotr_tn.ops.frame import triangles
from lotr_tn.ops.norms import root_sum_squares


@dataclass(frozen=True)
class Subspaces:
    """Orthonormal coordinates of both factors in core space, and the error they leave."""

    left: Array  # (K1, r1)
    right: Array  # (K2, r2)
    error: Array | None  # ‖T − T̂‖ in core space; None where not computed
    sweeps: int


def leading_axes(space: CoreSpace, ranks: tuple[int, int]) -> Subspaces:
    """The HOSVD's subspaces: core space is ordered by mode singular values already."""
    left, right = (
        space.xp.eye(side.sigma.shape[0], rank, dtype=side.sigma.dtype, device=side.sigma.device)
        for side, rank in zip((space.left, space.right), ranks, strict=True)
    )
    return Subspaces(left, right, None, 0)


def refit_right(space: CoreSpace, left: Array, rank: int) -> Subspaces:
    """The best right subspace for a given left one, and the error of the pair."""
    xp = space.xp
    right, dropped = _best_subspace(space.right, space.left, left, rank, space, xp=xp)
    outside = space.left.coordinates - left @ (xp.matrix_transpose(left) @ space.left.coordinates)
    missed = root_sum_squares(weigh(outside, space.slices, space.right.weights, xp=xp))
    return Subspaces(left, right, xp.sqrt(missed**2 + dropped**2), 0)


def alternate(
    space: CoreSpace, start: Subspaces, *, tolerance: float, max_sweeps: int
) -> Subspaces:
    """Sweep until one sweep lowers the error by less than `tolerance` of it."""
    # with a tolerance of 0, `max_sweeps` are made, and nothing waits for the device
    ranks = start.left.shape[1], start.right.shape[1]
    current, best = start, start.error
    for sweep in range(1, max_sweeps + 1):
        sides = space.left, space.right
        left, _ = _best_subspace(*sides, current.right, ranks[0], space, xp=space.xp)
        current = replace(refit_right(space, left, ranks[1]), sweeps=sweep)
        error = current.error
        if tolerance and best is not None and float(best - error) <= tolerance * float(best):
            break
        best = error
    return current


def _best_subspace(
    side: Side, other: Side, fixed: Array, rank: int, space: CoreSpace, *, xp: Namespace
) -> tuple[Array, Array]:
    """The leading `rank` directions of a side with the other side projected, and what they drop."""
    projected = xp.matrix_transpose(fixed) @ other.coordinates
    if space.wide:
        factors = triangles(projected, space.slices, xp=xp)
        u, s, _ = svd(weigh(side.coordinates, space.slices, factors, xp=xp), xp=xp)
        return _with_columns(u, rank, xp=xp), root_sum_squares(s[min(rank, s.shape[0]) :])
    grams = [xp.matrix_transpose(projected[:, part]) @ projected[:, part] for part in space.slices]
    weighed = weigh(side.coordinates, space.slices, grams, xp=xp)
    values, vectors = eigh_descending(weighed @ xp.matrix_transpose(side.coordinates), xp=xp)
    return vectors[:, :rank], xp.sqrt(xp.sum(values[rank:]))


def _with_columns(u: Array, rank: int, *, xp: Namespace) -> Array:
    """The first `rank` orthonormal columns, completed where u has fewer."""
    if u.shape[1] >= rank:
        return u[:, :rank]
    eye = xp.eye(u.shape[0], dtype=u.dtype, device=u.device)
    return qr(xp.concat([u, eye], axis=1), xp=xp)[0][:, :rank]
