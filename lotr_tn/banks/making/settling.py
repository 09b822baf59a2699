"""Stacks made at what was chosen for them, until what is measured is what was asked."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lotr_tn.analysis.division import Point
from lotr_tn.banks.making.choosing import (
    DESCRIBED,
    HEADER,
    NEAR,
    SHARES,
    Choices,
    Wanted,
    in_one_form,
    sharing,
    shrunk,
)
from lotr_tn.banks.making.parts import Made, made_at
from lotr_tn.banks.making.separate import Separate
from lotr_tn.banks.making.stacks import FleetStack
from lotr_tn.linalg.ranks import Budget

ATTEMPTS = 5
"""Times that stacks are made anew when what is measured is not what was asked."""

LEAST_TENSORS = 2  # that any stack has of its own

TIGHT = 0.995
"""Share of the error asked for that has to be used, or stacks are made with more of it."""


@dataclass(frozen=True, eq=False)
class Settling:
    """Stacks that are made and measured, and made anew where that is not what was asked."""

    wanted: Wanted
    energies: np.ndarray  # (N,) what the squared error of each adapter is relative to
    epsilon: float  # the error asked for; 0 for a size
    progress: Callable[[str], None] | None
    # what has been made, by the place of the stack and the point
    known: dict[tuple[int, Point], Made] = field(default_factory=dict)

    def best(self, choices: Choices) -> tuple[Made, ...]:
        """All stacks made in the forms of fewest bytes, or in one form where that takes fewer.

        What a method gains on its curve is known only when a stack has been made.
        """
        best = self._within(choices)
        if isinstance(self.wanted.rule, Budget):
            return best
        for name in sharing():
            only = in_one_form(choices, self.energies, self.wanted, name)
            if only is None or only.points == choices.points or only.least >= size_of(best):
                continue
            found = self._within(only)
            best = min(best, found, key=self._rank)
        return best

    def _rank(self, made: Sequence[Made]) -> tuple[float, int]:
        """Smaller is better: the error is met, or else is near; and then bytes."""
        return excess(self._above(made)), size_of(made)

    def _within(self, choices: Choices) -> tuple[Made, ...]:
        """All stacks made; with less of the error where what is stored exceeds it, or with more."""
        share, low, high = choices.share, 0.0, 0.0
        made = self._at_points(choices)
        best, seen = made, {choices.points}
        for _ in range(ATTEMPTS):
            above = self._above(made)
            if above <= 1:
                best, low = made, share
            else:
                high = share
            if not self.epsilon or TIGHT <= above <= 1:
                break
            share = share * 0.999 / max(above, 1e-3) ** 2
            if low and high:
                share = (low + high) / 2
            choices = shrunk(choices, self.energies, self.wanted, share)
            for step in range(SHARES):
                if above <= 1 or choices.points not in seen:
                    break  # points lie apart: ever less is asked for until there is another
                share *= 0.99**2**step
                choices = shrunk(choices, self.energies, self.wanted, share)
            if choices.points in seen:
                break
            seen.add(choices.points)
            made = self._at_points(choices)
        return min(best, made, key=self._rank)

    def _at_points(self, choices: Choices) -> tuple[Made, ...]:
        """All stacks at their points."""
        made = []
        for at, (weighed, point) in enumerate(zip(choices.stacks, choices.points, strict=True)):
            if (at, point) not in self.known:
                if self.progress is not None:
                    self.progress(weighed.reduced.fleet.name)
                self.known[at, point] = made_at(weighed, point)
            made.append(self.known[at, point])
        return tuple(made)

    def _above(self, made: Sequence[Made]) -> float:
        return above_of(made, self.energies, self.epsilon, self.wanted.each)


def too_many(fleet: Sequence[FleetStack], known: Choices, separate: Separate | None) -> str | None:
    """Why stacks are so many that no choice for them can be small; None where they are not."""
    header = (DESCRIBED + HEADER * LEAST_TENSORS) * len(fleet)
    # a side that L layers share is at least as wide as the mean of what each needs for itself
    layers = max(len(stack.layers) for stack in fleet)
    numbers = 0 if separate is None else separate.bytes // layers
    if header + numbers <= NEAR * known.bytes:
        return None
    return f"not measured: headers of {len(fleet):,} stacks"


def size_of(made: Sequence[Made]) -> int:
    """Bytes of all numbers, and about those of the header."""
    return sum(one.bytes + DESCRIBED + HEADER * len(one.group.tensors) for one in made)


def excess(above: float) -> float:
    """By how many tenths of what was asked an error is above it: none where it is met."""
    return math.ceil(10 * max(above - 1, 0.0)) if math.isfinite(above) else math.inf


def above_of(made: Sequence[Made], energies: np.ndarray, epsilon: float, each: bool) -> float:
    """The largest error over the one asked for; 0 where a size is asked for."""
    return float(errors_of(made, energies, each).max(initial=0.0)) / epsilon if epsilon else 0.0


def errors_of(made: Sequence[Made], energies: np.ndarray, each: bool) -> np.ndarray:
    """The measured error of each adapter, or the one of all together, relative to these norms."""
    lost = np.zeros(len(energies))
    for one in made:
        np.add.at(lost, one.adapters, one.distances**2)
    return relative_errors(lost, energies, each)


def relative_errors(lost: np.ndarray, energies: np.ndarray, each: bool) -> np.ndarray:
    """(N,) the error of each adapter, or (1,) of all together, of (N,) squared errors."""
    whole = energies
    if not each:
        lost, whole = lost.sum(keepdims=True), whole.sum(keepdims=True)
    return np.sqrt(np.divide(lost, whole, out=np.zeros_like(lost), where=whole > 0))
