"""The singular directions of layers in whole steps: one step for all, and a stream of the result.

With ΔW = Σ σ_i u_i v_iᵀ, an error in σ_i u_i or in σ_i v_i adds as much to that of ΔW, entry by
entry and direction by direction, since u_i and v_i are orthonormal. So one step for the entries of
both, whatever their direction, spends bits where they buy most: reverse water-filling, by which
what lies below the step takes no bits (Cover and Thomas (2006), chapter 10.3). What a direction
multiplies is solved for again after rounding, by least squares in all directions of its layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn.coding.columns import DAMAGED, MOST, decoded, encoded, models_of
from lotr_tn.coding.quantise import SLOPE, bits, rounded
from lotr_tn.errors import FormatError
from lotr_tn.linalg.factor import pinv


@dataclass(frozen=True, eq=False)
class Directions:
    """Singular directions of layers of one shape and rank, largest first.

    Attributes:
        u: (L, m, k), orthonormal columns.
        values: (L, k), the singular values.
        v: (L, n, k), orthonormal columns.
    """

    u: np.ndarray
    values: np.ndarray
    v: np.ndarray

    @property
    def largest(self) -> float:
        """The largest number that is to be coded."""
        sizes = (np.abs(x).max(axis=1, initial=0.0) * self.values for x in (self.u, self.v))
        return float(max(size.max(initial=0.0) for size in sizes))

    def at(self, step: float) -> "Rounded":
        """All directions at one step; those that are not worth their bits are dropped.

        Cost: O((m + n) k²) flops a layer, and memory of three times the directions.
        """
        left = rounded(self.u * self.values[:, None, :], step)
        right = rounded(self.v * self.values[:, None, :], step)
        size = bits(left) + bits(right) + SIDE
        norms = (left**2).sum(1), (right**2).sum(1)
        along = (left * self.u).sum(1), (right * self.v).sum(1)
        both = norms[0] * norms[1]
        gain = (self.values * along[0] * along[1]) ** 2 / np.where(both > 0, both, 1)
        kept = (both > 0) & (gain > SLOPE * step**2 * size)
        left, right = (np.where(kept[:, None, :], x, 0) for x in (left, right))
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
        # a direction that is dropped stands by itself
        apart = np.eye(kept.shape[1]) * ~kept[:, None]
        gram = gram / (scale[:, :, None] * scale[:, None, :]) + apart
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
    def layers(self) -> "list[Pairs]":
        """The directions that are kept, of each layer."""
        most = np.iinfo(np.int16).max  # far beyond what has a code, and stays so
        columns = [np.clip(x, -most, most).mT.astype(np.int16) for x in (self.left, self.right)]
        whole = zip(self.weights, *columns, self.kept, strict=True)
        return [Pairs(w[kept], left[kept], right[kept]) for w, left, right, kept in whole]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Whole columns left (R, m) and right (R, n), and what each pair is multiplied by (R,)."""

    weights: np.ndarray
    left: np.ndarray
    right: np.ndarray


def encode_directions(layers: Sequence[Pairs]) -> bytes | None:
    """The bytes of `decode_directions`; None where a number has no code.

    Cost: time O(R (m + n)), some 50 ns for each number; memory of them in 16 bits.
    """
    weights = np.concatenate([one.weights for one in layers]).astype("<f4")
    if not np.isfinite(weights).all() or (np.abs(weights) < np.finfo("f4").tiny).any():
        return None
    left, right = (
        np.concatenate(x) for x in zip(*((p.left, p.right) for p in layers), strict=True)
    )
    models = [models_of(left), models_of(right)]
    if models[0] is None or models[1] is None:
        return None
    in_turn = np.stack([models[0], models[1]], axis=1).ravel()
    columns = chain.from_iterable(zip(left, right, strict=True))
    return weights.tobytes() + in_turn.tobytes() + encoded(columns, in_turn.tolist())


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
    up, down = np.empty((rank, m), np.float32), np.empty((rank, n), np.float32)
    for i in range(rank):
        up[i], down[i] = columns[2 * i], columns[2 * i + 1]
    up *= (weights / half)[:, None]
    down *= half[:, None]
    return np.ascontiguousarray(up.T), down
