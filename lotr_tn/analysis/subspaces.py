"""How far the layers of a stack use the same directions."""

from dataclasses import dataclass

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn._arguments import door
from lotr_tn.analysis.coordinates import Coordinates, coordinates_of, triangle
from lotr_tn.errors import FormatError
from lotr_tn.formats import Stack
from lotr_tn.linalg.factor import singular_values, svd
from lotr_tn.ops.checks import refuse_gradient
from lotr_tn.ops.magnitude import in_range

NUMERICAL_ZERO = 1e-12  # share of the largest singular value below which one is zero, in float64


@dataclass(frozen=True, eq=False)
class Overlaps:
    """How much of each layer's directions lies among another layer's.

    An overlap is the mean of the squared cosines of the principal angles between two subspaces: 1
    where one holds the other, 0 where they are orthogonal. It depends on the subspaces alone, not
    on singular values, nor on how the update is written as a product.

    Attributes:
        left: (L, L) overlaps of output subspaces, 1 on the diagonal.
        right: (L, L) of input subspaces.
        chance: what two random subspaces of the layers' mean rank would have on either side,
            rank / m and rank / n.
    """

    left: np.ndarray
    right: np.ndarray
    chance: tuple[float, float]

    @property
    def means(self) -> tuple[float, float]:
        """The mean over all pairs of different layers, output and input side; 1 for one layer."""
        return _mean_of_pairs(self.left), _mean_of_pairs(self.right)


@door
def subspace_overlaps(stack: Stack) -> Overlaps:
    """The overlaps of all pairs of layers, on both sides.

    Args:
        stack: any stack (L, m, n) with R = Σ r_l rank terms.

    Raises:
        DerivativeError: torch records the factors.

    Cost: 2·(m + n)·R² flops and O(R³); memory of one factor in float64, and O(R²).
    Source: Björck and Golub (1973) for principal angles.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import LoRAStack
        >>> up = np.eye(4)[:, [0, 1, 0, 2]]  # both layers write to direction 0
        >>> found = subspace_overlaps(LoRAStack(up, np.eye(4), (2, 2)))
        >>> found.left[0, 1].round(12), found.right[0, 1].round(12)
        (np.float64(0.5), np.float64(0.0))
    """
    refuse_gradient("subspace_overlaps", stack)
    return overlaps_of(coordinates_of(in_range(stack)[0]))


@door
def principal_angles(stack: Stack, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """The angles between two layers' output subspaces, and between their input subspaces.

    Args:
        stack: any stack (L, m, n).
        first: a layer's index.
        second: another's.

    Returns:
        Two arrays of angles in radians, smallest first, as many as the smaller rank.

    Raises:
        FormatError: there is no such layer.
        DerivativeError: torch records the factors.

    Cost: as `subspace_overlaps`.
    Accuracy: 1e-15 for angles from their sines where they are small, else from their cosines.
    Source: Björck and Golub (1973); Knyazev and Argentati (2002) for small angles.
    """
    refuse_gradient("principal_angles", stack)
    layers = stack.shape[0]
    for index in (first, second):
        if not 0 <= index < layers:
            raise FormatError(f"a layer must lie in 0 … {layers - 1}; found {index}")
    found = coordinates_of(in_range(stack)[0])
    left, right = (_layer_bases(found, side) for side in ("left", "right"))
    return _angles(left[first], left[second]), _angles(right[first], right[second])


def overlaps_of(coordinates: Coordinates) -> Overlaps:
    """The overlaps of a stack that is in coordinates already."""
    left, right = (_overlaps(_layer_bases(coordinates, side)) for side in ("left", "right"))
    _, m, n = coordinates.shape
    ranks = [numerical_rank(values) for values in coordinates.layer_values]
    mean = float(np.mean([rank for rank in ranks if rank] or [0]))
    return Overlaps(left, right, (mean / m, mean / n))


def common_energy(coordinates: Coordinates) -> np.ndarray:
    """(L, L) how much of one layer's squared norm lies among another's directions, at most.

    The larger share of both sides and ways to ask. Unlike an overlap it counts a direction by what
    it weighs: layers that share their strongest direction alone have much in common.
    """
    shares = []
    for side in ("left", "right"):
        bases = _layer_bases(coordinates, side)
        near, far = _sides(coordinates, side)
        ends = np.cumsum([0, *(basis.shape[1] for basis in bases)])
        inside = np.concatenate(bases, axis=1).T @ near
        for part, size in zip(coordinates.slices, coordinates.layer_energies, strict=True):
            weighed = (inside[:, part] @ triangle(far[:, part]).T) ** 2
            energies = np.append(np.cumsum(weighed.sum(axis=1)), 0.0)
            found = energies[ends[1:] - 1] - energies[ends[:-1] - 1]
            shares.append(found / size if size else np.zeros(len(bases)))
    both = np.array(shares).reshape(2, len(coordinates.slices), -1).max(axis=0)
    return np.maximum(both, both.T)


def _sides(coordinates: Coordinates, side: str) -> tuple[np.ndarray, np.ndarray]:
    left, right = coordinates.left, coordinates.right
    return (left, right) if side == "left" else (right, left)


def _layer_bases(coordinates: Coordinates, side: str) -> list[np.ndarray]:
    """For each layer an orthonormal basis (K, rank) of the directions it uses on one side."""
    near, far = _sides(coordinates, side)
    bases = []
    for part in coordinates.slices:
        weighed = near[:, part] @ triangle(far[:, part]).T
        u, s, _ = svd(weighed, xp=xp)
        bases.append(u[:, : numerical_rank(s)])
    return bases


def numerical_rank(values: np.ndarray) -> int:
    """How many singular values count as more than zero."""
    return int((values > NUMERICAL_ZERO * values.max(initial=0.0)).sum())


def _overlaps(bases: list[np.ndarray]) -> np.ndarray:
    sizes = [basis.shape[1] for basis in bases]
    ends = np.cumsum([0, *sizes])
    beside = np.concatenate(bases, axis=1)
    squares = (beside.T @ beside) ** 2
    found = np.eye(len(bases))
    for i in range(len(bases)):
        for j in range(i):
            least = min(sizes[i], sizes[j])
            block = squares[ends[i] : ends[i + 1], ends[j] : ends[j + 1]]
            found[i, j] = found[j, i] = float(block.sum()) / least if least else 0.0
    return np.minimum(found, 1.0)


def _angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.shape[1] < b.shape[1]:
        a, b = b, a
    inside = a.T @ b
    cosines = np.clip(singular_values(inside, xp=xp), 0.0, 1.0)
    sines = np.clip(singular_values(b - a @ inside, xp=xp)[::-1], 0.0, 1.0)
    return np.where(cosines > np.sqrt(0.5), np.arcsin(sines), np.arccos(cosines))


def _mean_of_pairs(overlaps: np.ndarray) -> float:
    count = len(overlaps)
    if count == 1:
        return 1.0
    return float((overlaps.sum() - np.trace(overlaps)) / (count * (count - 1)))
