"""The singular directions of layers in whole steps: one step for all, and a stream of the result.

With ΔW = Σ σ_i u_i v_iᵀ, an error in σ_i u_i or in σ_i v_i adds as much to that of ΔW, entry by
entry and direction by direction, since u_i and v_i are orthonormal. So one step for the entries of
both, whatever their direction, spends bits where they buy most: reverse water-filling, by which
what lies below the step takes no bits (Cover and Thomas (2006), chapter 10.3). What a direction
multiplies is solved for again after rounding, by least squares in all directions of its layer.
"""

from dataclasses import dataclass
from itertools import chain

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn.coding.columns import DAMAGED, MOST, decoded, encoded, model_of
from lotr_tn.coding.quantise import SLOPE, bits, rounded
from lotr_tn.errors import FormatError
from lotr_tn.linalg.factor import pinv


@dataclass(frozen=True, eq=False)
class Directions:
    """Singular directions of layers of one shape, largest first; zeros where a layer has fewer.

    Attributes:
        u: (L, m, k), orthonormal columns.
        values: (L, k), the singular values.
        v: (L, n, k), orthonormal columns.
    """

    u: np.ndarray
    values: np.ndarray
    v: np.ndarray

    def at(self, step: float) -> "Rounded":
        """All directions at one step; those that are not worth their bits are dropped.

        Cost: O((m + n) k²) flops a layer, and memory of three times the directions.
        """
        left = rounded(self.u * self.values[:, None, :], step)
        right = rounded(self.v * self.values[:, None, :], step)
        size = bits(left) + bits(right) + SIDE
        norms = (left**2).sum(1), (right**2).sum(1)
        along = (left * self.u).sum(1), (right * self.v).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            gain = (self.values * along[0] * along[1]) ** 2 / (norms[0] * norms[1])
        kept = (norms[0] * norms[1] > 0) & (gain > SLOPE * step**2 * size)
        kept_columns = kept[:, None, :]
        left, right = np.where(kept_columns, left, 0), np.where(kept_columns, right, 0)
        weights, saved = self._weights(left, right, kept)
        lost = np.maximum((self.values**2).sum(1) - saved, 0)
        return Rounded(left, right, weights, kept, lost, float(size[kept].sum()))

    def _weights(
        self, left: np.ndarray, right: np.ndarray, kept: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(L, k) what each pair of columns is multiplied by, and (L,) the energy that it saves."""
        turned = left.mT @ (self.u * self.values[:, None, :])
        target = (turned * (right.mT @ self.v)).sum(2)
        gram = (left.mT @ left) * (right.mT @ right)
        scale = np.sqrt(np.where(kept, np.diagonal(gram, axis1=1, axis2=2), 1))
        gram = (
            gram / (scale[:, :, None] * scale[:, None, :]) + np.eye(kept.shape[1]) * ~kept[:, None]
        )
        target = target / scale
        found = (pinv(gram, xp=xp) @ target[:, :, None])[:, :, 0] * kept
        return found / scale, (found * target).sum(1)


SIDE = 48
"""Bits of a direction beside its columns: what it is multiplied by, and its models."""


@dataclass(frozen=True, eq=False)
class Rounded:
    """Directions in whole steps.

    Attributes:
        left: (L, m, k) whole numbers, 0 where a direction is dropped.
        right: (L, n, k), the same.
        weights: (L, k), what left times right is multiplied by.
        kept: (L, k), which directions are kept.
        lost: (L,) squared error of each layer.
        bits: about what all of it takes.
    """

    left: np.ndarray
    right: np.ndarray
    weights: np.ndarray
    kept: np.ndarray
    lost: np.ndarray
    bits: float

    @property
    def ranks(self) -> tuple[int, ...]:
        """How many directions each layer keeps."""
        return tuple(int(rank) for rank in self.kept.sum(1))

    def coded(self) -> bytes | None:
        """The bytes of `decode_directions`; None where a number is too large to have a code."""
        weights = self.weights[self.kept].astype("<f4")
        if not np.isfinite(weights).all() or (np.abs(weights) < np.finfo("f4").tiny).any():
            return None
        pairs = (
            (self.left[layer, :, i].astype(np.int64), self.right[layer, :, i].astype(np.int64))
            for layer, i in np.argwhere(self.kept)
        )
        columns = list(chain.from_iterable(pairs))
        models = [model_of(column) for column in columns]
        known = [model for model in models if model is not None]
        if len(known) < len(models):
            return None
        return weights.tobytes() + bytes(known) + encoded(columns, known)


def decode_directions(data: bytes, shape: tuple[int, int], rank: int) -> tuple[np.ndarray, ...]:
    """Up (m, R) and down (R, n) in float32, for all R directions of a stack.

    The data are R float32 weights, 2 R models, and the stream of left and right of each direction
    in turn. What is made of them takes one product of float32 for each entry, and so is the same on
    every machine: the weight is split by a power of two, the rest of it goes into up.

    Raises:
        FormatError: the data are damaged.
    """
    m, n = shape
    if len(data) < 6 * rank or (m + n) * rank > MOST * (len(data) + 4):
        raise FormatError(DAMAGED)
    weights = np.frombuffer(data[: 4 * rank], "<f4").astype(np.float32)
    if not np.isfinite(weights).all():
        raise FormatError(DAMAGED)
    columns = decoded(data[6 * rank :], (m, n) * rank, list(data[4 * rank : 6 * rank]))
    half = np.ldexp(np.float32(1), np.frexp(weights)[1] // 2)
    up, down = np.empty((m, rank), np.float32), np.empty((rank, n), np.float32)
    for i in range(rank):
        up[:, i] = columns[2 * i] * (weights[i] / half[i])
        down[i] = columns[2 * i + 1] * half[i]
    return up, down
