"""A LoRA in bits: the largest step of its singular directions within an error, and the stream."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, final

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn._arrays import float64, to_numpy
from lotr_tn.coding.directions import Directions, Pairs, decode_directions, encode_directions
from lotr_tn.coding.tables import LARGEST
from lotr_tn.decompose.assemble import beyond
from lotr_tn.decompose.truncation import global_order
from lotr_tn.formats import Certificate, LoRAStack
from lotr_tn.linalg.product import svds_of_products
from lotr_tn.ops.arrays import common_namespace
from lotr_tn.ops.batches import batches, side_by_side
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.norms import layer_norms, norm

METHOD = "coded"

SMALLEST = 1e-15
"""The norm above which, and below whose inverse, no square of a number leaves float32's range."""

NEAR = 1.2
"""How near a step that is known from something alike is expected to be, as a ratio."""

CLOSE = 1e-3
"""How near the step comes to the largest one within an error, relative to it."""


@final
class Codable:
    """A LoRA whose numbers can be stored in bits; what one step for all of them makes of it.

    Attributes:
        stack: the LoRA.
        energies: (L,) ‖ΔW_l‖².
        largest: the largest number that is to be coded: at a step of twice that nothing is left.

    Cost: O((m + n) r²) flops a layer; memory of the factors in float64, twice.
    """

    def __init__(self, stack: LoRAStack) -> None:
        self.stack = stack
        self._blocks = [(layers, _directions(stack, layers)) for layers in _blocks(stack)]
        self.energies = np.array([float((values**2).sum()) for values in self.values])
        self.largest = max((one.largest for _, one in self._blocks), default=0.0)

    @property
    def values(self) -> list[np.ndarray]:
        """The singular values of each layer."""
        return self._in_order([one.values for _, one in self._blocks])

    @property
    def tails(self) -> np.ndarray:
        """(R + 1,) squared norm that is lost when so many directions of all layers are kept."""
        return global_order(self.values).tails

    def _in_order(self, found: Sequence[Any]) -> Any:
        """What was found for each layer, block by block, by layers."""
        each = {}
        for (layers, _), part in zip(self._blocks, found, strict=True):
            each |= zip(layers, part, strict=True)
        return [each[layer] for layer in range(self.stack.shape[0])]

    def told(self, step: float) -> tuple[float, np.ndarray]:
        """About the bits that all of it takes at a step, and (L,) the squared error of each layer.

        In the memory of some layers at a time.
        """
        bits, lost = 0.0, []
        for _, one in self._blocks:
            found = one.at(step)
            bits += found.bits
            lost.append(found.lost)
        return bits, np.array(self._in_order(lost))

    def lost(self, step: float) -> np.ndarray:
        """(L,) squared error of each layer at a step."""
        return self.told(step)[1]

    def bits(self, step: float) -> float:
        """About the bits that all of it takes at a step."""
        return self.told(step)[0]

    def pairs(self, step: float) -> list[Pairs]:
        """The directions that are kept at a step, in whole steps, of each layer."""
        return self._in_order([one.at(step).layers for _, one in self._blocks])

    def at(self, step: float) -> tuple[LoRAStack, bytes] | None:
        """The stack that comes back, certified, and its bits.

        None where the step is too fine for any code.

        Cost: that of one look at `lost`, and some 50 ns for each number.
        """
        layers = self.pairs(step)
        data, ranks = encode_directions(layers), tuple(len(one.weights) for one in layers)
        if data is None:
            return None
        up, down = decode_directions(data, self.stack.shape[1:], sum(ranks))
        made = LoRAStack(up, down, ranks)
        return replace(made, certificate=self._certificate(made)), data

    def _certificate(self, made: LoRAStack) -> Certificate:
        own = _wide(self.stack)
        distances, norms = to_numpy(layer_distances(_wide(made), own)), to_numpy(layer_norms(own))
        pairs = zip(self.values, made.ranks, strict=True)
        tail = np.sqrt(sum(float((values[rank:] ** 2).sum()) for values, rank in pairs))
        reached = np.float64(np.linalg.norm(distances))
        lower = np.minimum(beyond(tail, 1e-12 * np.linalg.norm(norms)), reached)
        return Certificate(distances, norms, np.float64(lower), reached, METHOD, 0)


def codable(stack: LoRAStack) -> Codable | None:
    """A LoRA that can be coded; None where its numbers are beyond those that float32 multiplies."""
    size = float(norm(stack))
    return Codable(stack) if size == 0 or SMALLEST < size < 1 / SMALLEST else None


def _blocks(stack: LoRAStack) -> list[list[int]]:
    """Layers of one rank, so many together as are held at a time."""
    return list(batches(stack.ranks, sum(stack.shape[1:]) * max(stack.ranks)))


def _directions(stack: LoRAStack, layers: list[int]) -> Directions:
    """The singular directions of layers of one rank."""
    sides = (stack.up, stack.down.mT)
    up, down = (
        float64(to_numpy(side_by_side(x, stack.slices, layers, common_namespace(stack))), xp=xp)
        for x in sides
    )
    u, s, vt = svds_of_products(up, down.mT, xp=xp)
    return Directions(u, s, vt.mT)


def largest_step(
    over: Callable[[float], float], largest: float, near: float | None = None
) -> float | None:
    """The largest step at which `over` is at most 1, to `CLOSE`; None where it is at no step.

    The finest that is tried leaves the largest number some 4000 steps, the coarsest leaves nothing;
    `near` is where it is looked for first.
    """
    if largest == 0:
        return None

    def excess(at: float) -> float:
        return math.log(min(max(over(math.exp(at)), 1e-30), 1e30))

    if near is not None:
        low, high = math.log(near / NEAR), math.log(near * NEAR)
        below, above = excess(low), excess(high)
        if below <= 0 < above:
            return math.exp(_last(excess, low, high, below, above))
    low, high = math.log(largest / LARGEST), math.log(2 * largest)
    below, above = excess(low), excess(high)
    return None if below > 0 else math.exp(_last(excess, low, high, below, above))


def _last(
    excess: Callable[[float], float], low: float, high: float, below: float, above: float
) -> float:
    """Where a nearly straight line is at most 0 for the last time, to `CLOSE`.

    It is looked at a little beyond where a line between both ends says, so that both ends come
    near; in the middle where that did not halve what lies between them.
    """
    gap, straight, side = math.log1p(CLOSE), True, 1 / 3
    while high - low > gap:
        width = high - low
        at = (low + high) / 2
        if straight and above > below:
            at = low - below / (above - below) * width + side * gap
            at = min(max(at, low + gap / 2), high - gap / 2)
        found = excess(at)
        if found <= 0:
            low, below, side = at, found, 1 / 3
        else:
            high, above, side = at, found, -1 / 3
        straight = high - low <= width / 2 or not straight
    return low


def _wide(stack: LoRAStack) -> LoRAStack:
    """A stack on NumPy in float64."""
    up, down = (float64(to_numpy(x), xp=xp) for x in (stack.up, stack.down))
    return LoRAStack(up, down, stack.ranks)
