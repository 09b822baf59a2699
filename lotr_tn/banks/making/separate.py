"""Each adapter on its own, its ranks cut: what a bank has to be smaller than."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.analysis.forms import Options
from lotr_tn.banks.making.parts import Made, made_truncated
from lotr_tn.banks.making.stacks import ReducedStack
from lotr_tn.linalg.ranks import ITEM_SIZES


@dataclass(frozen=True, eq=False)
class Separate:
    """A rank for each layer of all stacks."""

    ranks: tuple[np.ndarray, ...]  # (L,) for each stack
    bytes: int  # what all factors take; of each adapter no more than its own


def separate_ranks(
    stacks: Sequence[ReducedStack], energies: np.ndarray, epsilon: float, dtype: str
) -> Separate:
    """The smallest ranks of all layers at which every adapter keeps to a relative error.

    Singular values are cut off in the order of what they lose for each number they take, in each
    adapter until its error is used up; then every other one that still fits. `energies` (N,) are
    the adapters' ‖ΔW‖².
    """
    terms = [_terms(stack, at) for at, stack in enumerate(stacks)]
    columns = zip(*terms, strict=True)
    owner, where, layer, loss, cost = (np.concatenate(column) for column in columns)
    left = np.maximum(epsilon**2 - UNIT_ROUNDOFF[dtype] ** 2, 0.0) * energies * (1 - 1e-12)
    ranks = [np.zeros(len(stack.fleet.layers), dtype=np.int64) for stack in stacks]
    open_layers: set[tuple[int, int]] = set()
    sizes, own = np.zeros(len(energies)), np.zeros(len(energies))
    for stack in stacks:
        np.add.at(own, stack.fleet.adapters, stack.fleet.bytes)
    for at in np.argsort(loss / cost, kind="stable"):
        key = int(where[at]), int(layer[at])
        # a layer's values come smallest first: once one is kept, so are all larger ones
        if key not in open_layers and loss[at] <= left[owner[at]]:
            left[owner[at]] -= loss[at]
            continue
        open_layers.add(key)
        ranks[key[0]][key[1]] += 1
        sizes[owner[at]] += cost[at]
    return Separate(tuple(ranks), int(np.minimum(sizes * ITEM_SIZES[dtype], own).sum()))


def _terms(stack: ReducedStack, at: int) -> tuple[np.ndarray, ...]:
    """Every singular value of a stack: whose, which stack, which layer, its square, its numbers."""
    values = stack.coordinates().layer_values
    counts = [len(one) for one in values]
    layers = np.repeat(np.arange(len(values)), counts)
    squares = np.concatenate([*values, np.zeros(0)]) ** 2
    cost = np.full(len(squares), float(sum(stack.fleet.shape)))
    owners = stack.fleet.adapters[layers]
    return owners, np.full(len(squares), at), layers, squares, cost


def made_separate(
    stacks: Sequence[ReducedStack], separate: Separate, options: Options
) -> tuple[Made, ...]:
    """All stacks with these ranks."""
    pairs = zip(stacks, separate.ranks, strict=True)
    return tuple(made_truncated(stack, ranks, options) for stack, ranks in pairs)
