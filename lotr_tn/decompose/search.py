"""The search for ranks that meet a rule, with what is stored measured against it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF, Namespace, namespace_of, require_dtype, to_numpy
from lotr_tn.decompose.core_space import CoreSpace
from lotr_tn.decompose.sweeps import Subspaces
from lotr_tn.errors import PrecisionWarning, warn_outside
from lotr_tn.formats import CP, LoRAStack, LowRankTucker2, Stack, TensorTrain, Tucker1, Tucker2
from lotr_tn.formats.certificate import ratio
from lotr_tn.linalg.bases import GRAM_RESOLUTION
from lotr_tn.linalg.ranks import Budget, FixedRank, RankRule, best_pair, cheapest_pair
from lotr_tn.linalg.surface import lost_energy_surface
from lotr_tn.ops.arrays import storage_dtype

Pair: TypeAlias = tuple[int, int]
Fit: TypeAlias = Callable[[CoreSpace, Pair], Subspaces]
Result = TypeVar(
    "Result", bound="CP | LoRAStack | LowRankTucker2 | TensorTrain | Tucker1 | Tucker2"
)

LOWERING_ATTEMPTS = 4

ONLY_ROUNDING = 16
"""Unit roundoffs that a result without loss, stored narrower than float64, may differ by; more is
lost where numbers are too small for the dtype."""


@dataclass(frozen=True)
class PairSearch:
    """The choice of (r1, r2) in a core space."""

    space: CoreSpace
    shape: tuple[int, int, int]
    fit: Fit
    lower_ranks: bool  # whether the fit gains on the HOSVD, so that ranks can be lowered further

    def asked(self, rule: FixedRank | Budget) -> Subspaces:
        """Fitted subspaces of the ranks that a rule names, or of the best within a budget."""
        if isinstance(rule, Budget):
            return self.fit(self.space, best_pair(self.lost(), rule.count, self.shape))
        most = self.space.left.sigma.shape[0], self.space.right.sigma.shape[0]
        return self.fit(self.space, (min(rule.pair[0], most[0]), min(rule.pair[1], most[1])))

    def lost(self) -> np.ndarray:
        """(K1 + 1, K2 + 1) squared error of every pair of ranks, on the host."""
        return lost_energies(self.space) + self.missed_energy

    @property
    def missed_energy(self) -> float:
        """Squared norm that lies outside a sketched space, at most; 0 for a full one."""
        if self.space.missed is None:
            return 0.0
        return sum(float(missed) ** 2 for missed in self.space.missed)

    def within(self, lost: np.ndarray, budget: float) -> Subspaces:
        """Fitted subspaces of the cheapest pair of ranks that loses at most `budget`."""
        least = float(lost.min())
        pair = cheapest_pair(lost, max(budget, least), self.shape)
        best = self.fit(self.space, pair)
        share = 1.0
        for _ in range(LOWERING_ATTEMPTS if self.lower_ranks else 0):
            gain = max(0.0, float(lost[pair]) - self._squared(best))
            cheaper = cheapest_pair(lost, max(budget, least) + share * gain, self.shape)
            if self._count(cheaper) >= self._count(pair):
                break
            attempt = self.fit(self.space, cheaper)
            if self._squared(attempt) <= budget:
                pair, best = cheaper, attempt
            else:
                share /= 2
        return best

    def _count(self, pair: Pair) -> int:
        layers, m, n = self.shape
        return m * pair[0] + n * pair[1] + layers * pair[0] * pair[1]

    def _squared(self, subspaces: Subspaces) -> float:
        inside = 0.0 if subspaces.error is None else float(subspaces.error) ** 2
        return inside + self.missed_energy


def lost_energies(space: CoreSpace) -> np.ndarray:
    """(K1 + 1, K2 + 1) squared error of every truncation of the HOSVD basis, on the host."""
    left, right = space.left.coordinates, space.right.coordinates
    xp: Namespace = namespace_of(x=left)
    energies = xp.zeros_like(left[:, :1] @ xp.matrix_transpose(right[:, :1]))
    for part in space.slices:
        energies = energies + (left[:, part] @ xp.matrix_transpose(right[:, part])) ** 2
    return to_numpy(lost_energy_surface(energies, xp=xp))


def asked_dtype(stack: Stack, dtype: str | None) -> str:
    """The storage dtype of a result: the one asked for, or the stack's own."""
    if dtype is None:
        return storage_dtype(stack)
    require_dtype(dtype)
    return dtype


def resolution(wide: bool) -> float:
    """Relative size below which a core space holds only rounding of the input."""
    return 8 * (UNIT_ROUNDOFF["float64"] if wide else GRAM_RESOLUTION / 2)


def meet_error(
    attempt: Callable[[float], Result], rule: RankRule, total: float, floor: float, dtype: str
) -> Result:
    """The cheapest result whose error, as stored, is within the rule's.

    Rounding to the storage dtype takes part of the error, so the budget is cut by the measured
    excess, and the search repeated. `attempt` makes the cheapest result that loses at most so much
    squared energy; below `floor`, a part of the squared norm `total`, lies rounding of the input.
    """
    assert not isinstance(rule, FixedRank | Budget)
    allowed = rule.epsilon**2 * total
    budget = max(allowed - UNIT_ROUNDOFF[dtype] ** 2 * total, 0.0)
    while True:
        result = attempt(max(budget, floor))
        assert result.certificate is not None
        lost = result.certificate.weighted_distance**2
        excess = lost - allowed
        if excess <= 0:
            return result
        if rule.epsilon == 0:
            rounding = ONLY_ROUNDING * UNIT_ROUNDOFF[dtype]
            if dtype == "float64" or lost <= rounding**2 * total:
                return result
            break  # numbers too small for the dtype
        if budget <= floor:
            break
        budget = min(budget - 1.01 * excess, budget / 2)
    warn_outside(
        f"storing in {dtype} leaves a relative error of {ratio(lost, total) ** 0.5:.2g}, above the "
        f"{rule.epsilon:.2g} asked for; a wider dtype would meet it",
        PrecisionWarning,
    )
    return result
