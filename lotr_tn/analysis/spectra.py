"""Singular values of a stack: along both sides, and of each layer."""

import math
from dataclasses import dataclass

import numpy as np

from lotr_tn._arguments import door
from lotr_tn.analysis.coordinates import coordinates_of
from lotr_tn.analysis.subspaces import numerical_rank
from lotr_tn.formats import Stack
from lotr_tn.linalg.ranks import tail_energies
from lotr_tn.ops.checks import refuse_gradient
from lotr_tn.ops.magnitude import in_range, times_power


@dataclass(frozen=True)
class Spectra:
    """What the directions of a stack weigh, on the host.

    Attributes:
        left: singular values of the layers side by side (m, L·n): output directions that all
            layers together use, largest first.
        right: singular values of the layers one below the other (L·m, n): input directions.
        layers: for each layer the singular values of its own update.
    """

    left: np.ndarray
    right: np.ndarray
    layers: tuple[np.ndarray, ...]

    @property
    def norm(self) -> float:
        """‖T‖, the root of the sum of squares of either side's values."""
        return math.hypot(*self.left)

    @property
    def stable_ranks(self) -> tuple[float, float]:
        """‖T‖² / σ₁² of the output and of the input side: how many directions weigh as the first.

        0 for a zero stack.
        """
        return _stable_rank(self.left), _stable_rank(self.right)

    @property
    def numerical_ranks(self) -> tuple[int, int]:
        """How many directions of each side are more than 1e-12 of the largest."""
        return numerical_rank(self.left), numerical_rank(self.right)

    def ranks_for(self, relative_error: float) -> tuple[int, int]:
        """The least r1 and r2 that any Tucker-2 within a relative error must have.

        Each side on its own: a Tucker-2 of these ranks may lose more, one of fewer loses more.
        """
        return _least_rank(self.left, relative_error), _least_rank(self.right, relative_error)


@door
def mode_spectra(stack: Stack) -> Spectra:
    """The singular values of a stack along both sides, and of each layer.

    Args:
        stack: any stack (L, m, n).

    Returns:
        `Spectra`, computed in float64 by QR and SVD.

    Raises:
        DerivativeError: torch records the factors.

    Cost: for R = Σ r_l, 2·(m + n)·R² flops and O(R³); memory of one factor in float64. Never
    anything of size m·n.
    Accuracy: 1e-15 of the largest value.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import LoRAStack
        >>> same = LoRAStack(np.ones((3, 2)), np.ones((2, 5)), (1, 1))
        >>> found = mode_spectra(same)
        >>> found.numerical_ranks, [len(s) for s in found.layers]
        ((1, 1), [1, 1])
    """
    refuse_gradient("mode_spectra", stack)
    small, exponent = in_range(stack)
    found = coordinates_of(small)
    left, right, *layers = (
        times_power(x, exponent) for x in (found.left_sigma, found.right_sigma, *found.layer_values)
    )
    return Spectra(left, right, tuple(layers))


def _stable_rank(values: np.ndarray) -> float:
    largest = float(values.max(initial=0.0))
    return float(((values / largest) ** 2).sum()) if largest > 0 else 0.0


def _least_rank(values: np.ndarray, relative_error: float) -> int:
    tails = tail_energies(values)
    return int(np.flatnonzero(tails <= relative_error**2 * tails[0])[0])
