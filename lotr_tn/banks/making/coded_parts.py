"""Coded layers as a part of a bank, measured on what comes back out of them."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from lotr_tn.banks.coded import CODED, CodedLayers
from lotr_tn.banks.group import DISTANCE, BankGroup, Part
from lotr_tn.decompose.coded import METHOD
from lotr_tn.formats import LoRAStack
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.moving import astype

T = TypeVar("T")

FINER = 1e-3
"""By how much the step is made finer where what is measured is above what was asked."""

FINER_TRIES = 6
"""Times that it is made finer: what float32 rounds away is far below any error that is coded."""


def measured_part(
    group: BankGroup,
    form: str,
    segments: int,
    where: np.ndarray,
    layers: Sequence[bytes],
    terms: np.ndarray,
    original: LoRAStack,
    norms: np.ndarray,
) -> Part:
    """The part of coded layers in the first segments of a group's bases.

    Args:
        group: it, with all bases that they need.
        form: the name of their form.
        segments: of both bases; 0 for layers by themselves.
        where: (L, 3) adapter, module of the group, and the rank that the LoRA had.
        layers: the bytes of each.
        terms: (L,) rank terms of each; 0 for layers in bases.
        original: they, in float64.
        norms: (L,) theirs.
    """
    coded = CodedLayers.of(layers)
    index = np.column_stack([where, terms, coded.lengths]).astype(np.int64)
    none = np.zeros(len(norms))
    figures = np.stack([none, norms, none, np.ones(len(norms))], axis=1)
    part = Part(form, segments, METHOD, {CODED: coded.tensor}, index, figures)
    back: Any = group.stack(part, slice(0, len(index)))
    distances = layer_distances(original, astype(back, "float64"))
    figures[:, DISTANCE] = np.asarray(distances)  # of the part, now that they are known
    return part


def made_within(
    step: float, make: Callable[[float], T | None], fits: Callable[[T], bool]
) -> T | None:
    """What is made at a step, or at one a little finer where it does not fit; None if none does.

    None also where a number has no code.
    """
    for _ in range(FINER_TRIES):
        made = make(step)
        if made is None or fits(made):
            return made
        step *= 1 - FINER
    return None
