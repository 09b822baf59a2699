"""LoTR with low-rank cores: shared factors first, then the layers' cores cut together."""

from collections.abc import Sequence

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn.analysis.coordinates import Coordinates
from lotr_tn.analysis.curve import Curve
from lotr_tn.analysis.forms.form import Form, Look, Search
from lotr_tn.analysis.forms.lotr import least_shared
from lotr_tn.analysis.forms.truncated import cut_energies
from lotr_tn.analysis.pareto import pareto_front
from lotr_tn.decompose.low_rank_cores import low_rank_tucker2
from lotr_tn.decompose.truncation import limited_order
from lotr_tn.formats import LowRankTucker2
from lotr_tn.linalg.factor import cholesky, eigenvalues, eigh
from lotr_tn.linalg.ranks import RankLimits

NOTHING = 1e-13  # share of ‖T‖ below which an error is only rounding
TERM_SHARES = (1 / 4, 1)  # guesses of the share of rank terms kept: they balance shared against own


def _curve(coordinates: Coordinates, search: Search) -> Curve:
    """Pairs of shared ranks, and for each the layers' cores cut together, every term r1 + r2."""
    _, m, n = coordinates.shape
    best = np.zeros(0), np.zeros(0), np.zeros((0, 3), dtype=np.int64)
    for r1, r2 in _pairs_to_try(coordinates, search):
        values = _cut_cores(coordinates, r1, r2)
        tails = limited_order(values, search.limits).tails
        first = sum(search.limits.bounds(len(row))[0] for row in values)
        if r1 * r2:
            first = max(first, 1)  # shared factors without a core hold nothing
        terms = np.arange(first, len(tails))
        parameters = m * r1 + n * r2 + terms * (r1 + r2)
        settings = np.stack([np.full_like(terms, r1), np.full_like(terms, r2), terms], axis=1)
        lost = float(coordinates.lost[r1, r2]) + tails[first:]
        both = tuple(map(np.concatenate, zip(best, (parameters, lost, settings), strict=True)))
        kept = pareto_front(both[0], both[1])
        best = both[0][kept], both[1][kept], both[2][kept]
    return Curve("lotr-low-rank", best[0].astype(np.int64), best[1], best[2])


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


def _cut_cores(coordinates: Coordinates, r1: int, r2: int) -> list[np.ndarray]:
    """The singular values of each core, as many as it can have."""
    most = [min(s.stop - s.start, r1, r2) for s in coordinates.slices]
    rows = core_values(coordinates, r1, r2)
    return [row[:rank] for row, rank in zip(rows, most, strict=True)]


def core_values(coordinates: Coordinates, r1: int, r2: int) -> np.ndarray:
    """(L, r) singular values of the cores a_l[:r1] b_l[:r2]ᵀ, right to 1e-8 of the largest."""
    left, right = coordinates.grams(r1, side="left"), coordinates.grams(r2, side="right")
    root = cholesky(left, xp=xp)
    if root is None:  # a layer that does not fill its rank
        roots, vectors = eigh(left, xp=xp)
        root = vectors * np.sqrt(np.maximum(roots, 0.0))[:, None, :]
    squares = eigenvalues(root.transpose(0, 2, 1) @ right @ root, xp=xp)
    return np.sqrt(np.maximum(squares[:, ::-1], 0.0))


def _losses(coordinates: Coordinates, setting: Sequence[int], limits: RankLimits) -> np.ndarray:
    r1, r2, terms = setting
    outside = coordinates.layer_lost([(r1, r2)])[0]
    return outside + cut_energies(_cut_cores(coordinates, r1, r2), terms, limits)


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
