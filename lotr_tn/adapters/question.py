"""An error or a size asked of some groups, and its answer: a form and ranks for each of them."""

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
from lotr_tn.analysis.division import Division, Point, divide, settle
from lotr_tn.analysis.forms import FORMS, Options
from lotr_tn.errors import FormatError, OptionError
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.ranks import Budget, Energy, RelativeError, TotalError

Rule: TypeAlias = RelativeError | Energy | TotalError | Budget

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
    spent: int = 0  # what of a budget is spent already, on what is no group

    @property
    def subjects(self) -> list[Subject]:
        """The groups in coordinates."""
        return [one.subject for one in self.measured]

    @cached_property
    def divided(self) -> "tuple[_Divided, ...]":
        """An error or a size of all groups, divided for each dtype by their curves; best first."""
        rule, budget = self.rule, isinstance(self.rule, Budget)
        assert isinstance(rule, Budget | TotalError)
        found: list[_Divided] = []
        for own in self.options.each:
            try:
                division = divide(self.subjects, rule, own, self.spent)
            except OptionError:  # one direction in each group is more, and in a wider dtype too
                if not found:
                    raise
                break
            candidates = self.at(division.points, own)
            error = joint_error(candidates, self.subjects)
            if not all(FORMS[one.format].kept for one in candidates):
                error = (error**2 + UNIT_ROUNDOFF[own.dtype] ** 2) ** 0.5
            size = sum(one.bytes for one in candidates)
            rank = (error, size) if budget else (size, error)
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
        """The division that holds, and a form for each group, measured; `look` sees it before."""

        def stacks() -> Iterator[LoRAStack]:
            for one in self.measured:
                stack = one.stack
                if look is not None:
                    look(one.group, stack)
                yield stack

        rule = self.rule
        if not isinstance(rule, Budget | TotalError):
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
    rank: tuple[float, float]  # smaller is better


def is_met(rule: Rule, errors: Iterable[float], joint: float) -> bool:
    """Whether the errors of all groups, or that of all together, keep to a rule."""
    match rule:
        case Budget():
            return True
        case TotalError():
            return joint <= rule.epsilon
        case _:
            return rule.epsilon == 0 or all(error <= rule.epsilon for error in errors)
