"""What every format would cost and lose at every size, before anything is converted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from lotr_tn.analysis.coordinates import Coordinates
from lotr_tn.analysis.pareto import pareto_front
from lotr_tn.decompose.truncation import limited_order
from lotr_tn.linalg.ranks import RankLimits, pair_parameters, tail_energies

__all__ = [
    "FORMATS",
    "Curve",
    "FormatName",
    "best_point",
    "curves_of",
    "layer_losses",
    "layer_ranks",
    "shared_lower_bounds",
]

FormatName: TypeAlias = Literal[
    "lora", "truncated", "lotr", "shared-in", "shared-out", "lotr-low-rank"
]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)

PAIRS = 24
"""Pairs of shared ranks tried for low-rank cores, for each guess of how many terms are kept."""

NOTHING = 1e-13
"""Share of ‖T‖ below which an error is only rounding."""

TERM_SHARES = (1 / 4, 1)
"""Guesses of how many rank terms are kept, as shares of all; they balance shared against own."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The sizes at which a format can hold a stack, and what it loses there.

    Attributes:
        format: `lora` as it is, `truncated` (each layer's rank cut), `lotr` (Tucker-2),
            `shared-in` and `shared-out` (one shared side), `lotr-low-rank` (Tucker-2 with
            low-rank cores).
        parameters: (P,) numbers stored, increasing.
        lost: (P,) squared Frobenius norm of what is lost, decreasing.
        settings: (P, k) what gives each point: rank terms kept for `truncated`, the rank for one
            shared side, (r1, r2) for `lotr`, and (r1, r2, terms) with low-rank cores.
    """

    format: FormatName
    parameters: np.ndarray
    lost: np.ndarray
    settings: np.ndarray


def curves_of(
    coordinates: Coordinates,
    stored: int,
    formats: tuple[FormatName, ...] = FORMATS,
    limits: RankLimits | None = None,
    *,
    pairs: int = PAIRS,
) -> dict[FormatName, Curve]:
    """The curves of some formats for one stack.

    Args:
        coordinates: of the stack.
        stored: numbers that the LoRA as it is stores.
        formats: which formats.
        limits: on all ranks but those of the LoRA as it is.
        pairs: pairs of shared ranks to try for low-rank cores, for each guess of the terms kept.

    Returns:
        A curve for each format, in the order of `FORMATS`. `truncated`, `shared-in` and
        `shared-out` lose the least that is possible; `lotr` loses what the truncated HOSVD does,
        at most √2 times the least; `lotr-low-rank` is searched over some 50 pairs of shared
        ranks.

    Cost: O(K1·K2·log(K1·K2)) for the pairs of ranks, O(50·L·r³) for low-rank cores.
    """
    limits = limits or RankLimits()
    makers = {
        "lora": lambda: Curve("lora", np.array([stored]), np.zeros(1), np.zeros((1, 0), int)),
        "truncated": lambda: _truncated(coordinates, limits),
        "lotr": lambda: _lotr(coordinates, limits),
        "shared-in": lambda: _shared(coordinates, "shared-in", limits),
        "shared-out": lambda: _shared(coordinates, "shared-out", limits),
        "lotr-low-rank": lambda: _low_rank(coordinates, limits, pairs),
    }
    return {name: makers[name]() for name in FORMATS if name in formats}


def layer_ranks(coordinates: Coordinates, terms: int, limits: RankLimits) -> tuple[int, ...]:
    """The rank of each layer when so many rank terms are kept in all, the largest values first."""
    return limited_order(coordinates.layer_values, limits).ranks(terms)


def layer_losses(
    coordinates: Coordinates, curve: Curve, place: int, limits: RankLimits
) -> np.ndarray:
    """(L,) squared error of each layer at one point of a curve, as the curve predicts it.

    Cost: as for one point of the curve.
    """
    setting = [int(x) for x in curve.settings[place]]
    full = coordinates.left.shape[0], coordinates.right.shape[0]
    match curve.format:
        case "lora":
            return np.zeros(coordinates.shape[0])
        case "truncated":
            return _cut_energies(coordinates.layer_values, setting[0], limits)
        case "shared-in":
            return coordinates.layer_lost([(full[0], setting[0])])[0]
        case "shared-out":
            return coordinates.layer_lost([(setting[0], full[1])])[0]
        case "lotr":
            return coordinates.layer_lost([(setting[0], setting[1])])[0]
        case "lotr-low-rank":
            r1, r2, terms = setting
            outside = coordinates.layer_lost([(r1, r2)])[0]
            return outside + _cut_energies(_cut_cores(coordinates, r1, r2), terms, limits)


def _cut_energies(values: Sequence[np.ndarray], terms: int, limits: RankLimits) -> np.ndarray:
    """What each layer loses when so many of all singular values are kept."""
    kept = limited_order(values, limits).ranks(terms)
    return np.array([float((v[k:] ** 2).sum()) for v, k in zip(values, kept, strict=True)])


def _front(
    format: FormatName, parameters: np.ndarray, lost: np.ndarray, settings: np.ndarray
) -> Curve:
    kept = pareto_front(parameters, lost)
    return Curve(format, parameters[kept], lost[kept], settings[kept])


def _truncated(coordinates: Coordinates, limits: RankLimits) -> Curve:
    _, m, n = coordinates.shape
    tails = limited_order(coordinates.layer_values, limits).tails
    first = sum(limits.bounds(len(s))[0] for s in coordinates.layer_values)
    terms = np.arange(first, len(tails))
    return _front("truncated", terms * (m + n), tails[first:], terms[:, None])


def _shared(
    coordinates: Coordinates, format: Literal["shared-in", "shared-out"], limits: RankLimits
) -> Curve:
    layers, m, n = coordinates.shape
    inside = format == "shared-in"
    tails = tail_energies(coordinates.right_sigma if inside else coordinates.left_sigma)
    least, most = limits.bounds(len(tails) - 1)
    ranks = np.arange(least, most + 1)
    cost = n + layers * m if inside else m + layers * n
    return _front(format, ranks * cost, tails[least : most + 1], ranks[:, None])


def _lotr(coordinates: Coordinates, limits: RankLimits) -> Curve:
    lost = coordinates.lost
    (low1, high1), (low2, high2) = (limits.bounds(size - 1) for size in lost.shape)
    part = lost[low1 : high1 + 1, low2 : high2 + 1]
    count = pair_parameters(coordinates.shape, lost.shape)[low1 : high1 + 1, low2 : high2 + 1]
    kept = pareto_front(count.ravel(), part.ravel())
    r1, r2 = np.unravel_index(kept, part.shape)
    settings = np.stack([r1 + low1, r2 + low2], axis=1)
    return Curve("lotr", count.ravel()[kept], part.ravel()[kept], settings)


def _low_rank(coordinates: Coordinates, limits: RankLimits, pairs: int) -> Curve:
    """Pairs of shared ranks, and for each the layers' cores cut together, every term r1 + r2."""
    _, m, n = coordinates.shape
    best = np.zeros(0), np.zeros(0), np.zeros((0, 3), dtype=np.int64)
    for r1, r2 in _pairs_to_try(coordinates, limits, pairs):
        tails, first = _core_tails(coordinates, r1, r2, limits)
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


def _pairs_to_try(
    coordinates: Coordinates, limits: RankLimits, pairs: int
) -> list[tuple[int, int]]:
    """Pairs on the fronts of outside error against cost, for some guesses of the terms kept."""
    _, m, n = coordinates.shape
    lost = coordinates.lost
    (low1, high1), (low2, high2) = (limits.bounds(size - 1) for size in lost.shape)
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
        places = _spread(part.ravel()[front], pairs)
        rows, columns = np.unravel_index(front[places], part.shape)
        chosen |= {
            (int(a) + low1, int(b) + low2)
            for a, b in zip(rows, columns, strict=True)
            if (a + low1) * (b + low2) > 0
        }
    return sorted(chosen)


def _spread(lost: np.ndarray, count: int) -> np.ndarray:
    """Places on a falling front: most of them evenly by number, some by the logarithm of the loss.

    The first alone would miss the bend of a front whose long tail is noise.
    """
    even = np.linspace(0, len(lost) - 1, 3 * count // 4).round().astype(int)
    above = lost[lost > 0]
    if not above.size:
        return np.unique(even)
    levels = np.geomspace(above[0], above[-1], count // 2)
    reached = np.searchsorted(-lost, -levels * (1 + 1e-9))
    return np.unique(np.concatenate([even, np.minimum(reached, len(lost) - 1)]))


def _core_tails(
    coordinates: Coordinates, r1: int, r2: int, limits: RankLimits
) -> tuple[np.ndarray, int]:
    """Energy lost after keeping 0, 1, … terms of all cores together, and the fewest allowed."""
    values = _cut_cores(coordinates, r1, r2)
    first = sum(limits.bounds(len(row))[0] for row in values)
    return limited_order(values, limits).tails, first


def _cut_cores(coordinates: Coordinates, r1: int, r2: int) -> list[np.ndarray]:
    """The singular values of each core, as many as it can have."""
    most = [min(s.stop - s.start, r1, r2) for s in coordinates.slices]
    rows = core_values(coordinates, r1, r2)
    return [row[:rank] for row, rank in zip(rows, most, strict=True)]


def core_values(coordinates: Coordinates, r1: int, r2: int) -> np.ndarray:
    """(L, r) singular values of the cores a_l[:r1] b_l[:r2]ᵀ, largest first.

    From Gram matrices: right to 1e-8 of the largest, as ranks need to be chosen.
    """
    left, right = coordinates.grams(r1, side="left"), coordinates.grams(r2, side="right")
    try:
        root = np.linalg.cholesky(left)
    except np.linalg.LinAlgError:  # a layer that does not fill its rank
        roots, vectors = np.linalg.eigh(left)
        root = vectors * np.sqrt(np.maximum(roots, 0.0))[:, None, :]
    squares = np.linalg.eigvalsh(root.transpose(0, 2, 1) @ right @ root)
    return np.sqrt(np.maximum(squares[:, ::-1], 0.0))


def shared_lower_bounds(
    coordinates: Coordinates, limits: RankLimits
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What no stack with both sides shared can undercut, by whatever method it is found.

    A LoTR that loses at most ε has at least as many directions on each side as that side's singular
    values say; with low-rank cores it also has as many rank terms as the layers' own say.

    Args:
        coordinates: of the stack.
        limits: on the shared ranks.

    Returns:
        For every loss at which one of these ranks changes: the fewest numbers of a LoTR, the fewest
        of one with low-rank cores, and the squared loss.

    Source: Eckart and Young (1936), on both unfoldings and on every layer.
    """
    layers, m, n = coordinates.shape
    left, right = tail_energies(coordinates.left_sigma), tail_energies(coordinates.right_sigma)
    own = limited_order(coordinates.layer_values, RankLimits()).tails
    loss = np.unique(np.concatenate([left, right, own]))
    r1, r2, terms = (np.searchsorted(-tails, -loss, side="left") for tails in (left, right, own))
    (low1, high1), (low2, high2) = (limits.bounds(len(tails) - 1) for tails in (left, right))
    kept = (r1 <= high1) & (r2 <= high2)
    r1, r2 = np.maximum(r1[kept], low1), np.maximum(r2[kept], low2)
    shared = m * r1 + n * r2
    return shared + layers * r1 * r2, shared + terms[kept] * (r1 + r2), loss[kept]


def best_point(curve: Curve, lost: float) -> int | None:
    """The cheapest point of a curve that loses at most so much; None where none does."""
    within = np.flatnonzero(curve.lost <= lost)
    return int(within[0]) if within.size else None
