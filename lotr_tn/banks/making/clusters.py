"""Adapters that share bases, and those that had better have their own.

A tree joins adapters by how much of each lies in the other's directions. From its root down, a set
is split where two halves with bases of their own take fewer bytes than one set with shared ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn.banks.making.choosing import Wanted, choose
from lotr_tn.banks.making.stacks import ReducedStack
from lotr_tn.linalg.factor import svd

MOST_ADAPTERS = 256
"""Adapters up to which all pairs are compared."""

COMMON = 0.9
"""Share of their squared norm that halves have in common, from which on a split is not tried."""

ROUNDING = 1e-12
"""Share of the largest singular value below which a direction counts as absent."""

WORTH = 0.99
"""Bytes that a split has to come down to, as a share, to be made."""


@dataclass(frozen=True)
class Split:
    """A set of adapters that was looked at."""

    sizes: tuple[int, int]  # adapters in either half
    common: float  # share of the squared norms that the halves have in common
    together: int  # bytes of one set
    apart: int | None  # bytes of two; None where it was not tried

    @property
    def made(self) -> bool:
        """Whether the set was split."""
        return self.apart is not None and self.apart < WORTH * self.together


@dataclass(frozen=True, eq=False)
class Clusters:
    """A partition of the adapters."""

    labels: np.ndarray  # (N,) the cluster of each adapter
    stacks: tuple[ReducedStack, ...]  # all stacks, those of each cluster for themselves
    splits: tuple[Split, ...] = ()  # what was tried

    @staticmethod
    def one(count: int, stacks: Sequence[ReducedStack]) -> "Clusters":
        """All adapters in one."""
        return Clusters(np.zeros(count, dtype=np.int64), tuple(stacks))


def clusters_of(
    stacks: Sequence[ReducedStack],
    energies: np.ndarray,
    wanted: Wanted,
    together: int,
    progress: Callable[[str], None] | None = None,
) -> Clusters:
    """The partition of adapters, along a tree, at which all stacks take fewest bytes.

    `energies` (N,) are the adapters' ‖ΔW‖², and `together` what all take as one set. Beyond 256
    adapters all are one set. Cost: O(N²) small products for the tree; for each set that is tried
    as much as `choose` without refinement.
    """
    count = len(energies)
    whole = Clusters.one(count, stacks)
    if not 1 < count <= MOST_ADAPTERS:
        return whole
    work = _Splitting(tuple(stacks), energies, wanted, progress, common_energies(stacks, count))
    splits: list[Split] = []
    found = work.split(np.arange(count), tuple(stacks), together, splits)
    if len(found) == 1:
        return Clusters(whole.labels, whole.stacks, tuple(splits))
    labels = np.zeros(count, dtype=np.int64)
    named: list[ReducedStack] = []
    for number, (members, theirs) in enumerate(found):
        labels[members] = number
        named += theirs
    return Clusters(labels, tuple(named), tuple(splits))


def common_energies(stacks: Sequence[ReducedStack], count: int) -> np.ndarray:
    """(N, N) share of a's squared norm in b's directions, out and in, over the modules of b."""
    common, whole = np.zeros((count, count)), np.zeros(count)
    for stack in stacks:
        coordinates, owners = stack.coordinates(), stack.fleet.adapters
        sides = coordinates.left, coordinates.right
        p, q = (_layer_bases(side, coordinates.slices) for side in sides)
        for owner, part in zip(owners, coordinates.slices, strict=True):
            x, y = (side[:, part] for side in sides)
            whole[owner] += float(((x.T @ x) * (y.T @ y)).sum())
            inside = (p @ x) @ (q @ y).transpose(0, 2, 1)
            np.add.at(common[owner], owners, (inside**2).sum(axis=(1, 2)))
    return common / np.where(whole > 0, whole, 1.0)[:, None]


def _layer_bases(side: np.ndarray, slices: Sequence[slice]) -> np.ndarray:
    """(L, r, K) orthonormal rows that span each layer's coordinates, filled up with zeros."""
    widest = max(s.stop - s.start for s in slices)
    found = np.zeros((len(slices), widest, side.shape[0]))
    for at, part in enumerate(slices):
        u, sigma, _ = svd(side[:, part], xp=xp)
        rank = int((sigma > ROUNDING * sigma.max(initial=0.0)).sum())
        found[at, :rank] = u[:, :rank].T
    return found


@dataclass(frozen=True, eq=False)
class _Splitting:
    stacks: tuple[ReducedStack, ...]
    energies: np.ndarray
    wanted: Wanted
    progress: Callable[[str], None] | None
    common: np.ndarray

    def split(
        self,
        members: np.ndarray,
        stacks: tuple[ReducedStack, ...],
        together: int,
        splits: list[Split],
    ) -> list[tuple[np.ndarray, tuple[ReducedStack, ...]]]:
        """A set of adapters in as many parts as take fewest bytes, each with its stacks."""
        whole = [(members, stacks)]
        if len(members) < 2:
            return whole
        a, b = halves = self._halves(members)
        common = float((self.common[np.ix_(a, b)].mean() + self.common[np.ix_(b, a)].mean()) / 2)
        sizes = len(a), len(b)
        if common >= COMMON:
            splits.append(Split(sizes, common, together, None))
            return whole
        parts = [self._taken(half) for half in halves]
        costs = [self._bytes(part) for part in parts]
        splits.append(Split(sizes, common, together, sum(costs)))
        if not splits[-1].made:
            return whole
        found: list[tuple[np.ndarray, tuple[ReducedStack, ...]]] = []
        for half, part, cost in zip(halves, parts, costs, strict=True):
            found += self.split(half, part, cost, splits)
        return found

    def _halves(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The two branches at the root of the tree of some adapters."""
        from scipy.cluster.hierarchy import fcluster, linkage
        from scipy.spatial.distance import squareform

        part = self.common[np.ix_(members, members)]
        distance = np.clip(1 - (part + part.T) / 2, 0.0, None)
        np.fill_diagonal(distance, 0.0)
        labels = fcluster(linkage(squareform(distance, checks=False), "average"), 2, "maxclust")
        if len(np.unique(labels)) < 2:  # all alike
            labels = np.arange(len(members)) == 0
        first = labels == labels[0]
        return members[first], members[~first]

    def _taken(self, members: np.ndarray) -> tuple[ReducedStack, ...]:
        """The stacks of some adapters, named after the first of them."""
        names = (f"{one.fleet.name.split('@')[0]}@{members[0]}" for one in self.stacks)
        found = (one.take(members, name) for one, name in zip(self.stacks, names, strict=True))
        return tuple(one for one in found if one is not None)

    def _bytes(self, stacks: tuple[ReducedStack, ...]) -> int:
        return choose(stacks, self.energies, self.wanted, self.progress, refine=False).bytes
