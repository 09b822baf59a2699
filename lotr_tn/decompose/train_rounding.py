"""Bonds of a tensor train chosen from all of its singular values, cut, stored and measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF, Array, narrow, to_numpy, zeros
from lotr_tn.decompose.assemble import ARITHMETIC, beyond, underflow
from lotr_tn.decompose.search import meet_error
from lotr_tn.errors import RankError
from lotr_tn.formats import Certificate, Stack, TensorTrain
from lotr_tn.linalg.product import ROUNDING
from lotr_tn.linalg.ranks import (
    Budget,
    FixedRank,
    RankRule,
    RelativeError,
    as_rule,
    smallest_rank,
    tail_energies,
)
from lotr_tn.linalg.trains import (
    Cores,
    bond_values,
    cut,
    sizes_of_terms,
    with_orthonormal_columns,
    with_orthonormal_rows,
)
from lotr_tn.ops.arithmetic import scale
from lotr_tn.ops.arrays import common_namespace, with_arrays
from lotr_tn.ops.batches import row_norms
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.moving import astype
from lotr_tn.ops.norms import root_sum_squares

Ranks: TypeAlias = RankRule | int | Sequence[int]
"""A rule, one rank for all bonds, or a rank for each bond."""

EXACT = RelativeError(0.0)

NOISE = 16 * UNIT_ROUNDOFF["float64"]
"""Share of the sizes of a layer's terms below which its singular values are rounding."""


@dataclass(frozen=True)
class Rounding:
    """A train that is to be cut: its cores in float64 swept to the right, and what they show.

    Attributes:
        original: the same updates in float64, against which results are measured.
        train: the train in float64.
        cores: the same with orthonormal columns before the last core.
        values: (L, k) singular values of every bond, 0 where they are rounding.
        norms: (L,) of the layers.
        floors: (L or 1,) below which singular values of the layers are rounding.
    """

    original: Stack
    train: TensorTrain
    cores: Cores
    values: list[np.ndarray]
    norms: Array
    floors: Array

    @staticmethod
    def of(train: TensorTrain, original: Stack, last: int | None = None) -> "Rounding":
        """Sweeps of QR to the left and to the right; layers whose terms cancel become 0.

        Cores behind `last` are known to have orthonormal rows.
        """
        xp = common_namespace(train)
        layers = train.shape[0]
        terms = sizes_of_terms(train.cores, xp=xp)
        rows = with_orthonormal_rows(train.cores, 1, last, xp=xp)
        cores, passed = with_orthonormal_columns(rows, len(rows) - 1, xp=xp)
        norms = row_norms(cores[-1], xp=xp)
        alive = norms > ROUNDING * terms
        norms = xp.where(alive, norms, xp.zeros_like(norms))
        if not bool(xp.all(alive)):
            kept = xp.astype(alive, norms.dtype)
            cores[-1] = cores[-1] * kept[:, None, None, None, None]
            original = scale(original, xp.broadcast_to(kept, (layers,)))
        floors = xp.where(alive, NOISE * terms, xp.full_like(terms, math.inf))
        values = [
            np.where(s > to_numpy(floors)[:, None], s, 0.0) for s in bond_values(passed, xp=xp)
        ]
        values = [np.broadcast_to(s, (layers, s.shape[1])) for s in values]
        norms = xp.broadcast_to(norms, (layers,))
        return Rounding(original, train, cores, values, norms, floors)

    @property
    def tails(self) -> list[np.ndarray]:
        """(k + 1,) squared energy of all layers that each bond loses when it keeps 0 … k."""
        return [tail_energies(np.sqrt((s**2).sum(axis=0))) for s in self.values]

    @property
    def sizes(self) -> list[int]:
        """The product of the legs of every core."""
        return [math.prod(legs) for legs in self.train.legs]

    def at(self, ranks: Sequence[int], dtype: str) -> TensorTrain:
        """The train cut to these bonds, or those that it has, as stored, and measured."""
        xp = common_namespace(self.train)
        most = [numerical_rank(tail) for tail in self.tails]
        kept = reachable([min(pair) for pair in zip(ranks, most, strict=True)], self.sizes)
        cores = [narrow(core, dtype, xp=xp) for core in cut(self.cores, kept, self.floors, xp=xp)]
        made = with_arrays(self.train, cores=tuple(cores))
        distances = layer_distances(self.original, astype(made, "float64"))
        lost = [float(tail[rank]) for tail, rank in zip(self.tails, kept, strict=True)]
        lower, upper = self._bounds(lost, made, dtype)
        certificate = Certificate(distances, self.norms, lower, upper, "tt-svd", 0)
        return replace(made, certificate=certificate)

    def _bounds(self, lost: list[float], made: TensorTrain, dtype: str) -> tuple[Array, Array]:
        """The largest tail of any bond; the root of the sum of all, and what rounding adds."""
        xp = common_namespace(self.train)
        norm, nothing = root_sum_squares(self.norms), zeros((), self.norms, xp=xp)
        widest = max((values.shape[1] for values in self.values), default=1)
        noise = norm * (4 * UNIT_ROUNDOFF["float64"] * math.sqrt(widest))
        # every core but the first has orthonormal rows: what it is off by, the train is off by
        roots = 1 + sum(math.sqrt(rank) for rank in made.ranks)
        rounding = roots * (UNIT_ROUNDOFF[dtype] + ARITHMETIC * UNIT_ROUNDOFF["float64"])
        entries = sum(math.prod(core.shape) for core in made.cores)
        above = nothing + math.sqrt(sum(lost)) + noise + norm * rounding
        below = beyond(nothing + math.sqrt(max(lost, default=0.0)), noise)
        return below, above + underflow(dtype, entries) * (1 + norm)


def rounded(found: Rounding, ranks: Ranks, dtype: str) -> TensorTrain:
    """The train at the bonds that are asked for, or of the fewest numbers within an error."""
    bonds = len(found.train.cores) - 1
    if isinstance(ranks, Sequence):
        if len(ranks) != bonds or not all(map(_is_rank, ranks)):
            raise RankError(
                f"ranks must be one for each of {bonds} bonds, at least 0; found {ranks!r:.100}"
            )
        return found.at([int(rank) for rank in ranks], dtype)
    rule, tails, layers = as_rule(ranks, dtype), found.tails, found.train.shape[0]
    if isinstance(rule, FixedRank):
        return found.at([rule.r1] * bonds, dtype)
    if isinstance(rule, Budget):
        return found.at(within_numbers(tails, found.sizes, rule.count // layers), dtype)
    total = float(root_sum_squares(found.norms)) ** 2

    def attempt(budget: float) -> TensorTrain:
        return found.at(within_energy(tails, found.sizes, budget), dtype)

    return meet_error(attempt, rule, total, 0.0, dtype)


def _is_rank(value: Any) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and bool(value >= 0)


def numerical_rank(tail: np.ndarray) -> int:
    """How many singular values are more than rounding."""
    return int(np.flatnonzero(tail <= 0)[0])


def reachable(ranks: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Bonds without directions that their neighbours cannot reach."""
    found = list(ranks)
    for k in range(len(found)):
        found[k] = min(found[k], sizes[k] * (found[k - 1] if k else 1))
    for k in reversed(range(len(found))):
        after = found[k + 1] if k + 1 < len(found) else 1
        found[k] = min(found[k], sizes[k + 1] * after)
    return found


def numbers(ranks: Sequence[int], sizes: Sequence[int]) -> int:
    """The entries of one layer's cores."""
    bonds = [1, *ranks, 1]
    return sum(bonds[k] * size * bonds[k + 1] for k, size in enumerate(sizes))


def within_energy(tails: Sequence[np.ndarray], sizes: Sequence[int], budget: float) -> list[int]:
    """Bonds whose tails together are within a squared error.

    Each gets its equal share (δ = ε/√(K − 1)), and is then lowered while something is left, where
    that saves most numbers for what it loses.
    """
    ranks = [smallest_rank(tail, budget / len(tails)) for tail in tails]
    while True:
        lost = sum(float(tail[rank]) for tail, rank in zip(tails, ranks, strict=True))
        k = _cheapest_bond(ranks, tails, sizes, budget - lost)
        if k is None:
            return ranks
        ranks[k] -= 1


def within_numbers(tails: Sequence[np.ndarray], sizes: Sequence[int], count: int) -> list[int]:
    """Bonds of at most so many numbers a layer, lowered where that saves most for what it loses."""
    ranks = [numerical_rank(tail) for tail in tails]
    while 0 not in ranks and numbers(ranks, sizes) > count:
        k = _cheapest_bond(ranks, tails, sizes, math.inf)
        assert k is not None
        ranks[k] -= 1
    return ranks


def _cheapest_bond(
    ranks: Sequence[int], tails: Sequence[np.ndarray], sizes: Sequence[int], room: float
) -> int | None:
    """The bond that is best lowered by one within some squared error; None where none can be."""
    bonds, worth = [1, *ranks, 1], {}
    for k, rank in enumerate(ranks):
        if rank == 0:
            continue
        lost = float(tails[k][rank - 1] - tails[k][rank])
        if lost <= room:
            saved = bonds[k] * sizes[k] + sizes[k + 1] * bonds[k + 2]
            worth[k] = saved / lost if lost > 0 else math.inf
    return max(worth, key=lambda k: worth[k], default=None)
