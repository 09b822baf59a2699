"""Alternating least squares for CP in core space: no update is formed, only products of factors.

A stack there is ΔW_l = x_l y_lᵀ, all x_l side by side in x (K1, T), the y_l in y (K2, T). With
P = xᵀA and Q = yᵀB the products of the stack with terms a_r, b_r, weights w cost O(K T R) flops:

    for A: x (w_l(t) ∘ Q),    for B: y (w_l(t) ∘ P),    for w_l: Σ_(t in l) P_t ∘ Q_t.

Every step solves its least squares problem with a trace of the old factor beside, so that it has a
solution where terms nearly coincide, and never raises the error. Errors here are by Gram matrices,
to 1e-8 of the norm: they steer the sweeps, and are told to nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import array_api_compat
import numpy as np

from lotr_tn._arrays import Array, Namespace, to_numpy, zeros
from lotr_tn.decompose.core_space import CoreSpace
from lotr_tn.decompose.cp_gauge import unit_columns
from lotr_tn.linalg.factor import solve

RIDGE = 1e-12
"""Share of the old factor in a least squares step whose Gram matrix has ones on its diagonal."""

RESOLVED = 1e-15
"""Share of ‖T‖² below which a squared error by Gram matrices is rounding."""

POLISH = 10
"""Sweeps once the error is below that, which still bring it down, though unseen."""

LARGEST_TERMS = 1e3
"""Root of the sum of squared norms of the terms, over ‖T‖, above which terms cancel for the sake of
less and less: the best rank-R sum need not exist, and storage loses what they gain."""

LONGEST_STEP = 8.0
"""The largest multiple of the last sweep's change that is tried beyond it."""

Stop = Literal["converged", "met", "out of reach", "all sweeps", "terms cancel"]


@dataclass(frozen=True, eq=False)
class Terms:
    """A CP in core space: unit columns a_r, w_r and b_r, sizes λ_r, and their products."""

    a: Array  # (K1, R)
    w: Array  # (L, R)
    b: Array  # (K2, R)
    sizes: Array  # (R,)
    p: Array  # (T, R) = xᵀ a
    q: Array  # (T, R) = yᵀ b
    squared_error: float


@dataclass(frozen=True, eq=False)
class Sweeps:
    """Where the sweeps ended, and why."""

    terms: Terms
    count: int
    stop: Stop


class CoreProblem:
    """A stack in core space, as the sweeps see it."""

    def __init__(self, space: CoreSpace) -> None:
        self.xp: Namespace = space.xp
        self.x, self.y = space.left.coordinates, space.right.coordinates
        ranks = [part.stop - part.start for part in space.slices]
        owner = np.repeat(np.arange(len(ranks)), ranks)
        self.owner = self.xp.asarray(owner, device=array_api_compat.device(self.x))
        members = (owner == np.arange(len(ranks))[:, None]).astype(np.float64)
        self.members = self.xp.asarray(members, device=array_api_compat.device(self.x))  # (L, T)
        self.square = float(space.norm) ** 2

    @property
    def layers(self) -> int:
        """L."""
        return int(self.members.shape[0])

    def of_each(self, w: Array) -> Array:
        """(T, R): the row of w (L, R) that each of the stack's terms belongs to."""
        return self.xp.take(w, self.owner, axis=0)

    def started(self, a: Array, b: Array, w: Array | None = None) -> Terms:
        """Terms from both sides, with the best weights where none are given."""
        xp = self.xp
        (a, _), (b, _) = (unit_columns(side, xp=xp) for side in (a, b))
        nothing = zeros((self.layers, a.shape[1]), a, xp=xp)
        start = Terms(
            a, nothing, b, xp.sum(nothing, axis=0), self.x.mT @ a, self.y.mT @ b, self.square
        )
        return self._with_weights(start) if w is None else self._measured(start, w)

    def swept(self, terms: Terms) -> Terms:
        """A, then B, then the weights, each the best for the others."""
        of_each = self.of_each(terms.w)
        gram = (terms.w.mT @ terms.w) * (terms.b.mT @ terms.b)
        a, sizes = self._solved(gram, self.x @ (of_each * terms.q), terms.a * terms.sizes, terms.a)
        p = self.x.mT @ a
        gram = (terms.w.mT @ terms.w) * (a.mT @ a)
        b, sizes = self._solved(gram, self.y @ (of_each * p), terms.b * sizes, terms.b)
        moved = replace(terms, a=a, b=b, sizes=sizes, p=p, q=self.y.mT @ b)
        return self._with_weights(moved)

    def beyond(self, old: Terms, new: Terms, step: float) -> Terms:
        """So much further along the change from one to the other: products are linear in it."""
        xp = self.xp

        def further(first: Array, then: Array) -> Array:
            return then + step * (then - first)

        a, b, p, q = (further(getattr(old, k), getattr(new, k)) for k in ("a", "b", "p", "q"))
        w = further(old.w * old.sizes, new.w * new.sizes)
        (a, long_a), (b, long_b) = unit_columns(a, xp=xp), unit_columns(b, xp=xp)
        one = xp.ones_like(long_a)
        p, q = (x / xp.where(n > 0, n, one) for x, n in ((p, long_a), (q, long_b)))
        return self._measured(Terms(a, w, b, long_a, p, q, 0.0), w * (long_a * long_b))

    def _with_weights(self, terms: Terms) -> Terms:
        gram = (terms.a.mT @ terms.a) * (terms.b.mT @ terms.b)
        rhs = self.members @ (terms.p * terms.q)
        old = terms.w * terms.sizes
        return self._measured(terms, self._scaled(gram, rhs, old), gram, rhs)

    def _measured(
        self, terms: Terms, w: Array, gram: Array | None = None, rhs: Array | None = None
    ) -> Terms:
        xp = self.xp
        if gram is None:
            gram = (terms.a.mT @ terms.a) * (terms.b.mT @ terms.b)
        if rhs is None:
            rhs = self.members @ (terms.p * terms.q)
        square = self.square - 2 * float(xp.sum(rhs * w)) + float(xp.sum((w.mT @ w) * gram))
        unit, sizes = _unit(w, terms.w, xp=xp)
        return replace(terms, w=unit, sizes=sizes, squared_error=max(square, 0.0))

    def _solved(self, gram: Array, rhs: Array, old: Array, unit: Array) -> tuple[Array, Array]:
        return _unit(self._scaled(gram, rhs, old), unit, xp=self.xp)

    def _scaled(self, gram: Array, rhs: Array, old: Array) -> Array:
        eye = self.xp.eye(gram.shape[0], dtype=gram.dtype, device=array_api_compat.device(gram))
        return solve(gram + RIDGE * eye, (rhs + RIDGE * old).mT, xp=self.xp).mT


def best_of(problem: CoreProblem, starts: Sequence[Terms], sweeps: int) -> Terms:
    """The closest after a few sweeps of all, twice as many of the better half, and so on."""
    while len(starts) > 1:
        ends = [alternate(problem, start, 0.0, sweeps).terms for start in starts]
        starts = sorted(ends, key=lambda end: end.squared_error)[: (len(ends) + 1) // 2]
        sweeps *= 2
    return starts[0]


def alternate(
    problem: CoreProblem,
    start: Terms,
    tolerance: float,
    max_sweeps: int,
    wanted: float | None = None,
) -> Sweeps:
    """Sweep, and step beyond each sweep where that is closer; the error never rises.

    It ends where a sweep lowers the error by less than `tolerance` of it, or, for a squared error
    that is wanted, where it is met or the sweeps that are left will not get there at this pace.
    """
    now, step = start, 1.0
    floor = RESOLVED * problem.square
    most = LARGEST_TERMS**2 * problem.square
    for count in range(1, max_sweeps + 1):
        swept = problem.swept(now)
        if not np.isfinite(swept.squared_error) or _squares(swept.sizes) > most:
            return Sweeps(now, count, "terms cancel")
        if swept.squared_error > now.squared_error:  # rounding is all that is left
            return _converged(problem, now, count)
        ahead = problem.beyond(now, swept, step)
        closer = ahead.squared_error < swept.squared_error and _squares(ahead.sizes) <= most
        step = min(1.5 * step, LONGEST_STEP) if closer else max(step / 2, 0.5)
        before, now = now, ahead if closer else swept
        if wanted is not None and floor < now.squared_error <= wanted:
            return Sweeps(now, count, "met")
        gain = before.squared_error**0.5 - now.squared_error**0.5
        if now.squared_error <= floor:
            return _converged(problem, now, count)
        if gain <= tolerance * before.squared_error**0.5:
            return Sweeps(now, count, "converged")
        if wanted is not None and now.squared_error**0.5 - gain * (max_sweeps - count) > (
            wanted**0.5
        ):
            return Sweeps(now, count, "out of reach")
    return Sweeps(now, max_sweeps, "all sweeps")


def _converged(problem: CoreProblem, terms: Terms, count: int) -> Sweeps:
    """The end of the sweeps; below what these can see, a few more that still help."""
    more = POLISH if terms.squared_error <= RESOLVED * problem.square else 0
    for _ in range(more):
        terms = problem.swept(terms)
    return Sweeps(terms, count + more, "converged")


def _squares(x: Array) -> float:
    return float(np.sum(to_numpy(x) ** 2))


def _unit(x: Array, instead: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Unit columns and their lengths; of a column of zeros what stood before."""
    unit, lengths = unit_columns(x, xp=xp)
    return xp.where(lengths > 0, unit, instead), lengths
