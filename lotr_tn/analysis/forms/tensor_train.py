"""A tensor train of every layer, out legs before in legs."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lotr_tn.analysis.forms.form import Form, Look, Options
from lotr_tn.decompose.tensor_train import tensor_train
from lotr_tn.errors import FormatError
from lotr_tn.formats import Certificate, LoRAStack, TensorTrain
from lotr_tn.linalg.ranks import Energy, FixedRank, RelativeError

PER_CORE = 5
"""Whole numbers that tell a core beside its bonds: layers, both legs, and its place in both orders.
"""


def _entries(stack: TensorTrain) -> Mapping[str, np.ndarray]:
    """All cores as one row of numbers: a file names a tensor in more bytes than a core may have."""
    return {"cores": np.concatenate([np.asarray(core).reshape(-1) for core in stack.cores])}


def _geometry(stack: TensorTrain) -> list[int]:
    """What tells cores apart in that row."""
    places = zip(stack.cores, stack.legs, stack.out_order, stack.in_order, strict=True)
    return [int(x) for core, legs, *at in places for x in (core.shape[0], *legs, *at)]


def _built(
    arrays: Mapping[str, Any], numbers: Sequence[int], certificate: Certificate | None
) -> TensorTrain:
    """The train of a row of numbers, its bonds, and what tells its cores."""
    count = (len(numbers) + 1) // (PER_CORE + 1)
    bonds, told = (1, *numbers[: count - 1], 1), numbers[count - 1 :]
    cores = [told[at : at + PER_CORE] for at in range(0, len(told), PER_CORE)]
    shapes = [
        (layers, left, o, n, right)
        for (layers, o, n, *_), (left, right) in zip(cores, pairwise(bonds), strict=True)
    ]
    entries, found, start = arrays["cores"], [], 0
    for shape in shapes:
        stop = start + int(np.prod(shape, dtype=object))
        found.append(entries[start:stop].reshape(shape))
        start = stop
    if start != len(entries):
        raise FormatError(f"cores must hold {start} numbers by their sizes; found {len(entries)}")
    out, into = (tuple(core[axis] for core in cores) for axis in (3, 4))
    return TensorTrain(tuple(found), out, into, certificate)


def _at_ranks(stack: LoRAStack, ranks: FixedRank, options: Options) -> TensorTrain:
    """Every bond at r1."""
    return tensor_train(stack, "balanced", ranks.r1, dtype=options.dtype)


def _within(stack: LoRAStack, rule: RelativeError | Energy, options: Options) -> TensorTrain:
    return tensor_train(stack, "balanced", rule, dtype=options.dtype)


FORM = Form(
    "tt",
    TensorTrain,
    "tensor train",
    {"cores": "entry"},
    ranks=lambda stack: stack.ranks,
    at_ranks=_at_ranks,
    arrays=_entries,
    geometry=_geometry,
    geometry_numbers=8 * PER_CORE,
    built=_built,
    holds=lambda stack: len(stack.cores) > 1,
    phrase="a tensor train of each layer",
    look=Look("#7B5EA7", "#6a4a9c", "#b79be6", "h", (3, 1, 1, 1, 1, 1)),
    within=_within,
)
