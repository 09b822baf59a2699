"""Where the sweeps of a CP begin: each with a case in which it is near the best, or is it."""

from collections.abc import Iterator

import array_api_compat
import array_api_compat.numpy as host
import numpy as np

from lotr_tn._arrays import Array, to_numpy
from lotr_tn.decompose.core_space import CoreSpace
from lotr_tn.decompose.cp_sweeps import CoreProblem, Terms
from lotr_tn.errors import FormatError
from lotr_tn.linalg.factor import eig, pinv
from lotr_tn.linalg.product import svds_of_products
from lotr_tn.linalg.ranks import tail_energies
from lotr_tn.ops.batches import in_batches, side_by_side


class LayerTerms:
    """The singular terms of all layers, largest first: the first R of them are a CP of rank R.

    No cut of each layer's rank to R terms in all loses less, so a CP never needs to.
    """

    def __init__(self, space: CoreSpace, floor: float) -> None:
        xp = space.xp
        sides = space.left.coordinates, space.right.coordinates
        parts = space.slices
        ranks = [part.stop - part.start for part in parts]

        def made(places: list[int]) -> list[tuple[Array, Array, Array]]:
            if ranks[places[0]] == 0:
                return [(sides[0][:, :0], xp.sum(sides[0], axis=0)[:0], sides[1][:, :0])] * len(
                    places
                )
            x, y = (side_by_side(side, parts, places, xp) for side in sides)
            u, s, vt = svds_of_products(x, y.mT, xp=xp)
            return list(zip(xp.unstack(u), xp.unstack(s), xp.unstack(vt.mT), strict=True))

        entries = sum(int(side.shape[0]) for side in sides) * max(ranks)
        found = in_batches(ranks, entries, made)
        values = [to_numpy(s) for _, s, _ in found]
        layer = np.repeat(np.arange(len(values)), [len(s) for s in values])
        place = np.concatenate([np.arange(len(s)) for s in values])
        everything = np.concatenate(values)
        kept = np.argsort(-everything, kind="stable")
        kept = kept[everything[kept] > floor]
        self.values, self._layer, self._place = everything[kept], layer[kept], place[kept]
        self._found = found

    @property
    def count(self) -> int:
        """How many terms hold more than rounding."""
        return len(self.values)

    @property
    def tails(self) -> np.ndarray:
        """(count + 1,) squared norm that is lost when 0, 1, … terms are kept."""
        return tail_energies(self.values)

    def first(self, problem: CoreProblem, rank: int) -> Terms:
        """The first terms, each of weight σ in its own layer."""
        xp, chosen = problem.xp, range(min(rank, self.count))
        if not chosen:
            return problem.started(problem.x[:, :0], problem.y[:, :0])
        pairs = [(self._found[self._layer[i]], int(self._place[i])) for i in chosen]
        a = xp.stack([u[:, j] for (u, _, _), j in pairs], axis=1)
        b = xp.stack([v[:, j] for (_, _, v), j in pairs], axis=1)
        w = np.zeros((problem.layers, len(pairs)))
        w[self._layer[: len(pairs)], np.arange(len(pairs))] = self.values[: len(pairs)]
        return problem.started(a, b, xp.asarray(w, device=array_api_compat.device(a)))


def other_starts(problem: CoreProblem, rank: int, seed: int) -> Iterator[Terms]:
    """Further starts, without an end: two by SVD, then random ones."""
    rng = np.random.default_rng(seed)
    x, y = problem.x, problem.y
    device = array_api_compat.device(x)

    def columns(size: int, first: np.ndarray) -> Array:
        """So many columns, random beyond those that are given."""
        more = rng.standard_normal((size, rank - first.shape[1])) / size**0.5
        return problem.xp.asarray(np.concatenate([first, more], axis=1), device=device)

    sizes = int(x.shape[0]), int(y.shape[0])
    a, b = (columns(size, np.eye(size, min(rank, size))) for size in sizes)
    yield problem.started(a, b)  # the leading directions of both sides, in pairs
    pair = _diagonalised(problem, rank, rng)
    if pair is not None:
        a, b = (columns(size, side) for size, side in zip(sizes, pair, strict=True))
        yield problem.started(a, b)
    while True:
        nothing = (np.zeros((size, 0)) for size in sizes)
        a, b = (columns(size, none) for size, none in zip(sizes, nothing, strict=True))
        yield problem.started(a, b)


def _diagonalised(
    problem: CoreProblem, rank: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """The sides that diagonalise two sums of layers at once: those of a stack that is a CP.

    Source: Sanchez and Kowalski (1990), the generalised eigenvalue problem; Leurgans, Ross and Abel
    (1993).
    """
    x, y = (to_numpy(side)[:rank, :] for side in (problem.x, problem.y))
    if problem.layers < 2 or min(len(x), len(y)) < rank:
        return None
    mixes = rng.standard_normal((2, problem.layers)) @ to_numpy(problem.members)
    one, two = ((x * mix) @ y.T for mix in mixes)
    try:
        values, vectors = eig(one @ pinv(two, xp=host), xp=host)
        # a pair of complex vectors spans as much as its real and imaginary parts
        a = np.where(np.imag(values) >= 0, np.real(vectors), np.imag(vectors))
        b = pinv(a, xp=host) @ two
    except FormatError:
        return None
    sides = (to_numpy(side) for side in (problem.x, problem.y))
    full = tuple(np.zeros((len(side), rank)) for side in sides)
    full[0][:rank], full[1][:rank] = a, b.T
    return full[0], full[1]
