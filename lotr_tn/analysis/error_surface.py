"""The error of every pair of ranks at once, before anything is converted."""

from dataclasses import dataclass

import numpy as np

from lotr_tn._arrays import to_numpy
from lotr_tn.decompose.core_space import CoreSpace, core_space
from lotr_tn.decompose.search import lost_energies
from lotr_tn.errors import RankError
from lotr_tn.formats import Stack
from lotr_tn.linalg.ranks import best_pair, cheapest_pair, pair_parameters, tail_energies
from lotr_tn.ops.layers import refuse_gradient
from lotr_tn.ops.moving import astype

__all__ = ["ErrorSurface", "RankPair", "error_surface"]


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
        order = np.lexsort((self.errors.ravel(), self.parameters.ravel()))
        errors = self.errors.ravel()[order]
        before = np.append(np.inf, np.minimum.accumulate(errors)[:-1])
        kept = order[errors < before]
        pairs = zip(*np.unravel_index(kept, self.errors.shape), strict=True)
        return [self.at(int(r1), int(r2)) for r1, r2 in pairs]


def error_surface(stack: Stack) -> ErrorSurface:
    """The exact error of every truncation of a stack's HOSVD, with lower bounds for any Tucker-2.

    Args:
        stack: any stack (L, m, n).

    Returns:
        An `ErrorSurface`. Errors are sums of squares of what is cut off, never one minus what is
        kept, so small ones keep their digits.

    Raises:
        DerivativeError: torch records the factors.

    Cost: for R = Σ r_l, 4·(m + n)·R² flops and O(R³), as one HOSVD; memory of the factors in
    float64 and 3·K1·K2 numbers, with K1 = min(m, R) and K2 = min(n, R).
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
    space = core_space(astype(stack, "float64"))
    lost = lost_energies(space)
    size = float(lost[0, 0]) ** 0.5 or 1.0
    errors = np.sqrt(lost) / size
    for axis in (0, 1):  # rounding of equal sums must not let an error grow with a rank
        errors = np.minimum.accumulate(errors, axis=axis)
    lower = np.minimum(_lower(space) / size, errors)
    return ErrorSurface(stack.shape, errors, lower, pair_parameters(stack.shape, errors.shape))


def _lower(space: CoreSpace) -> np.ndarray:
    """The larger of both mode tails, for every pair of ranks."""
    left, right = (
        np.sqrt(tail_energies(to_numpy(side.sigma))) for side in (space.left, space.right)
    )
    return np.maximum(left[:, None], right[None, :])
