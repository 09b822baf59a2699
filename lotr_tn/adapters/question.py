"""An error or a size asked of some groups, and its answer: a form and ranks for each of them."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.adapters.adapter import LoRAGroup
from lotr_tn.adapters.asked import Where
from lotr_tn.adapters.restrictions import Limits, limits_of
from lotr_tn.analysis.candidates import Candidate, Subject, joint_error, predicted_candidate
from lotr_tn.analysis.choice import Choice, choose_within
from lotr_tn.analysis.coordinates import coordinates_of
from lotr_tn.analysis.division import Division, Point, choose_point, divide, settle
from lotr_tn.analysis.forms import FORMS, Options
from lotr_tn.errors import FormatError
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.ranks import Budget, Energy, RelativeError, TotalError

Rule: TypeAlias = RelativeError | Energy | TotalError | Budget

FILLS = 6
"""Times that a budget of bytes is given out, as files that were made tell what all else takes."""

KEPT = 2**24
"""Numbers of all stacks together that are kept beside their coordinates (64 MiB in float32). What
goes beyond is built again when it is made, so that memory follows one group."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A group in coordinates, with its curves."""

    group: LoRAGroup
    subject: Subject  # its coordinates and curves
    where: Where  # where its stack is built
    kept: LoRAStack | None = None  # its stack, where that is small

    @property
    def stack(self) -> LoRAStack:
        """Its stack; built anew where it was not kept."""
        return self.where.stack(self.group) if self.kept is None else self.kept


def subject_of(group: LoRAGroup, stack: LoRAStack, options: Options) -> Subject:
    """The coordinates and the curves of a group."""
    return Subject.of(coordinates_of(stack), group.stored, group.dtype, options)


def measure(
    groups: Sequence[LoRAGroup],
    options: Options,
    limits: Limits,
    where: Where,
    progress: Callable[[str], None] | None = None,
    known: Iterable[Measured] = (),
) -> tuple[Measured, ...]:
    """All groups in coordinates, with their curves; those `known` have them, by whatever name.

    Cost: about a HOSVD of each group; memory of O(R²) for each, of one stack, and of `KEPT`.
    """
    limited = limits_of([group.name for group in groups], limits)
    before = {(one.group.modules, one.subject.limits): one for one in known}
    found, room = [], KEPT
    for group in groups:
        if progress is not None:
            progress(group.name)
        own = limited[group.name]
        one = before.get((group.modules, own))
        if one is None:
            stack = where.stack(group)
            fits = group.stored <= room
            room -= group.stored if fits else 0
            subject = subject_of(group, stack, replace(options, limits=own))
            one = Measured(group, subject, where, stack if fits else None)
        found.append(replace(one, group=group))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of groups that have been measured."""

    rule: Rule  # an error for each group, or an error or a budget for all together
    options: Options  # how candidates are made
    measured: tuple[Measured, ...]
    spent: int = 0  # what of a budget is spent already, on what is no group, at least
    # the bytes of the file of all groups, for a budget of these
    size_of: Callable[[Sequence[Choice]], int] | None = None

    @property
    def subjects(self) -> list[Subject]:
        """The groups in coordinates."""
        return [one.subject for one in self.measured]

    @cached_property
    def divided(self) -> "tuple[_Divided, ...]":
        """An error or a size of all groups, divided for each dtype by their curves; best first."""
        rule = self.rule
        assert isinstance(rule, Budget | TotalError)
        found: list[_Divided] = []
        for own in self.options.each:
            division = divide(self.subjects, rule, own, self.spent)
            candidates = self.at(division.points, own)
            error = joint_error(candidates, self.subjects)
            if not all(FORMS[one.format].kept for one in candidates):
                error = (error**2 + UNIT_ROUNDOFF[own.dtype] ** 2) ** 0.5
            size = sum(one.bytes for one in candidates)
            rank = (0, size, error)
            if isinstance(rule, Budget):
                over = self.spent + division.cost > rule.size
                rank = (1, size, error) if over else (0, error, size)
            found.append(_Divided(own, division, rank))
        return tuple(sorted(found, key=lambda one: one.rank))

    def at(self, points: Sequence[Point], options: Options) -> tuple[Candidate, ...]:
        """What the curves say of one point for each group."""
        return tuple(
            predicted_candidate(subject, subject.curves[name], place, options)
            for subject, (name, place) in zip(self.subjects, points, strict=True)
        )

    def answers(
        self, look: Callable[[LoRAGroup, LoRAStack], None] | None = None
    ) -> tuple[Division | None, list[Choice]]:
        """The division that holds, and a form for each group, measured; `look` sees it before.

        A budget that has no room for any is answered by the smallest: `taken` tells what it takes.
        """

        def stack_of(one: Measured) -> LoRAStack:
            stack = one.stack
            if look is not None:
                look(one.group, stack)
            return stack

        def stacks() -> Iterator[LoRAStack]:
            return map(stack_of, self.measured)

        rule = self.rule
        if isinstance(rule, Budget):
            return self._within(rule, stack_of)
        if not isinstance(rule, TotalError):
            pairs = zip(stacks(), self.subjects, strict=True)
            return None, [choose_within(*pair, rule, self.options) for pair in pairs]
        least = min(one.division.bound for one in self.divided)
        *others, last = self.divided
        for one in others:
            try:
                division, choices = settle(stacks, self.subjects, rule, one.options, one.division)
            except FormatError:  # an entry is beyond the range of float16
                continue
            error = joint_error([choice.candidate for choice in choices], self.subjects)
            if is_met(rule, (), error):
                return replace(division, bound=min(least, division.bound)), choices
        division, choices = settle(stacks, self.subjects, rule, last.options, last.division)
        return replace(division, bound=min(least, division.bound)), choices

    def taken(self, choices: Sequence[Choice]) -> int:
        """What the groups take of a budget, with all else: numbers, or bytes of the file."""
        if self.size_of is not None:
            return self.size_of(choices)
        return self.spent + sum(choice.candidate.parameters for choice in choices)

    def _within(
        self, rule: Budget, stack_of: Callable[[Measured], LoRAStack]
    ) -> tuple[Division, list[Choice]]:
        """The best that fits, or else the smallest, in the first dtype in which one fits."""
        best: _Filled | None = None
        for one in self.divided:
            try:
                found = self._filled(rule, one, stack_of)
            except FormatError:  # an entry is beyond the range of float16
                if best is None and one is self.divided[-1]:
                    raise
                continue
            best = found if best is None else min(best, found, key=lambda filled: filled.rank)
            if not best.over:
                break
        assert best is not None  # the last dtype is made, or raises
        least = min(one.division.bound for one in self.divided)
        return replace(best.division, bound=least), best.choices

    def _filled(
        self, rule: Budget, divided: "_Divided", stack_of: Callable[[Measured], LoRAStack]
    ) -> "_Filled":
        """The groups in one dtype, given out anew once it is known what all else takes."""
        options, division = divided.options, divided.division
        made: dict[tuple[int, Point], Choice] = {}
        tried: list[_Filled] = []
        for _ in range(FILLS):
            for at, (one, point) in enumerate(zip(self.measured, division.points, strict=True)):
                if (at, point) not in made:
                    made[at, point] = choose_point(stack_of(one), one.subject, point, options)
            choices = [made[pair] for pair in enumerate(division.points)]
            taken = self.taken(choices)
            error = joint_error([choice.candidate for choice in choices], self.subjects)
            tried.append(_Filled(division, choices, taken > rule.size, taken, error))
            if self.size_of is None:
                break
            spent = math.ceil(taken - division.cost)
            division = divide(self.subjects, rule, options, spent)
            if division.points in [one.division.points for one in tried]:
                break
        return min(tried, key=lambda filled: filled.rank)

    def bound(self, division: Division | None, energy: float) -> float | None:
        """What no other division goes below: bytes, or for a budget the error of this energy."""
        if division is None or isinstance(self.rule, TotalError):
            return None if division is None else division.bound
        return (division.bound / energy) ** 0.5 if energy else 0.0


@dataclass(frozen=True, eq=False)
class _Divided:
    """A rule divided over all groups, stored in one dtype."""

    options: Options
    division: Division
    rank: tuple[float, ...]  # smaller is better


@dataclass(frozen=True, eq=False)
class _Filled:
    """What was made for a budget."""

    division: Division
    choices: list[Choice]
    over: bool  # whether it takes more than there is
    taken: int
    error: float

    @property
    def rank(self) -> tuple[float, ...]:
        """Smaller is better: within the budget a smaller error, and else what takes less."""
        return (1, self.taken) if self.over else (0, self.error, self.taken)


def is_met(rule: Rule, errors: Iterable[float], joint: float) -> bool:
    """Whether the errors of all groups, or that of all together, keep to a rule."""
    match rule:
        case Budget():
            return True
        case TotalError():
            return joint <= rule.epsilon
        case _:
            return rule.epsilon == 0 or all(error <= rule.epsilon for error in errors)
