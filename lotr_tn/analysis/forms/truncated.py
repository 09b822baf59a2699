"""A LoRA with each layer's rank cut: one threshold for the singular values of all layers."""

from collections.abc import Sequence

import numpy as np

from lotr_tn.analysis.coordinates import Coordinates
from lotr_tn.analysis.curve import Curve, front_of
from lotr_tn.analysis.forms.form import Form, Look, Options, Search
from lotr_tn.decompose.truncation import cut_layers, limited_order
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.ranks import FixedRank, RankLimits


def layer_ranks(
    terms: Sequence[int], coordinates: Coordinates, limits: RankLimits
) -> tuple[int, ...]:
    """The rank of each layer when so many rank terms are kept in all, the largest values first."""
    return coordinates.order(limits).ranks(terms[0])


def cut_energies(values: Sequence[np.ndarray], terms: int, limits: RankLimits) -> np.ndarray:
    """What each layer loses when so many of all singular values are kept."""
    kept = limited_order(values, limits).ranks(terms)
    return np.array([float((v[k:] ** 2).sum()) for v, k in zip(values, kept, strict=True)])


def _curve(coordinates: Coordinates, search: Search) -> Curve:
    _, m, n = coordinates.shape
    tails = coordinates.order(search.limits).tails
    first = sum(search.limits.bounds(len(s))[0] for s in coordinates.layer_values)
    terms = np.arange(first, len(tails))
    return front_of("truncated", terms * (m + n), tails[first:], terms[:, None])


def _at_ranks(stack: LoRAStack, ranks: FixedRank, options: Options) -> LoRAStack:
    """Every layer keeps r1."""
    _, m, n = stack.shape
    return cut_layers(stack, tuple(min(ranks.r1, own, m, n) for own in stack.ranks), options.dtype)


FORM = Form(
    "truncated",
    LoRAStack,
    "each layer's rank cut",
    {"up": "out term", "down": "term in"},
    ranks=lambda stack: stack.ranks,
    at_ranks=_at_ranks,
    shared_ranks=0,
    setting_of=lambda stack: (sum(stack.ranks),),
    built=lambda arrays, ranks, certificate: LoRAStack(
        **arrays, ranks=tuple(ranks), certificate=certificate
    ),
    in_bits=True,
    phrase="a LoRA with each layer's rank cut",
    look=Look("#D55E00", "#c24e00", "#f08a45", "s", (5, 1.5)),
    curve=_curve,
    losses=lambda coordinates, setting, limits: cut_energies(
        coordinates.layer_values, setting[0], limits
    ),
    make=lambda stack, terms, options, coordinates: cut_layers(
        stack, layer_ranks(terms, coordinates(), options.limits), options.dtype
    ),
    ranks_at=layer_ranks,
    lower_bounds="curve",
)
