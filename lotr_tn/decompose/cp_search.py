"""The terms of a CP at a rank, or at the smallest found for an error, lifted and measured."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF, Array, Namespace, narrow, to_numpy
from lotr_tn.decompose.assemble import underflow
from lotr_tn.decompose.core_space import CoreSpace, Side, core_space
from lotr_tn.decompose.cp_gauge import canonical_terms
from lotr_tn.decompose.cp_starts import LayerTerms, other_starts
from lotr_tn.decompose.cp_sweeps import RESOLVED, CoreProblem, Sweeps, Terms, alternate, best_of
from lotr_tn.decompose.search import meet_error, resolution
from lotr_tn.decompose.sketch import randomised_space
from lotr_tn.decompose.tucker import EXACT_UP_TO, POWER_ITERATIONS, SMALLEST_SKETCH
from lotr_tn.formats import CP, Certificate, Core, LoRAStack
from lotr_tn.linalg import cross_gram
from lotr_tn.linalg.factor import eigenvalues, qr
from lotr_tn.linalg.ranks import Budget, FixedRank, RankRule, smallest_rank, tail_energies
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.moving import astype
from lotr_tn.ops.primitives import lowered

WARM_UP = 5
"""Sweeps of every start before the better half goes on."""

ATTEMPTS = 6
"""Ranks that are tried for an error, between what none may be below and what surely meets it."""

NOISY = 4
"""Resolutions of the core space within which distances of sums of terms are rounding."""

CANCELLING = 3.0
"""Root of the sum of squared norms of the terms, over ‖T‖, from which they are said to cancel."""


@dataclass(frozen=True)
class How:
    """The options of `cp`."""

    dtype: str
    starts: int
    seed: int
    tolerance: float
    max_sweeps: int


class CPSearch:
    """The CPs of one stack. A CP itself comes in canonical gauge, in float64."""

    def __init__(self, stack: Core | CP, asked: RankRule, how: How) -> None:
        self.stack, self.asked, self.how = stack, asked, how
        self.space = _space(lowered(stack), asked, how.seed)
        self.problem = CoreProblem(self.space)
        self.norm = float(self.space.norm)
        self.terms = LayerTerms(self.space, resolution(self.space.wide) * self.norm)
        self.own = None
        if isinstance(stack, CP) and 0 < stack.rank <= self.terms.count:
            xp, sides = self.problem.xp, ((self.space.left, stack.a), (self.space.right, stack.b))
            a, b = (_within(side, factor, xp=xp) for side, factor in sides)
            self.own = self.problem.started(a, b, stack.weights)
        self.most = self.terms.count if self.own is None else int(self.own.sizes.shape[0])

    def found(self) -> CP:
        """What was asked for."""
        asked = self.asked
        if isinstance(asked, FixedRank | Budget):
            rank = (
                asked.r1 if isinstance(asked, FixedRank) else asked.count // sum(self.stack.shape)
            )
            return self._stored(self._swept(min(rank, self.most)))
        floor = self._noise(self.space.wide) ** 2
        return meet_error(self._smallest, asked, self.norm**2, floor, self.how.dtype)

    def _noise(self, wide: bool) -> float:
        """What rounding alone may make of a distance: of sums of terms more than of one product."""
        return NOISY * resolution(wide) * self.norm

    def _smallest(self, budget: float) -> CP:
        """The smallest rank found that loses at most so much squared energy."""
        sides = (to_numpy(side.sigma) for side in (self.space.left, self.space.right))
        least = max(smallest_rank(t, max(budget, t[-1])) for t in map(tail_energies, sides))
        cut = self.terms.tails
        high, best = min(smallest_rank(cut, max(budget, cut[-1])), self.most), None
        low = rank = min(least, high)  # none below may meet it
        for _ in range(ATTEMPTS):
            if rank >= high:
                break
            tried = self._swept(rank, budget)
            if self._meets(tried, budget):
                high, best = rank, tried
            else:
                low = rank + 1
            rank = (low + high) // 2
        return self._stored(self._swept(high, budget) if best is None else best)

    def _meets(self, tried: Sweeps, budget: float) -> bool:
        """Whether terms lose at most so much, measured where sweeps cannot tell."""
        unseen, found = 10 * RESOLVED * self.norm**2, tried.terms.squared_error
        if max(budget, found) > unseen:
            return found <= budget
        known = self._stored(tried, "float64").certificate
        return known is not None and known.distance**2 <= budget

    def _swept(self, rank: int, wanted: float | None = None) -> Sweeps:
        """Terms of a rank; as they are where all are kept, or none."""
        if rank >= self.most or rank == 0:
            whole = self.own if self.own is not None and rank else None
            whole = self.terms.first(self.problem, rank) if whole is None else whole
            return Sweeps(whole, 0, "converged")
        starts = list(self._starts(rank))
        start = best_of(self.problem, starts, WARM_UP)
        return alternate(self.problem, start, self.how.tolerance, self.how.max_sweeps, wanted)

    def _starts(self, rank: int) -> Iterator[Terms]:
        yield self.terms.first(self.problem, rank)
        if (own := self.own) is not None:  # its largest terms come first
            yield self.problem.started(own.a[:, :rank], own.b[:, :rank])
        others = other_starts(self.problem, rank, self.how.seed)
        for _, start in zip(range(self.how.starts - 1), others, strict=False):
            yield start

    def _stored(self, sweeps: Sweeps, dtype: str | None = None) -> CP:
        """Terms lifted out of core space, rounded to the dtype, and measured."""
        terms, xp, dtype = sweeps.terms, self.problem.xp, dtype or self.how.dtype
        if terms is self.own and isinstance(self.stack, CP):
            arrays = self.stack.a, self.stack.weights, self.stack.b
        else:
            a, b = (
                _lifted(self.space.left, terms.a, xp=xp),
                _lifted(self.space.right, terms.b, xp=xp),
            )
            arrays = canonical_terms(a, terms.w * terms.sizes, b, xp=xp)
        made = CP(*(narrow(x, dtype, xp=xp) for x in arrays))
        norms = self.space.layer_norms
        distances = norms  # of nothing: no processor rounds these another way
        if made.rank:
            distances = layer_distances(*(astype(s, "float64") for s in (self.stack, made)))
        lower, upper = self._bounds(made.rank, terms)
        sizes = float(np.linalg.norm(to_numpy(terms.sizes)))
        method = "cp-als, terms cancel" if sizes > CANCELLING * self.norm else "cp-als"
        return replace(
            made, certificate=Certificate(distances, norms, lower, upper, method, sweeps.count)
        )

    def _bounds(self, rank: int, terms: Terms) -> tuple[Array, Array]:
        """Below, for any CP of the rank; above, for one that never loses more than a cut LoRA."""
        xp, space = self.problem.xp, self.space
        noise, coarse = self._noise(space.wide), self._noise(wide=False)
        sigmas = (
            *((to_numpy(s.sigma), noise) for s in (space.left, space.right)),
            (_layer_sigma(self.problem), coarse),
        )
        below = max(float(np.linalg.norm(sigma[rank:])) - off for sigma, off in sigmas)
        cut = self.terms.tails
        missed = sum(float(x) ** 2 for x in space.missed or ())
        above = (missed + float(cut[min(rank, len(cut) - 1)])) ** 0.5 + noise
        sizes, dtype = float(np.sum(to_numpy(terms.sizes))), self.how.dtype
        layers, m, n = self.stack.shape
        above += (3.5 * UNIT_ROUNDOFF[dtype] + 2.0**-46) * sizes
        above += underflow(dtype, layers * rank) + underflow(dtype, (m + n) * rank) * sizes
        one = xp.ones_like(space.norm)
        return one * max(below, 0.0), one * above


def _space(stack: Core, asked: RankRule, seed: int) -> CoreSpace:
    """The whole core space; of a large one for a rank that is small, what a range finder finds."""
    if isinstance(asked, FixedRank) and isinstance(stack, LoRAStack):
        whole, size = min(sum(stack.ranks), max(stack.shape[1:])), 2 * asked.r1 + SMALLEST_SKETCH
        if whole > EXACT_UP_TO and 4 * size <= whole:
            return randomised_space(stack, size, power_iterations=POWER_ITERATIONS, seed=seed)
    return core_space(stack)


def _within(side: Side, factor: Array, *, xp: Namespace) -> Array:
    """The coordinates (K, R) of columns (m, R) that lie in the span of a side."""
    return side.mixing.mT @ (
        factor if side.basis is None else cross_gram(side.basis, factor, xp=xp)
    )


def _lifted(side: Side, columns: Array, *, xp: Namespace) -> Array:
    """Columns (m, R) of coordinates (K, R) that need not be orthonormal."""
    if columns.shape[1] == 0:
        return side.lift(columns, xp=xp)
    basis, inside = qr(columns, xp=xp)
    return side.lift(basis, xp=xp) @ inside


def _layer_sigma(problem: CoreProblem) -> np.ndarray:
    """The singular values of the unfolding along the layers, largest first."""
    products = (problem.x.mT @ problem.x) * (problem.y.mT @ problem.y)
    gram = problem.members @ products @ problem.members.mT
    values = to_numpy(eigenvalues(gram, xp=problem.xp))[::-1]
    return np.sqrt(np.maximum(values, 0.0))
