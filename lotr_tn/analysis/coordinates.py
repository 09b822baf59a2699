"""A stack in the coordinates of its own HOSVD, on the host: what every analysis starts from."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn._arrays import Array, Namespace, float64, to_numpy
from lotr_tn.decompose.reduction import reduced
from lotr_tn.decompose.truncation import GlobalOrder, limited_order
from lotr_tn.errors import FormatError
from lotr_tn.formats import Stack
from lotr_tn.linalg.factor import eigh, singular_values, svd, triangle_of
from lotr_tn.linalg.product import product_or_zero
from lotr_tn.linalg.ranks import RankLimits, tail_energies
from lotr_tn.linalg.surface import lost_energy_surface
from lotr_tn.ops.arrays import common_namespace
from lotr_tn.ops.batches import in_batches, side_by_side
from lotr_tn.ops.magnitude import in_range, require_finite

WELL_CONDITIONED = 1e-5
"""Smallest over largest singular value down to which eigenvectors of the Gram matrix are used: what
they mix up is then below 1e-11 of the energies that are cut off. Beyond, an SVD is taken."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """ΔW_l = P a_l b_lᵀ Qᵀ with orthonormal P (m, K1) and Q (n, K2), which are not kept.

    Row i of all a_l together is the part of the stack along its i-th strongest output direction,
    so that cutting rows off is truncating the HOSVD; in the same way b and input directions.
    """

    shape: tuple[int, int, int]  # (L, m, n)
    slices: tuple[slice, ...]  # each layer's rank terms on the axis R
    left: np.ndarray  # (K1, R) float64, the a_l side by side
    right: np.ndarray  # (K2, R) float64, the b_l side by side
    left_sigma: np.ndarray  # (K1,) singular values of the layers side by side, falling
    right_sigma: np.ndarray  # (K2,) the same of the layers one below the other

    @cached_property
    def layer_values(self) -> tuple[np.ndarray, ...]:
        """The singular values of each layer's update, largest first; 0 where its terms cancel."""
        left, right = _triangles_of(self.left, self.slices), _triangles_of(self.right, self.slices)
        if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
            return tuple(singular_values(product_or_zero(left, right, xp=xp), xp=xp))
        products = (product_or_zero(a, b, xp=xp) for a, b in zip(left, right, strict=True))
        return tuple(singular_values(product, xp=xp) for product in products)

    def order(self, limits: RankLimits) -> GlobalOrder:
        """The singular values of all layers in the order of their worth, within limits."""
        if limits not in self._orders:
            self._orders[limits] = limited_order(self.layer_values, limits)
        return self._orders[limits]

    @cached_property
    def _orders(self) -> dict[RankLimits, GlobalOrder]:
        return {}

    @cached_property
    def layer_energies(self) -> np.ndarray:
        """(L,) ‖ΔW_l‖²."""
        return np.array([float((values**2).sum()) for values in self.layer_values])

    @property
    def energy(self) -> float:
        """‖T‖²."""
        return float(self.layer_energies.sum())

    @cached_property
    def lost(self) -> np.ndarray:
        """(K1 + 1, K2 + 1) squared error of every truncation of the HOSVD.

        Sums of squares of what is cut off, so small ones keep their digits.
        """
        energies = np.zeros((self.left.shape[0], self.right.shape[0]))
        for part in self.slices:
            core = self.left[:, part] @ self.right[:, part].T
            np.square(core, out=core)
            energies += core
        lost = np.asarray(lost_energy_surface(energies, xp=xp))
        for axis in (0, 1):  # rounding of equal sums must not let an error grow with a rank
            np.minimum.accumulate(lost, axis=axis, out=lost)
        return lost

    @cached_property
    def lower(self) -> np.ndarray:
        """(K1 + 1, K2 + 1) squared error that no Tucker-2 of these ranks goes below."""
        left, right = tail_energies(self.left_sigma), tail_energies(self.right_sigma)
        return np.minimum(np.maximum(left[:, None], right[None, :]), self.lost)

    def layer_lost(self, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
        """(len(pairs), L) squared error of each layer at some pairs, to 1e-15 of ‖a_l‖²‖b_l‖²."""
        whole = self.grams(self.right.shape[0], side="right")
        rows = []
        for r1, r2 in pairs:
            kept, below = self.grams(r1, side="left"), self.grams(r1, side="left", beyond=True)
            beside = self.grams(r2, side="right", beyond=True)
            rows.append((below * whole).sum(axis=(1, 2)) + (kept * beside).sum(axis=(1, 2)))
        return np.maximum(rows, 0.0).reshape(len(rows), self.shape[0])

    def grams(self, rank: int, *, side: str, beyond: bool = False) -> np.ndarray:
        """(L, r, r) a_lᵀ a_l (or b_lᵀ b_l) of the first `rank` rows, or of those beyond them."""
        factors = self._padded[side]
        part = factors[:, rank:, :] if beyond else factors[:, :rank, :]
        return part.transpose(0, 2, 1) @ part

    @cached_property
    def _padded(self) -> dict[str, np.ndarray]:
        sides = {"left": self.left, "right": self.right}
        return {side: _padded(factors, self.slices) for side, factors in sides.items()}

    def take(self, layers: Iterable[int]) -> "Coordinates":
        """The stack of some of the layers, in coordinates of its own; O(R³) for R rank terms."""
        chosen = [self.slices[index] for index in layers]
        columns = np.concatenate([np.arange(s.start, s.stop) for s in chosen])
        sides = (np.ascontiguousarray(x[:, columns]) for x in (self.left, self.right))
        ends = np.cumsum([0, *(s.stop - s.start for s in chosen)])
        slices = tuple(slice(int(a), int(b)) for a, b in itertools.pairwise(ends))
        return _turned((len(chosen), *self.shape[1:]), slices, *map(triangle, sides))

    def weighed(self, factors: Sequence[float] | np.ndarray) -> "Coordinates":
        """The stack with layer l times factors[l], in the coordinates of its own HOSVD."""
        sizes = [s.stop - s.start for s in self.slices]
        left = self.left * np.repeat(np.asarray(factors, dtype=np.float64), sizes)
        return _turned(self.shape, self.slices, left, self.right)


def coordinates_of(stack: Stack) -> Coordinates:
    """A stack (L, m, n), with R = Σ r_l rank terms, in the coordinates of its own HOSVD.

    Cost: 2·(m + n)·R² flops for two triangular factors, on the stack's device; O(R³) on the host.
    Accuracy: 1e-15 of ‖T‖.

    Raises:
        FormatError: an entry is not finite, or the updates are beyond about 1e±60.
    """
    require_finite(stack)
    stack, exponent = in_range(stack)
    if exponent:
        raise FormatError(
            f"updates of about 1e{exponent * 0.30103:.0f} have squares beyond float64, so their "
            "errors cannot be compared with others; scale them first"
        )
    small = reduced(stack).small  # what all layers share is reduced to its ranks first
    library = common_namespace(small)
    sides = small.up, library.matrix_transpose(small.down)
    left, right = (to_numpy(triangle(float64(x, xp=library), xp=library)) for x in sides)
    return _turned(stack.shape, small.slices, left, right)


def triangle(x: Array, *, xp: Namespace = xp) -> Array:
    """A small T with Tᵀ T = xᵀ x: R of the QR factorisation, or x itself where it is not tall."""
    return x if x.shape[0] <= x.shape[1] else triangle_of(x, xp=xp)


def _turned(
    shape: tuple[int, int, int], slices: tuple[slice, ...], x: np.ndarray, y: np.ndarray
) -> Coordinates:
    """Coordinates of x_l y_lᵀ, for x (k1, R) and y (k2, R), in the HOSVD's own directions."""
    left, left_sigma = _directions(x, y, slices)
    right, right_sigma = _directions(y, x, slices)
    return Coordinates(shape, slices, left, right, left_sigma, right_sigma)


def _directions(
    x: np.ndarray, y: np.ndarray, slices: tuple[slice, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of x in the left singular vectors of [x_1 y_1ᵀ, …], and singular values."""
    triangles = _triangles_of(y, slices)
    pairs = zip(slices, triangles, strict=True)
    weighed = np.concatenate([x[:, s] @ small.T for s, small in pairs], axis=1)
    values, vectors = eigh(weighed @ weighed.T, xp=xp)
    values, vectors = values[::-1], np.ascontiguousarray(vectors[:, ::-1])
    if values.size and values[-1] > WELL_CONDITIONED**2 * values[0]:
        # not the roots, of which small ones would have lost digits
        sigma = np.linalg.norm(vectors.T @ weighed, axis=1)
        return vectors.T @ x, np.sort(sigma)[::-1]
    vectors, sigma, _ = svd(weighed, xp=xp)
    return vectors.T @ x, sigma


def _triangles_of(x: np.ndarray, slices: tuple[slice, ...]) -> np.ndarray | list[np.ndarray]:
    """The triangle of each layer's columns; an array (L, r', r) where all ranks are equal."""
    ranks = [s.stop - s.start for s in slices]

    def small(places: Sequence[int]) -> np.ndarray:
        layers = side_by_side(x, slices, places, xp)
        return triangle_of(layers, xp=xp) if layers.shape[1] > layers.shape[2] else layers

    if len({*ranks}) == 1 and ranks[0]:
        return small(range(len(slices)))
    return in_batches(ranks, x.shape[0] * max(ranks), lambda places: list(small(places)))


def _padded(x: np.ndarray, slices: tuple[slice, ...]) -> np.ndarray:
    """(L, K, r): the layers' columns, filled with zeros to the largest rank."""
    widest = max(s.stop - s.start for s in slices)
    padded = np.zeros((len(slices), x.shape[0], widest))
    for index, s in enumerate(slices):
        padded[index, :, : s.stop - s.start] = x[:, s]
    return padded
