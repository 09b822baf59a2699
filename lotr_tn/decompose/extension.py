"""New layers in bases that are there already, with as few new directions as an error asks for."""

from dataclasses import dataclass
from functools import cached_property

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn._arrays import narrow
from lotr_tn.formats import LoRAStack, LowRankTucker2, Tucker2
from lotr_tn.linalg import triangular_factor
from lotr_tn.linalg.factor import cholesky, inverse, qr, singular_values, svd
from lotr_tn.linalg.surface import lost_energy_surface
from lotr_tn.ops.norms import root_sum_squares

NEARLY = 0.1
"""Distance of a Gram matrix from the identity up to which a basis counts as nearly orthonormal."""

ROUNDING = 1e-13
"""Share of the largest singular value below which a direction outside the bases is rounding."""


@dataclass(frozen=True, eq=False)
class _Side:
    """One side: a basis as it is stored, and the directions that layers have beyond it."""

    basis: np.ndarray  # (m, p)
    solve: np.ndarray  # (p, p): basis @ solve has orthonormal columns
    beyond: np.ndarray  # (m, K) orthonormal, the strongest first
    coordinates: np.ndarray  # (p + K, R) of the layers in both

    @property
    def own(self) -> int:
        """Columns of the basis."""
        return self.basis.shape[1]

    def solved(self, new: int) -> np.ndarray:
        """What takes orthonormal coordinates to those in the stored basis and new directions."""
        whole = np.eye(self.own + new)
        whole[: self.own, : self.own] = self.solve
        return whole


@dataclass(frozen=True, eq=False)
class Extension:
    """Layers in the bases U and V of others, and in the directions that these lack."""

    shape: tuple[int, int, int]
    slices: tuple[slice, ...]  # where each layer's rank terms lie
    left: _Side  # outputs
    right: _Side  # inputs

    @property
    def most(self) -> tuple[int, int]:
        """New directions there are, on either side."""
        return self.left.beyond.shape[1], self.right.beyond.shape[1]

    @cached_property
    def lost(self) -> np.ndarray:
        """(K1 + 1, K2 + 1) squared error with so many new directions of either side."""
        p, q = self.left.own, self.right.own
        energies = np.zeros((1 + self.most[0], 1 + self.most[1]))
        for part in self.slices:
            squares = (self.left.coordinates[:, part] @ self.right.coordinates[:, part].T) ** 2
            energies[1:, 1:] += squares[p:, q:]
            energies[0, 1:] += squares[:p, q:].sum(axis=0)
            energies[1:, 0] += squares[p:, :q].sum(axis=1)
            energies[0, 0] += squares[:p, :q].sum()
        return np.asarray(lost_energy_surface(energies, xp=xp))[1:, 1:]

    @property
    def energy(self) -> float:
        """‖T‖² of the layers."""
        return sum(float((core**2).sum()) for core in self.cores(*self.most))

    def cores(self, k1: int, k2: int) -> list[np.ndarray]:
        """(p + k1, q + k2) core of each layer, in orthonormal coordinates."""
        p, q = self.left.own + k1, self.right.own + k2
        left, right = self.left.coordinates[:p], self.right.coordinates[:q]
        return [left[:, part] @ right[:, part].T for part in self.slices]

    def values(self, k1: int, k2: int) -> list[np.ndarray]:
        """The singular values of these cores, as many as a layer has rank terms."""
        sizes = [part.stop - part.start for part in self.slices]
        found = [singular_values(core, xp=xp) for core in self.cores(k1, k2)]
        return [values[:size] for values, size in zip(found, sizes, strict=True)]

    def directions(self, k1: int, k2: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """(m, k1) and (n, k2): the new directions as they are stored."""
        pairs = ((self.left, k1), (self.right, k2))
        left, right = (narrow(side.beyond[:, :k], dtype, xp=xp) for side, k in pairs)
        return left, right

    def tucker(self, k1: int, k2: int, dtype: str) -> Tucker2:
        """The layers with k1 and k2 new directions."""
        u, v = self._bases(k1, k2, dtype)
        left, right = self.left.solved(k1), self.right.solved(k2)
        cores = [left @ core @ right.T for core in self.cores(k1, k2)]
        return Tucker2(u, narrow(np.stack(cores), dtype, xp=xp), v)

    def low_rank(self, k1: int, k2: int, ranks: tuple[int, ...], dtype: str) -> LowRankTucker2:
        """The same with cores of these ranks."""
        u, v = self._bases(k1, k2, dtype)
        left, right = self.left.solved(k1), self.right.solved(k2)
        ups, downs = [], []
        for core, rank in zip(self.cores(k1, k2), ranks, strict=True):
            a, s, b = svd(core, xp=xp)
            root = np.sqrt(s[:rank])
            ups.append(left @ (a[:, :rank] * root))
            downs.append((root[:, None] * b[:rank]) @ right.T)
        up, down = np.concatenate(ups, axis=1), np.concatenate(downs)
        return LowRankTucker2(u, narrow(up, dtype, xp=xp), narrow(down, dtype, xp=xp), v, ranks)

    def _bases(self, k1: int, k2: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        left, right = self.directions(k1, k2, dtype)
        u = np.concatenate([self.left.basis, left], axis=1) if k1 else self.left.basis
        v = np.concatenate([self.right.basis, right], axis=1) if k2 else self.right.basis
        return u, v


def extension_of(u: np.ndarray, v: np.ndarray, layers: LoRAStack) -> Extension:
    """Layers in bases U (m, p) and V (n, q), whose columns are independent, and beyond them."""
    left = _split(u, np.asarray(layers.up, dtype=np.float64))
    right = _split(v, np.asarray(layers.down, dtype=np.float64).T)
    ordered = (_ordered(a, b.coordinates, layers.slices) for a, b in ((left, right), (right, left)))
    return Extension(layers.shape, layers.slices, *ordered)


def _split(basis: np.ndarray, x: np.ndarray) -> _Side:
    q, r = _orthonormal(basis.astype(np.float64))
    inside = q.T @ x
    outside = x - q @ inside
    again = q.T @ outside
    inside, outside = inside + again, outside - q @ again
    beyond, rest = qr(outside, xp=xp)
    solve = inverse(r, xp=xp) if r.size else r
    return _Side(basis, solve, beyond, np.concatenate([inside, rest]))


def _orthonormal(basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q and R of a basis; by Cholesky where its columns are orthonormal but for rounding."""
    # That is exact to the rounding of float64 there, and all matrix products: Yamamoto et al.
    # (2015), Roundoff error analysis of the CholeskyQR2 algorithm.
    gram = basis.T @ basis
    if np.abs(gram - np.eye(len(gram))).sum(axis=0).max(initial=0.0) > NEARLY:
        q, r = qr(basis, xp=xp)
        return q, r
    lower = cholesky(gram, xp=xp)
    assert lower is not None
    return basis @ inverse(lower.T, xp=xp), lower.T


def _ordered(side: _Side, other: np.ndarray, slices: tuple[slice, ...]) -> _Side:
    """The directions beyond the basis by what of the layers lies along them, rounding left out."""
    rest = side.coordinates[side.own :]
    weighed = [rest[:, s] @ triangular_factor(other[:, s], xp=xp).T for s in slices]
    whole = [side.coordinates[:, s] @ triangular_factor(other[:, s], xp=xp).T for s in slices]
    largest = float(root_sum_squares(np.concatenate(whole, axis=1)))
    w, sigma, _ = svd(np.concatenate(weighed, axis=1), xp=xp)
    kept = int((sigma > ROUNDING * largest).sum())
    w = w[:, :kept]
    coordinates = np.concatenate([side.coordinates[: side.own], w.T @ rest])
    return _Side(side.basis, side.solve, side.beyond @ w, coordinates)
