"""LoTR with low-rank cores: shared factors first, then the layers' cores cut together."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn._arrays import BLOCK_ELEMENTS
from lotr_tn.analysis.coordinates import Coordinates
from lotr_tn.analysis.curve import Curve
from lotr_tn.analysis.forms.form import Form, Look, Search
from lotr_tn.analysis.forms.lotr import least_shared
from lotr_tn.analysis.forms.truncated import cut_energies
from lotr_tn.analysis.pareto import pareto_front
from lotr_tn.decompose.low_rank_cores import low_rank_tucker2
from lotr_tn.decompose.truncation import limited_order
from lotr_tn.formats import LowRankTucker2
from lotr_tn.linalg import root_of_gram
from lotr_tn.linalg.factor import cholesky, eigenvalues
from lotr_tn.linalg.ranks import RankLimits

Pair: TypeAlias = tuple[int, int]
"""Shared ranks r1 and r2."""

NOTHING = 1e-13  # share of ‖T‖ below which an error is only rounding
TERM_SHARES = (1 / 4, 1)  # guesses of the share of rank terms kept: they balance shared against own


def _curve(coordinates: Coordinates, search: Search) -> Curve:
    """Pairs of shared ranks, and for each the layers' cores cut together, every term r1 + r2."""
    _, m, n = coordinates.shape
    best = np.zeros(0), np.zeros(0), np.zeros((0, 3), dtype=np.int64)
    for pairs in _blocks(coordinates, _pairs_to_try(coordinates, search)):
        found = [best]
        cores = core_values(coordinates, pairs)
        for (r1, r2), tails in zip(pairs, _tails(coordinates, pairs, cores, search), strict=True):
            first = sum(search.limits.bounds(most)[0] for most in _sizes(coordinates, r1, r2))
            if r1 * r2:
                first = max(first, 1)  # shared factors without a core hold nothing
            terms = np.arange(first, len(tails))
            parameters = m * r1 + n * r2 + terms * (r1 + r2)
            settings = np.stack([np.full_like(terms, r1), np.full_like(terms, r2), terms], axis=1)
            found.append((parameters, float(coordinates.lost[r1, r2]) + tails[first:], settings))
        together = tuple(map(np.concatenate, zip(*found, strict=True)))
        kept = pareto_front(together[0], together[1])
        best = together[0][kept], together[1][kept], together[2][kept]
    return Curve("lotr-low-rank", best[0].astype(np.int64), best[1], best[2])


def _blocks(coordinates: Coordinates, pairs: list[Pair]) -> Iterator[list[Pair]]:
    """The pairs, as many at a time as have their cores in a block of memory."""
    widest = max(s.stop - s.start for s in coordinates.slices)
    size = max(1, BLOCK_ELEMENTS // max(1, len(coordinates.slices) * widest**2))
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def _tails(
    coordinates: Coordinates, pairs: list[Pair], cores: np.ndarray, search: Search
) -> list[np.ndarray]:
    """For each pair the squared energy that is lost after keeping 0, 1, … terms of its cores."""
    sizes = [_sizes(coordinates, r1, r2) for r1, r2 in pairs]
    if search.limits == RankLimits():
        places = np.arange(cores.shape[2])
        values = np.where(places < np.array(sizes)[:, :, None], cores, 0.0).reshape(len(pairs), -1)
        values.sort(axis=1)
        energies = np.cumsum(values**2, axis=1)[:, ::-1]
        return [
            np.append(row[:most], 0.0)
            for row, most in zip(energies, (sum(size) for size in sizes), strict=True)
        ]
    return [
        limited_order(_cut(rows, size), search.limits).tails
        for rows, size in zip(cores, sizes, strict=True)
    ]


def _pairs_to_try(coordinates: Coordinates, search: Search) -> list[tuple[int, int]]:
    """Pairs on the fronts of outside error against cost, for some guesses of the terms kept."""
    _, m, n = coordinates.shape
    lost = coordinates.lost
    (low1, high1), (low2, high2) = (search.limits.bounds(size - 1) for size in lost.shape)
    part = lost[low1 : high1 + 1, low2 : high2 + 1]
    part = np.where(part > NOTHING**2 * coordinates.energy, part, 0.0)  # rounding is no choice
    r1, r2 = np.meshgrid(
        np.arange(low1, high1 + 1), np.arange(low2, high2 + 1), indexing="ij", sparse=True
    )
    terms = sum(len(values) for values in coordinates.layer_values)
    least = min(max(low1, 1), high1), min(max(low2, 1), high2)  # one direction, if there is one
    chosen = {(low1, low2), least, (high1, high2)}
    for share in TERM_SHARES:
        cost = (m + share * terms) * r1 + (n + share * terms) * r2
        front = pareto_front(cost.ravel(), part.ravel())
        places = _spread(part.ravel()[front], search.pairs)
        rows, columns = np.unravel_index(front[places], part.shape)
        chosen |= {
            (int(a) + low1, int(b) + low2)
            for a, b in zip(rows, columns, strict=True)
            if (a + low1) * (b + low2) > 0
        }
    return sorted(chosen)


def _spread(lost: np.ndarray, count: int) -> np.ndarray:
    """Places on a falling front: most even by number, some by log loss, for a bend before noise."""
    even = np.linspace(0, len(lost) - 1, 3 * count // 4).round().astype(int)
    above = lost[lost > 0]
    if not above.size:
        return np.unique(even)
    levels = np.geomspace(above[0], above[-1], count // 2)
    reached = np.searchsorted(-lost, -levels * (1 + 1e-9))
    return np.unique(np.concatenate([even, np.minimum(reached, len(lost) - 1)]))


def _sizes(coordinates: Coordinates, r1: int, r2: int) -> list[int]:
    """How many singular values each core can have."""
    return [min(s.stop - s.start, r1, r2) for s in coordinates.slices]


def _cut(rows: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return [row[:most] for row, most in zip(rows, sizes, strict=True)]


def core_values(coordinates: Coordinates, pairs: Sequence[Pair]) -> np.ndarray:
    """(pairs, L, r) singular values of the cores a_l[:r1] b_l[:r2]ᵀ, to 1e-8 of the largest."""
    firsts, left = np.unique([r1 for r1, _ in pairs], return_inverse=True)
    seconds, right = np.unique([r2 for _, r2 in pairs], return_inverse=True)
    root = _roots(np.stack([coordinates.grams(r1, side="left") for r1 in firsts]), firsts)[left]
    grams = np.stack([coordinates.grams(r2, side="right") for r2 in seconds])[right]
    squares = eigenvalues(root.transpose(0, 1, 3, 2) @ grams @ root, xp=xp)
    return np.sqrt(np.maximum(squares[..., ::-1], 0.0))


def _roots(grams: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """R with R Rᵀ each of the Gram matrices (…, r, r), of factors of so many rows."""
    full = rows >= grams.shape[-1]
    roots = np.empty_like(grams)
    for some in (full, ~full):
        if some.any():
            root = cholesky(grams[some], xp=xp) if some is full else None
            if root is None:  # a layer that does not fill its rank
                root = root_of_gram(grams[some], xp=xp).mT
            roots[some] = root
    return roots


def _losses(coordinates: Coordinates, setting: Sequence[int], limits: RankLimits) -> np.ndarray:
    r1, r2, terms = setting
    outside = coordinates.layer_lost([(r1, r2)])[0]
    cores = _cut(core_values(coordinates, [(r1, r2)])[0], _sizes(coordinates, r1, r2))
    return outside + cut_energies(cores, terms, limits)


def _lower_bounds(coordinates: Coordinates, limits: RankLimits) -> tuple[np.ndarray, np.ndarray]:
    _, m, n = coordinates.shape
    r1, r2, terms, loss = least_shared(coordinates, limits)
    return m * r1 + n * r2 + terms * (r1 + r2), loss


FORM = Form(
    "lotr-low-rank",
    LowRankTucker2,
    "LoTR, low-rank cores",
    {"u": "out r1", "up": "r1 term", "down": "term r2", "v": "in r2"},
    ranks=lambda stack: (*stack.shared_ranks, *stack.ranks),
    at_ranks=lambda stack, ranks, options: low_rank_tucker2(
        stack, ranks.pair, sum(stack.ranks), dtype=options.dtype
    ),
    shared_ranks=2,
    takes_cores=True,
    setting_of=lambda stack: (*stack.shared_ranks, sum(stack.ranks)),
    built=lambda arrays, ranks, certificate: LowRankTucker2(
        **arrays, ranks=tuple(ranks[2:]), certificate=certificate
    ),
    phrase="LoTR with low-rank cores",
    look=Look("#56B4E9", "#a36f00", "#e69f00", "D", (8, 1.5, 1, 1.5, 1, 1.5)),
    curve=_curve,
    losses=_losses,
    make=lambda stack, setting, options, coordinates: low_rank_tucker2(
        stack, (setting[0], setting[1]), setting[2], limits=options.limits, dtype=options.dtype
    ),
    lower_bounds=_lower_bounds,
)
