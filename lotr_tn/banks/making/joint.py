"""One joint conversion: the best stacks of all adapters, made and measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from lotr_tn.analysis.forms import FORMS, LOTR, Options, auto_forms
from lotr_tn.analysis.forms.truncated import FORM as ALONE
from lotr_tn.banks.bank import Bank, Stacking
from lotr_tn.banks.file import bank_overhead
from lotr_tn.banks.making.choosing import Choices, Wanted, choose, require_room, shrunk
from lotr_tn.banks.making.clusters import Clusters, clusters_of
from lotr_tn.banks.making.parts import Made, made_at, made_at_ranks
from lotr_tn.banks.making.separate import made_separate, separate_ranks
from lotr_tn.banks.making.stacks import (
    PIECE,
    FleetStack,
    Goal,
    ReducedStack,
    Route,
    reduce_all,
    stacks_of,
)
from lotr_tn.banks.making.survey import Survey
from lotr_tn.linalg.ranks import Budget, FixedRank, RelativeError, TotalError

BankRule: TypeAlias = RelativeError | TotalError | FixedRank | Budget

COMPARED_UP_TO = 1024
"""Rank terms of a stack up to which another way of stacking is tried."""

ATTEMPTS = 4
"""Times that stacks are made anew when what is measured is above what was asked."""


@dataclass(frozen=True)
class StackChoice:
    """What one way of stacking would take.

    Attributes:
        stacking: `adapters`, `layers` or `all`.
        stacks: how many stacks it makes.
        bytes: what their numbers take, predicted; None where it was not measured.
        note: why it was not measured.
    """

    stacking: Stacking
    stacks: int
    bytes: int | None = None
    note: str | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """Groups of a bank, made."""

    groups: tuple[Made, ...]
    stacking: Stacking
    stackings: tuple[StackChoice, ...]
    routes: Mapping[str, str]
    bytes_separate: int | None
    note: str
    clusters: Clusters

    @property
    def bytes(self) -> int:
        """Bytes of all their numbers."""
        return sum(made.bytes for made in self.groups)


@dataclass(frozen=True, eq=False)
class Job:
    """One joint conversion: what is converted, and how."""

    survey: Survey
    energies: np.ndarray  # of each adapter: its error squared is measured as a share of this
    rule: BankRule
    each: bool
    options: Options
    route: Route
    sketch: tuple[int, int]  # size and seed
    group_by: str
    cluster: bool
    progress: Callable[[str], None] | None

    @property
    def epsilon(self) -> float:
        """The error that growing bases work for; 0 where none was asked for."""
        return self.rule.epsilon if isinstance(self.rule, RelativeError | TotalError) else 0.0

    @property
    def factors(self) -> np.ndarray:
        """(N,) what multiplies each adapter where all count together."""
        if not self.each:
            return np.ones(len(self.energies))
        return np.where(self.energies > 0, self.energies, 1.0) ** -0.5

    def made(self, ways: Sequence[Stacking]) -> Outcome:
        """The groups, by the best way of stacking, made and measured."""
        if isinstance(self.rule, FixedRank):
            return self._at_ranks(ways[0], self.rule)
        wanted = self._wanted()
        way, choices, costs = self._compared(ways, wanted)
        clusters = self._clusters(choices, wanted)
        if len(np.unique(clusters.labels)) > 1 or self._refines:
            del choices  # curves of all stacks, which are found anew
            choices = choose(clusters.stacks, self.energies, wanted, self.progress)
        made = self._settled(choices, wanted)
        routes = {one.reduced.fleet.name: one.reduced.route for one in choices.stacks}
        outcome = Outcome(made, way, costs, routes, None, "shared", clusters)
        return self._or_separate(outcome, choices)

    def _compared(
        self, ways: Sequence[Stacking], wanted: Wanted
    ) -> tuple[Stacking, Choices, tuple[StackChoice, ...]]:
        """The best way, its choices, and what each would take; two ways are held at most."""
        best: tuple[Stacking, Choices] | None = None
        costs: list[StackChoice] = []
        for way in ways:
            fleet = stacks_of(self.survey, way, self.group_by)
            largest = max(int(one.ranks.sum()) for one in fleet)
            if best is not None and largest > COMPARED_UP_TO:
                note = f"not measured: {largest:,} rank terms in one stack"
                costs.append(StackChoice(way, len(fleet), note=note))
                continue
            if best is not None and len(fleet) == len(best[1].stacks):
                continue  # the same stacks under another name
            found = choose(self._reduced(fleet), self.energies, wanted, self.progress, refine=False)
            costs.append(StackChoice(way, len(fleet), found.bytes))
            if best is None or self._rank(found) < self._rank(best[1]):
                best = way, found
        assert best is not None  # the first way is always measured
        return *best, tuple(costs)

    def _rank(self, found: Choices) -> tuple[float, float]:
        """Smaller is better: for a budget the worst error; else bytes, once the error is met."""
        if isinstance(self.rule, Budget):
            return float(found.errors.max()), found.bytes
        energies = np.ones(len(self.energies)) if self.each else self.energies
        square = float((found.errors**2 * energies).sum()) / max(float(energies.sum()), 1e-300)
        return max(square**0.5, self.epsilon * (1 + 1e-6)), found.bytes

    @property
    def _refines(self) -> bool:
        return self.each and not isinstance(self.rule, Budget)

    def _clusters(self, choices: Choices, wanted: Wanted) -> Clusters:
        """The adapters in clusters, where an error is asked for and sets may be split."""
        reduced = [one.reduced for one in choices.stacks]
        if not self.cluster or isinstance(wanted.rule, Budget):
            return Clusters.one(len(self.energies), reduced)
        return clusters_of(reduced, self.energies, wanted, choices.bytes, self.progress)

    def _wanted(self, spent: int = 0) -> Wanted:
        rule = self.rule
        assert not isinstance(rule, FixedRank)
        if isinstance(rule, Budget):
            spent = self._overhead() if rule.params is None else 0
            require_room(rule, spent)
            return Wanted(rule, self.each, self.options, spent)
        return Wanted(TotalError(rule.epsilon), self.each, self.options)

    def _overhead(self) -> int:
        survey = self.survey
        layers = sum(len(one.integers) for one in survey.modules.values())
        stacks = [
            name
            for name, one in survey.modules.items()
            for _ in range(1 + int(one.integers[:, 1].sum()) // PIECE)
        ]
        return bank_overhead(survey.adapters, survey.contents.tensors, stacks, layers)

    def _reduced(self, fleet: Sequence[FleetStack]) -> list[ReducedStack]:
        found: list[ReducedStack] = []
        survey = self.survey
        goal = Goal(self.epsilon, self.energies, survey.energies, survey.counts, self.factors)
        for stack in fleet:
            if self.progress is not None:
                self.progress(stack.name)
            found += reduce_all(stack, goal, self.route, *self.sketch)
        return found

    def _settled(self, choices: Choices, wanted: Wanted) -> tuple[Made, ...]:
        """All stacks made; with less of the error where what is stored exceeds it."""
        known: dict[tuple[int, object], Made] = {}
        share, made = 1.0, []
        for _ in range(ATTEMPTS):
            made = []
            for at, (weighed, point) in enumerate(zip(choices.stacks, choices.points, strict=True)):
                if (at, point) not in known:
                    if self.progress is not None:
                        self.progress(weighed.reduced.fleet.name)
                    known[at, point] = made_at(weighed, point)
                made.append(known[at, point])
            above = self._above(made)
            if above <= 1:
                break
            share = min(share * 0.999, share / above**2)
            choices = shrunk(choices, self.energies, wanted, share * choices.share)
        return tuple(made)

    def _above(self, made: Sequence[Made]) -> float:
        """The largest error over what was asked for; 0 for a budget."""
        if not self.epsilon:
            return 0.0
        return float(errors_of(made, self.energies, self.each).max(initial=0.0)) / self.epsilon

    def _at_ranks(self, way: Stacking, rule: FixedRank) -> Outcome:
        fleet = stacks_of(self.survey, way, self.group_by)
        reduced = self._reduced(fleet)
        formats = (LOTR.name,) if self.options.formats == auto_forms() else self.options.formats
        options = replace(self.options, formats=formats)
        made = tuple(
            made_at_ranks(one, self.factors[one.fleet.adapters], rule, options) for one in reduced
        )
        routes = {one.fleet.name: one.route for one in reduced}
        one = Clusters.one(len(self.energies), reduced)
        return Outcome(made, way, (StackChoice(way, len(fleet)),), routes, None, "ranks", one)

    def _or_separate(self, outcome: Outcome, choices: Choices) -> Outcome:
        """Each adapter's own ranks cut instead, where that takes less."""
        if not self.epsilon or not self.each or ALONE.name not in self.options.formats:
            return outcome
        reduced = [weighed.reduced for weighed in choices.stacks]
        dtype = self.options.dtype
        separate = separate_ranks(reduced, self.energies, self.epsilon, dtype)
        if any(one.kept is not None for one in reduced):  # of what the bases hold, an estimate
            if separate.bytes >= outcome.bytes:
                return outcome
            other = replace(self, route="apart").made((outcome.stacking,))
            return min(outcome, other, key=lambda one: one.bytes)
        outcome = replace(outcome, bytes_separate=separate.bytes)
        if separate.bytes >= outcome.bytes:
            return outcome
        made = made_separate(reduced, separate, self.options)
        if errors_of(made, self.energies, each=True).max() > self.epsilon:
            return outcome
        one = Clusters.one(len(self.energies), reduced)
        one = replace(one, splits=outcome.clusters.splits)
        return replace(outcome, groups=made, note="separate", clusters=one)


def errors_of(made: Sequence[Made], energies: np.ndarray, each: bool) -> np.ndarray:
    """The measured error of each adapter, or the one of all together, relative to these norms."""
    lost, whole = np.zeros(len(energies)), energies
    for one in made:
        np.add.at(lost, one.adapters, one.distances**2)
    if not each:
        lost, whole = lost.sum(keepdims=True), whole.sum(keepdims=True)
    return np.sqrt(np.divide(lost, whole, out=np.zeros_like(lost), where=whole > 0))


def bank_of(survey: Survey, made: Outcome, asked: Mapping[str, Any]) -> Bank:
    """The bank of groups that were made; its tensors are still in the spool."""
    own = made.note == "shared" and not any(FORMS[one.format].shares for one in made.groups)
    explanation = {
        "chosen": "separate" if own else made.note,
        "bytes_separate": made.bytes_separate,
        "stackings": [vars(way) for way in made.stackings],
        "splits": [vars(split) for split in made.clusters.splits],
    }
    labels = made.clusters.labels
    adapters = [
        replace(adapter, cluster=int(label))
        for adapter, label in zip(survey.adapters, labels, strict=True)
    ]
    groups = [replace(one.group, cluster=int(labels[one.adapters[0]])) for one in made.groups]
    return Bank(
        tuple(adapters),
        {group.name: group for group in groups},
        tuple(survey.contents.tensors),
        asked,
        made.stacking,
        explanation,
    )
