"""LoTR: U and V shared by all layers, with a core for each (Tucker-2)."""

import numpy as np

from lotr_tn.analysis.coordinates import Coordinates
from lotr_tn.analysis.curve import Curve
from lotr_tn.analysis.forms.form import Form, Look, Options, Search
from lotr_tn.analysis.pareto import pareto_front
from lotr_tn.decompose.tucker import hooi, hosvd, st_hosvd
from lotr_tn.formats import LoRAStack, Tucker2
from lotr_tn.linalg.ranks import (
    Energy,
    FixedRank,
    RankLimits,
    RelativeError,
    pair_parameters,
    tail_energies,
)

DECOMPOSITIONS = {"hooi": hooi, "st-hosvd": st_hosvd, "hosvd": hosvd}


def _curve(coordinates: Coordinates, search: Search) -> Curve:
    """What the truncated HOSVD loses, at most √2 times the least."""
    lost = coordinates.lost
    (low1, high1), (low2, high2) = (search.limits.bounds(size - 1) for size in lost.shape)
    part = lost[low1 : high1 + 1, low2 : high2 + 1]
    count = pair_parameters(coordinates.shape, lost.shape)[low1 : high1 + 1, low2 : high2 + 1]
    kept = pareto_front(count.ravel(), part.ravel())
    r1, r2 = np.unravel_index(kept, part.shape)
    settings = np.stack([r1 + low1, r2 + low2], axis=1)
    return Curve("lotr", count.ravel()[kept], part.ravel()[kept], settings)


def _decomposed(
    stack: LoRAStack, rule: FixedRank | RelativeError | Energy, options: Options
) -> Tucker2:
    return DECOMPOSITIONS[options.method](stack, rule, dtype=options.dtype)


def _least(coordinates: Coordinates, lost: float, options: Options) -> int | None:
    """The fewest numbers of any Tucker-2 that may lose so little, by the lower bounds."""
    if options.method == "hosvd":
        return None
    within = coordinates.lower <= lost
    return int(pair_parameters(coordinates.shape, coordinates.lower.shape)[within].min())


def least_shared(
    coordinates: Coordinates, limits: RankLimits
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """r1, r2, rank terms and squared loss, wherever the fewest that may lose so little change.

    By whatever method, a side needs as many directions as its singular values say, and low-rank
    cores as many rank terms as the layers' own say.
    Source: Eckart and Young (1936), on both unfoldings and on every layer.
    """
    left, right = tail_energies(coordinates.left_sigma), tail_energies(coordinates.right_sigma)
    own = coordinates.order(RankLimits()).tails
    loss = np.unique(np.concatenate([left, right, own]))
    r1, r2, terms = (np.searchsorted(-tails, -loss, side="left") for tails in (left, right, own))
    (low1, high1), (low2, high2) = (limits.bounds(len(tails) - 1) for tails in (left, right))
    kept = (r1 <= high1) & (r2 <= high2)
    return np.maximum(r1[kept], low1), np.maximum(r2[kept], low2), terms[kept], loss[kept]


def _lower_bounds(coordinates: Coordinates, limits: RankLimits) -> tuple[np.ndarray, np.ndarray]:
    layers, m, n = coordinates.shape
    r1, r2, _, loss = least_shared(coordinates, limits)
    return m * r1 + n * r2 + layers * r1 * r2, loss


FORM = Form(
    "lotr",
    Tucker2,
    "LoTR: U and V shared",
    {"u": "out r1", "core": "layer r1 r2", "v": "in r2"},
    ranks=lambda stack: stack.ranks,
    at_ranks=_decomposed,
    pairs=True,
    takes_cores=True,
    phrase="LoTR",
    look=Look("#0072B2", "#0072b2", "#56b4e9", "o", ()),
    within=_decomposed,
    curve=_curve,
    losses=lambda coordinates, pair, limits: coordinates.layer_lost([(pair[0], pair[1])])[0],
    make=lambda stack, pair, options, coordinates: _decomposed(stack, FixedRank(*pair), options),
    least=_least,
    lower_bounds=_lower_bounds,
)
