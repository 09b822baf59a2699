"""Layers in shared bases in whole steps: one step for both bases and all cores.

With a HOSVD T_l = U G_l Vᵀ and s the norms of the rows of all cores side by side, an error in an
entry of U diag(s) adds as much to that of T as one of the same size in an entry of a core, and so
does one in V diag(t). So all three are rounded to one step: reverse water-filling once more. Bases
are stored as whole columns, which stand for columns of norm 1; cores are solved for again in these
by least squares, and are rounded last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn.coding.columns import (
    DAMAGED,
    MOST,
    NO_CODE,
    decoded,
    encoded,
    lengths_by_model,
    models_of,
)
from lotr_tn.coding.quantise import LEAST, SLOPE, bits, bits_of_squares, rounded
from lotr_tn.coding.tables import LEVELS
from lotr_tn.errors import FormatError
from lotr_tn.linalg.factor import pinv

SIDE = 8
"""Bits of a column of a basis beside its numbers: its model."""

BESIDE = 200
"""Bits of a layer beside the entries of its core: its step, scale and length, the stream's end."""

AROUND = 4
"""Levels around the likely one that are tried for a core."""


@dataclass(frozen=True, eq=False)
class SharedDirections:
    """Layers in the coordinates of their HOSVD.

    Attributes:
        u: (m, k1), orthonormal columns.
        v: (n, k2), orthonormal columns.
        cores: (L, k1, k2), T_l = u cores[l] vᵀ.
    """

    u: np.ndarray
    v: np.ndarray
    cores: np.ndarray

    @cached_property
    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """(k1,) and (k2,), the norms of rows and of columns of all cores together."""
        return _sizes(self.cores)

    @property
    def _columns(self) -> list[np.ndarray]:
        """(m, k1) and (n, k2), directions as large as the layers are along them."""
        return [basis * size for basis, size in zip((self.u, self.v), self.sizes, strict=True)]

    @property
    def largest(self) -> float:
        """The largest number that is to be coded."""
        return _largest(self.cores, *self._columns)

    def at(self, step: float) -> "RoundedCores":
        """All layers at one step; directions that are not worth their bits are dropped.

        Cost: O((m + n) k² + L k³) flops.
        """
        left, right = (rounded(columns, step) for columns in self._columns)
        kept = _worth(self.cores, (left, right), step)
        left, right = left[:, kept[0]], right[:, kept[1]]
        un, vn = (x / np.linalg.norm(x, axis=0) for x in (left, right))
        turns = un.T @ self.u, vn.T @ self.v
        grams = un.T @ un, vn.T @ vn
        squares = (left**2).sum(0), (right**2).sum(0)
        return _solved(self.cores, (left, right), turns, grams, squares, step)


@dataclass(frozen=True, eq=False)
class GrownDirections:
    """Layers in bases that are there already, and in the directions that these lack.

    Attributes:
        bases: (m, p) and (n, q), which stay as they are.
        own: (m, p) and (n, q) orthonormal, of what the bases span.
        beyond: (m, K1) and (n, K2) orthonormal, and orthogonal to that.
        cores: (L, p + K1, q + K2), the layers between own and beyond of both sides.
    """

    bases: tuple[np.ndarray, np.ndarray]
    own: tuple[np.ndarray, np.ndarray]
    beyond: tuple[np.ndarray, np.ndarray]
    cores: np.ndarray

    @cached_property
    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """(p + K1,) and (q + K2,), the norms of rows and of columns of all cores together."""
        return _sizes(self.cores)

    @property
    def _columns(self) -> list[np.ndarray]:
        """(m, K1) and (n, K2), the directions beyond as large as the layers are along them."""
        return [
            beyond * size[own.shape[1] :]
            for beyond, size, own in zip(self.beyond, self.sizes, self.own, strict=True)
        ]

    @property
    def largest(self) -> float:
        """The largest number that is to be coded."""
        return _largest(self.cores, *self._columns)

    def at(self, step: float) -> "RoundedCores":
        """All layers at one step; its columns are new ones alone, its cores between all.

        Cost: O((m + n) k² + L k³) flops for bases of k columns with all new ones.
        """
        fixed = [x.shape[1] for x in self.own]
        new = [rounded(columns, step) for columns in self._columns]
        kept = _worth(self.cores, new, step, fixed)
        left, right = (x[:, keep[p:]] for x, keep, p in zip(new, kept, fixed, strict=True))
        turns, grams, squares = [], [], []
        for at, whole in enumerate((left, right)):
            columns = np.hstack([self.bases[at], Columns(whole.T).basis])
            turns.append(columns.T @ np.hstack([self.own[at], self.beyond[at]]))
            grams.append(columns.T @ columns)
            there = (self.sizes[at][: fixed[at]] / step) ** 2
            squares.append(np.concatenate([there, (whole**2).sum(0)]))
        return _solved(self.cores, (left, right), turns, grams, squares, step)


def _sizes(cores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The norms of rows and of columns of all cores together."""
    squares = (cores**2).sum(0)
    return squares.sum(1) ** 0.5, squares.sum(0) ** 0.5


def _largest(*numbers: np.ndarray) -> float:
    return float(max(np.abs(x).max(initial=0.0) for x in numbers))


def _worth(
    cores: np.ndarray, columns: Sequence[np.ndarray], step: float, fixed: Sequence[int] = (0, 0)
) -> tuple[np.ndarray, np.ndarray]:
    """Which directions of both sides save more than their bits cost.

    The first, so many as are `fixed`, are there anyway, and the columns are those of all others.
    """
    squares, layers = (cores**2).sum(0), len(cores)
    there, kept, cost = [], [], []
    for p, whole in zip(fixed, columns, strict=True):
        there.append(np.arange(p + whole.shape[1]) < p)
        kept.append(np.concatenate([np.ones(p, bool), (whole != 0).any(0)]))
        cost.append(np.concatenate([np.zeros(p), bits(whole) + SIDE]))
    for side in (0, 1, 0):
        others = kept[1 - side]
        gain = np.tensordot(squares, others.astype(float), axes=([1 - side], [0]))
        entries = bits_of_squares(gain / (layers * max(others.sum(), 1) * step**2))
        paid = cost[side] + layers * others.sum() * entries
        kept[side] = there[side] | (kept[side] & (gain > SLOPE * step**2 * paid))
    empty = not (kept[0].any() and kept[1].any())
    return kept[0] & (there[0] | (not empty)), kept[1] & (there[1] | (not empty))


def _solved(
    cores: np.ndarray,
    columns: tuple[np.ndarray, np.ndarray],
    turns: Sequence[np.ndarray],
    grams: Sequence[np.ndarray],
    squares: Sequence[np.ndarray],
    step: float,
) -> "RoundedCores":
    """Cores solved for anew between columns as they are stored, and rounded.

    `turns` take the coordinates of the cores to products with these columns, which have the Gram
    matrices `grams`, and `squares` as whole columns; `columns` are those that take bits.
    """
    target = turns[0] @ cores @ turns[1].T
    exact = pinv(grams[0], xp=xp) @ target @ pinv(grams[1], xp=xp)
    whole, expected = _rounded_cores(exact / step, *squares)
    made = whole * step
    saved = 2 * (target * made).sum((1, 2)) - ((grams[0] @ made @ grams[1]) * made).sum((1, 2))
    lost = np.maximum((cores**2).sum((1, 2)) - saved, 0.0)
    size = sum(float(bits(x).sum()) + SIDE * x.shape[1] for x in columns)
    size += float(bits_of_squares(expected).sum()) + BESIDE * len(whole)
    return RoundedCores(*columns, whole, step, lost, size)


def _rounded_cores(
    scaled: np.ndarray, left: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cores in whole steps, and the squares that are expected of their entries.

    An entry is expected to be as large as the squared norms of its row's and column's directions,
    `left` and `right`, say; as in `rounded`, it is drawn towards zero where it is small.
    """
    expected = np.outer(left, right)
    total = max(float(expected.sum()), 1.0)
    energy = (scaled**2).sum((1, 2))[:, None, None]
    squares = np.maximum(expected / total * energy, 1e-12)
    drawn = np.maximum(squares / (squares + 1 / 12), LEAST)
    return np.trunc(scaled * drawn + np.copysign(0.5, scaled)), squares


@dataclass(frozen=True, eq=False)
class RoundedCores:
    """Layers in shared bases, in whole steps.

    Attributes:
        left: (m, k1) whole numbers.
        right: (n, k2) whole numbers.
        cores: (L, k1, k2) whole numbers.
        step: what a 1 of a core stands for.
        lost: (L,) squared error of each layer.
        bits: about what all of it takes.
    """

    left: np.ndarray
    right: np.ndarray
    cores: np.ndarray
    step: float
    lost: np.ndarray
    bits: float


@dataclass(frozen=True, eq=False)
class Columns:
    """Whole columns (k, m) of a basis, which stand for columns of norm 1."""

    whole: np.ndarray

    @cached_property
    def squares(self) -> np.ndarray:
        """(k,) whole squared norms, which float64 holds exactly."""
        return (self.whole.astype(np.int64) ** 2).sum(1).astype(np.float64)

    @property
    def basis(self) -> np.ndarray:
        """(m, k) float32: one product of float32 for each entry, the same on every machine."""
        norms = np.sqrt(np.maximum(self.squares, 1.0))  # IEEE 754 has both exactly rounded
        return np.ascontiguousarray((self.whole * (1 / norms).astype(np.float32)[:, None]).T)

    @property
    def levels(self) -> np.ndarray:
        """(k,) ⌊2 log2⌋ of the squared norms, without a logarithm."""
        mantissa, exponent = np.frexp(np.maximum(self.squares, 1.0))
        return 2 * (exponent - 1) + (mantissa * mantissa >= 0.5)


def encode_columns(columns: Columns) -> bytes | None:
    """The bytes of `decode_columns`: k models, and one stream; None where a number has no code."""
    models = models_of(columns.whole)
    if models is None:
        return None
    return models.tobytes() + encoded(columns.whole, models.tolist())


def decode_columns(data: bytes, size: int, count: int) -> Columns:
    """Columns of so many numbers.

    Raises:
        FormatError: the data are damaged.
    """
    if len(data) < count or size * count > MOST * (len(data) + 4):
        raise FormatError(DAMAGED)
    found = decoded(data[count:], [size] * count, list(data[:count]))
    return Columns(np.array(found, np.float32).reshape(count, size))


def encode_core(whole: np.ndarray, levels: np.ndarray, step: float) -> bytes | None:
    """The bytes of `decode_core`; None where a number has no code.

    Args:
        whole: (k1, k2) whole numbers.
        levels: (k1, k2) what the levels of both bases add up to.
        step: what a 1 stands for.
    """
    value = np.float32(step)
    if not np.isfinite(value) or value < np.finfo(np.float32).tiny:
        return None
    magnitudes, best, table = np.abs(whole).astype(np.int64), (np.inf, 0), lengths_by_model()
    if magnitudes.max(initial=0) >= len(table):
        return None
    square = max(float((whole**2).mean()) if whole.size else 0.0, 1e-9)
    likely = round(2 * np.log2(square) + 6 - _mean_level(levels))
    for code in range(2 * (likely - AROUND), 2 * (likely + LEVELS)):
        if code > 2 * (likely + AROUND) and best[0] < NO_CODE:
            break
        best = min(best, (float(table[magnitudes, _models(levels, code)].sum()), code))
    if best[0] >= NO_CODE or not -(2**15) <= best[1] < 2**15:
        return None
    models = _models(levels, best[1])
    used = np.unique(models).tolist()
    stream = encoded((whole[models == model] for model in used), used)
    return np.array(value, "<f4").tobytes() + np.array(best[1], "<i2").tobytes() + stream


def decode_core(data: bytes, levels: np.ndarray) -> np.ndarray:
    """(k1, k2) float32: whole steps, one product for each entry.

    The data are a float32 step, the level and shape of the models, and the stream of the entries
    of each model in turn. An entry's model follows from that and from the norms of the directions
    of its row and column, so that nothing else is told of it.

    Raises:
        FormatError: the data are damaged.
    """
    if len(data) < 6 or levels.size > MOST * (len(data) + 4):
        raise FormatError(DAMAGED)
    step, code = np.frombuffer(data[:4], "<f4")[0], int(np.frombuffer(data[4:6], "<i2")[0])
    if not np.isfinite(step):
        raise FormatError(DAMAGED)
    models = _models(levels, code)
    used = np.unique(models).tolist()
    places = [models == model for model in used]
    found = decoded(data[6:], [int(place.sum()) for place in places], used)
    core = np.zeros(levels.shape, np.float32)
    for place, numbers in zip(places, found, strict=True):
        core[place] = numbers
    return core * np.float32(step)


def levels_of(left: Sequence[Columns], right: Sequence[Columns]) -> np.ndarray:
    """(k1, k2) what the levels of both bases add up to, each of some columns after others."""
    rows, columns = (np.concatenate([one.levels for one in side]) for side in (left, right))
    return rows[:, None] + columns[None, :]


def _mean_level(levels: np.ndarray) -> float:
    """The level of the mean of the squares that levels stand for."""
    if not levels.size:
        return 0.0
    top = int(levels.max())
    return top + 2 * float(np.log2(np.exp2((levels - top) / 2).mean()))


def _models(levels: np.ndarray, code: int) -> np.ndarray:
    """The model of each entry: twice its level, plus one for the heavier shape."""
    offset, heavy = divmod(code, 2)
    return 2 * np.clip(levels + offset, 0, LEVELS - 1) + heavy
