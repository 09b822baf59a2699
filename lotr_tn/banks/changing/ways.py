"""How the layers of a new adapter could be stored in a bank: what each way takes and loses."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.adapters.adapter import LoRAGroup
from lotr_tn.analysis.allocation import Menu, allocate
from lotr_tn.analysis.pareto import pareto_front
from lotr_tn.decompose.extension import Extension
from lotr_tn.decompose.truncation import cut_layers, global_order
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.ranks import ITEM_SIZES
from lotr_tn.ops.norms import layer_singular_values

PAIRS = 24
"""Pairs of numbers of new directions that are tried with cores of low rank."""


@dataclass(frozen=True)
class Way:
    """One way to store some layers."""

    bytes: int  # what it takes
    loss: float  # squared norm of what it loses, predicted
    # makes the stack; None where the LoRAs are kept as they are
    make: "Callable[[Way], Any] | None" = None
    new: tuple[int, int] = (0, 0)  # new directions of either side
    ranks: tuple[int, ...] = ()  # of each layer, where cores are of low rank or factors its own


def ways_of(
    stack: LoRAStack, lora: LoRAGroup, extension: Extension | None, dtype: str, own: str
) -> Iterator[Way]:
    """All ways to store some layers that may be best for some error.

    `stack` has the layers in float64, `lora` as they were stored; `extension` is that of the
    group's bases in `dtype`, where it has any, and factors of the layers' own are in `own`.
    """
    yield Way(lora.stored * ITEM_SIZES[lora.dtype], 0.0)
    yield from _truncations(stack, own)
    if extension is not None:
        yield from _extensions(extension, dtype)
        yield from _low_rank_extensions(extension, dtype)


def _truncations(stack: LoRAStack, dtype: str) -> Iterator[Way]:
    def make(way: Way) -> Any:
        return cut_layers(stack, way.ranks, dtype)

    _, m, n = stack.shape
    values = [np.asarray(v) for v in layer_singular_values(stack)]
    order = global_order(values)
    rounding = UNIT_ROUNDOFF[dtype] ** 2 * float(order.tails[0])
    for terms, tail in enumerate(order.tails):
        size = terms * (m + n) * ITEM_SIZES[dtype]
        yield Way(size, float(tail) + rounding, make, ranks=order.ranks(terms))


def _extensions(extension: Extension, dtype: str) -> Iterator[Way]:
    """New directions, with a whole core for each layer."""

    def make(way: Way) -> Any:
        return extension.tucker(*way.new, dtype)

    layers, m, n = extension.shape
    p, q = extension.left.own, extension.right.own
    k1, k2 = np.meshgrid(*map(np.arange, extension.lost.shape), indexing="ij")
    numbers = m * k1 + n * k2 + layers * (p + k1) * (q + k2)
    for pair in _front(numbers, extension.lost):
        loss = float(extension.lost[pair]) + _rounding(extension, dtype)
        yield Way(int(numbers[pair]) * ITEM_SIZES[dtype], loss, make, pair)


def _low_rank_extensions(extension: Extension, dtype: str) -> Iterator[Way]:
    """The same with cores whose ranks are cut together."""

    def make(way: Way) -> Any:
        return extension.low_rank(*way.new, way.ranks, dtype)

    _, m, n = extension.shape
    p, q = extension.left.own, extension.right.own
    k1, k2 = np.meshgrid(*map(np.arange, extension.lost.shape), indexing="ij")
    terms = sum(part.stop - part.start for part in extension.slices)
    front = _front(m * k1 + n * k2 + terms * (p + k1 + q + k2), extension.lost)
    for at in np.unique(np.linspace(0, len(front) - 1, PAIRS).round().astype(int)):
        pair = front[at]
        outside = float(extension.lost[pair]) + _rounding(extension, dtype)
        order = global_order(extension.values(*pair))
        width = p + pair[0] + q + pair[1]
        for kept, tail in enumerate(order.tails):
            size = (m * pair[0] + n * pair[1] + kept * width) * ITEM_SIZES[dtype]
            yield Way(size, outside + float(tail), make, pair, order.ranks(kept))


def _front(numbers: np.ndarray, lost: np.ndarray) -> list[tuple[int, int]]:
    """The pairs of new directions that are best for some error."""
    places = np.unravel_index(pareto_front(numbers.ravel(), lost.ravel()), lost.shape)
    return [(int(k1), int(k2)) for k1, k2 in zip(*places, strict=True)]


def _rounding(extension: Extension, dtype: str) -> float:
    return UNIT_ROUNDOFF[dtype] ** 2 * extension.energy


def cheapest(ways: Sequence[Sequence[Way]], allowed: float) -> list[Way]:
    """One way of each, which together take fewest bytes within a squared error."""
    menus = [
        Menu(np.array([way.loss for way in each]), np.array([float(way.bytes) for way in each]))
        for each in ways
    ]
    picks = allocate(menus, max(allowed, 0.0)).picks
    return [each[pick] for each, pick in zip(ways, picks, strict=True)]
