"""What updates take in bits at every error, by one step for all, beside a Gaussian's rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lotr_tn.coding.bound import gaussian_bits
from lotr_tn.coding.tables import LARGEST
from lotr_tn.decompose.coded import codable
from lotr_tn.formats import LoRAStack
from lotr_tn.ops.norms import norm

FINEST = 0.002
"""About the error of the finest step that is looked at."""

OCTAVE = 2
"""Steps that are looked at while a step doubles."""


@dataclass(frozen=True, eq=False)
class BitsCurve:
    """Updates in bits at ever coarser steps, as long as anything is left of them.

    Attributes:
        bytes: (S,) what they take, within 2% up to an error of 0.3 and 6% beyond, and no header.
        relative_error: (S,) of all of them, ever larger.
        rate: (S,) bytes of Gaussian vectors at the same errors; see `gaussian_bits`.
    """

    bytes: np.ndarray
    relative_error: np.ndarray
    rate: np.ndarray

    def at(self, error: float) -> tuple[float, float] | None:
        """Bytes and rate at an error, on a straight line of logarithms between two steps.

        None beyond the finest step and the coarsest.
        """
        errors = self.relative_error
        if not errors.size or not errors[0] <= error <= errors[-1]:
            return None
        size, rate = (
            np.exp(np.interp(np.log(error), np.log(errors), np.log(np.maximum(x, 1e-9))))
            for x in (self.bytes, self.rate)
        )
        return float(size), float(rate)


def bits_curves(stacks: Sequence[LoRAStack]) -> tuple[BitsCurve, ...] | None:
    """What all stacks take in bits at one step for all, and what each takes at its own.

    None where there is nothing to code, or no code for it.

    Cost: some 25 looks at all numbers, of about 50 ns each; memory of one stack at a time, in
    float64 and twice.
    """
    whole = float(np.linalg.norm([float(norm(stack)) for stack in stacks]))
    numbers = sum(sum(stack.ranks) * sum(stack.shape[1:]) for stack in stacks)
    if not 0 < whole < math.inf:
        return None
    finest = FINEST * whole * (12 / numbers) ** 0.5  # a step loses step² / 12 for each number
    each = [_looks(stack, finest) for stack in stacks]
    found = [one for one in each if one is not None]
    if len(found) < len(each):
        return None
    first = max(one.first for one in found)
    return tuple(_curve(part, first) for part in (found, *([one] for one in found)))


@dataclass(frozen=True, eq=False)
class _Looks:
    """A stack at steps from the first that has a code to the last that leaves anything."""

    values: np.ndarray
    shape: tuple[int, int]
    first: int
    taken: list[float]  # bits
    lost: list[float]

    @property
    def energy(self) -> float:
        return float((self.values**2).sum())

    def at(self, place: int) -> tuple[float, float]:
        """Bits and the squared error at a step, which is not before the first."""
        at = place - self.first
        return (self.taken[at], self.lost[at]) if at < len(self.taken) else (0.0, self.energy)


def _looks(stack: LoRAStack, finest: float) -> _Looks | None:
    one = codable(stack)
    if one is None:
        return None
    first = math.ceil(OCTAVE * math.log2(max(one.largest / LARGEST / finest, 1)))
    found = _Looks(np.concatenate(one.values), stack.shape[1:], first, [], [])
    while (step := finest * 2 ** ((first + len(found.taken)) / OCTAVE)) < 2 * one.largest:
        bits, lost = one.told(step)
        found.taken.append(bits)
        found.lost.append(float(lost.sum()))
    return found


def _curve(parts: Sequence[_Looks], first: int) -> BitsCurve:
    """Some stacks together at one step."""
    energy, reached = sum(one.energy for one in parts), 0.0
    points: list[tuple[float, float, float]] = []
    values, shapes = [one.values for one in parts], [one.shape for one in parts]
    for place in range(first, max(one.first + len(one.taken) for one in parts)):
        bits, lost = (sum(x) for x in zip(*(one.at(place) for one in parts), strict=True))
        if bits > 0 and lost > reached:
            reached = lost
            rate = gaussian_bits(values, shapes, lost)
            points.append((bits / 8, (lost / energy) ** 0.5, rate / 8))
    return BitsCurve(*np.array(points).reshape(-1, 3).T)
