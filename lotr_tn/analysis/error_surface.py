"""The error of every pair of ranks at once, before anything is converted."""

from dataclasses import dataclass

import numpy as np

from lotr_tn._arguments import door
from lotr_tn.analysis.coordinates import Coordinates, coordinates_of
from lotr_tn.analysis.pareto import pareto_front
from lotr_tn.errors import RankError
from lotr_tn.formats import Stack
from lotr_tn.linalg.ranks import best_pair, cheapest_pair, pair_parameters
from lotr_tn.ops.checks import refuse_gradient
from lotr_tn.ops.magnitude import in_range


@dataclass(frozen=True)
class RankPair:
    """One point of an error surface.

    Attributes:
        r1: output directions.
        r2: input directions.
        parameters: m·r1 + n·r2 + L·r1·r2.
        relative_error: of the truncated HOSVD of these ranks.
        lower_bound: no Tucker-2 of these ranks has a smaller relative error, so that HOOI can gain
            no more than the difference.
    """

    r1: int
    r2: int
    parameters: int
    relative_error: float
    lower_bound: float


@dataclass(frozen=True)
class ErrorSurface:
    """Errors of all truncations of the HOSVD of a stack, on the host.

    Attributes:
        shape: (L, m, n).
        errors: (K1 + 1, K2 + 1) relative Frobenius errors of ranks 0 … K1 and 0 … K2.
        lower: (K1 + 1, K2 + 1) relative errors that no Tucker-2 of these ranks goes below.
        parameters: (K1 + 1, K2 + 1) numbers that each pair stores.
    """

    shape: tuple[int, int, int]
    errors: np.ndarray
    lower: np.ndarray
    parameters: np.ndarray

    def at(self, r1: int, r2: int) -> RankPair:
        """The point of a pair of ranks.

        Raises:
            RankError: a rank is outside the surface.
        """
        most = self.errors.shape[0] - 1, self.errors.shape[1] - 1
        if not (0 <= r1 <= most[0] and 0 <= r2 <= most[1]):
            raise RankError(f"ranks must lie in 0 … {most[0]} and 0 … {most[1]}; found {(r1, r2)}")
        numbers = self.errors[r1, r2], self.lower[r1, r2]
        return RankPair(r1, r2, int(self.parameters[r1, r2]), *map(float, numbers))

    def cheapest(self, relative_error: float) -> RankPair:
        """The pair of fewest parameters whose error is at most the one given.

        Raises:
            RankError: not even full ranks reach it.
        """
        return self.at(*cheapest_pair(self.errors, relative_error, self.shape))

    def best(self, params: int) -> RankPair:
        """The pair of least error that stores at most so many numbers."""
        return self.at(*best_pair(self.errors, params, self.shape))

    def front(self) -> list[RankPair]:
        """The pairs that no other pair beats in parameters and in error, cheapest first."""
        kept = pareto_front(self.parameters.ravel(), self.errors.ravel())
        pairs = zip(*np.unravel_index(kept, self.errors.shape), strict=True)
        return [self.at(int(r1), int(r2)) for r1, r2 in pairs]


@door
def error_surface(stack: Stack) -> ErrorSurface:
    """The exact error of every truncation of a stack's HOSVD, with lower bounds for any Tucker-2.

    Args:
        stack: any stack (L, m, n).

    Returns:
        An `ErrorSurface`. Errors are sums of squares of what is cut off, never one minus what is
        kept, so small ones keep their digits.

    Raises:
        DerivativeError: torch records the factors.

    Cost: for R = Σ r_l, 2·(m + n)·R² flops and O(R³), as one HOSVD; memory of one factor in
    float64 and 4·K1·K2 numbers, with K1 = min(m, R) and K2 = min(n, R).
    Accuracy: 1e-15·√R absolute, for float64 input and narrower ones.
    Source: the core of De Lathauwer, De Moor and Vandewalle (2000), summed over both axes.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import LoRAStack
        >>> rng = np.random.default_rng(0)
        >>> up, down = rng.standard_normal((30, 6)), rng.standard_normal((6, 20))
        >>> surface = error_surface(LoRAStack(up, down, (2, 3, 1)))
        >>> found = surface.cheapest(0.5)
        >>> found.r1, found.r2, found.parameters, round(found.relative_error, 3)
        (4, 4, 248, 0.478)
    """
    refuse_gradient("error_surface", stack)
    return surface_of(coordinates_of(in_range(stack)[0]))


def surface_of(coordinates: Coordinates) -> ErrorSurface:
    """The error surface of a stack that is in coordinates already."""
    lost, shape = coordinates.lost, coordinates.shape
    size = float(lost[0, 0]) ** 0.5 or 1.0
    errors, lower = np.sqrt(lost) / size, np.sqrt(coordinates.lower) / size
    return ErrorSurface(shape, errors, lower, pair_parameters(shape, errors.shape))
