"""A LoRA in bits: the largest step of its singular directions within an error, and the stream."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import final

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn._arrays import float64, to_numpy
from lotr_tn.coding.directions import Directions, decode_directions
from lotr_tn.coding.tables import LARGEST
from lotr_tn.decompose.assemble import beyond
from lotr_tn.decompose.truncation import global_order
from lotr_tn.formats import Certificate, LoRAStack
from lotr_tn.linalg.product import svds_of_products
from lotr_tn.ops.batches import in_batches, side_by_side
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.norms import layer_norms

METHOD = "coded"

CLOSE = 1e-3
"""How near the step comes to the largest one within an error, relative to it."""


def directions_of(stack: LoRAStack) -> Directions:
    """The singular directions of all layers.

    Cost: O((m + n) r²) flops a layer; memory of the factors in float64, twice.
    """
    parts = stack.slices
    wide = _wide(stack)
    up, down = wide.up, wide.down
    most = max(min(rank, *stack.shape[1:]) for rank in stack.ranks)

    def made(layers: list[int]) -> list[tuple[np.ndarray, ...]]:
        ups, downs = side_by_side(up, parts, layers, xp), side_by_side(down.mT, parts, layers, xp)
        u, s, vt = svds_of_products(ups, downs.mT, xp=xp)
        room = (0, most - s.shape[1])
        wide = (np.pad(x, [(0, 0)] * (x.ndim - 1) + [room]) for x in (u, s, vt.mT))
        return list(zip(*wide, strict=True))

    each = in_batches(stack.ranks, sum(stack.shape[1:]) * most, made)
    u, s, v = (np.stack(one) for one in zip(*each, strict=True))
    return Directions(u, s, v)


@final
class Codable:
    """A LoRA whose numbers can be stored in bits; what one step for all of them makes of it.

    Attributes:
        stack: the LoRA.
        directions: its singular directions.
        energies: (L,) ‖ΔW_l‖².
    """

    def __init__(self, stack: LoRAStack) -> None:
        self.stack = stack
        self.directions = directions_of(stack)
        self.energies = (self.directions.values**2).sum(1)

    @cached_property
    def largest(self) -> float:
        """The largest number that is to be coded: at a step of twice that nothing is left."""
        columns = (self.directions.u, self.directions.v)
        sizes = (np.abs(x).max(axis=1, initial=0.0) * self.directions.values for x in columns)
        return float(max(size.max(initial=0.0) for size in sizes))

    @property
    def tails(self) -> np.ndarray:
        """(R + 1,) squared norm that is lost when so many directions of all layers are kept."""
        return global_order(list(self.directions.values)).tails

    def at(self, step: float) -> tuple[LoRAStack, bytes] | None:
        """The stack that comes back, certified, and its bits.

        None where the step is too fine for any code.

        Cost: O((m + n) r²) flops a layer, and some 20 ns for each of its numbers.
        """
        found = self.directions.at(step)
        data = found.coded()
        ranks = found.ranks
        if data is None:
            return None
        up, down = decode_directions(data, self.stack.shape[1:], sum(ranks))
        made = LoRAStack(up, down, ranks)
        own, wide = _wide(self.stack), _wide(made)
        distances, norms = to_numpy(layer_distances(wide, own)), to_numpy(layer_norms(own))
        pairs = zip(self.directions.values, ranks, strict=True)
        tail = np.sqrt(sum(float((values[rank:] ** 2).sum()) for values, rank in pairs))
        reached = np.float64(np.linalg.norm(distances))
        lower = np.minimum(beyond(tail, 1e-12 * np.linalg.norm(norms)), reached)
        certificate = Certificate(distances, norms, np.float64(lower), reached, METHOD, 0)
        return replace(made, certificate=certificate), data


def largest_step(fits: Callable[[float], bool], largest: float) -> float | None:
    """The largest step at which something holds, to `CLOSE`, by bisection; None where no step does.

    The finest that is tried leaves the largest number some 4000 steps, the coarsest leaves nothing.
    """
    low, high = largest / LARGEST, 2 * largest
    if largest == 0 or not fits(low):
        return None
    while high > (1 + CLOSE) * low:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _wide(stack: LoRAStack) -> LoRAStack:
    """A stack on NumPy in float64."""
    up, down = (float64(to_numpy(x), xp=xp) for x in (stack.up, stack.down))
    return LoRAStack(up, down, stack.ranks)
