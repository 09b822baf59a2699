"""One joint conversion: the best stacks of all adapters, made and measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from lotr_tn.adapters.storage import is_negligible
from lotr_tn.analysis.forms import LOTR, Options, auto_forms
from lotr_tn.analysis.forms.truncated import FORM as ALONE
from lotr_tn.banks.bank import Stacking
from lotr_tn.banks.file import bank_overhead
from lotr_tn.banks.making.choosing import (
    DESCRIBED,
    NEAR,
    Choices,
    Wanted,
    choose,
)
from lotr_tn.banks.making.clusters import Clusters, clusters_of
from lotr_tn.banks.making.coding import Coding, is_narrow
from lotr_tn.banks.making.outcome import Outcome, StackChoice, sized
from lotr_tn.banks.making.parts import Made, made_at_ranks
from lotr_tn.banks.making.separate import Separate, made_separate, separate_ranks
from lotr_tn.banks.making.settling import Settling, above_of, errors_of, size_of, too_many
from lotr_tn.banks.making.stacks import (
    FleetStack,
    Goal,
    ReducedStack,
    Route,
    is_whole,
    reduce_all,
    stacks_of,
    too_large,
)
from lotr_tn.banks.making.survey import Survey
from lotr_tn.conversion.coding import FILLED
from lotr_tn.errors import OptionError
from lotr_tn.linalg.ranks import Budget, FixedRank, RelativeError, TotalError

FILLS = 3
"""Times that a budget is given out anew, once the size of the whole file is known."""

BankRule: TypeAlias = RelativeError | TotalError | FixedRank | Budget


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
    asked: Mapping[str, Any]  # the same, as the file says it
    progress: Callable[[str], None] | None
    coding: str = "none"  # whether stacks may be in bits

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
        """The groups, made and measured, by the way and in the dtype of the smallest file."""
        if isinstance(self.rule, FixedRank):
            return self._at_ranks(ways[0], self.rule)
        found: list[Outcome] = []
        self._require_room()
        coded = self._in_bits(ways) if self.coding == "auto" else None
        if coded is not None:
            if self._is_met(coded) and is_narrow(coded.groups):
                return coded
            found.append(coded)
        for own in self.options.each:
            job = replace(self, options=replace(self.options, dtype=own.dtype))
            found.append(job._smallest(ways))
            exact = is_negligible(own.dtype, self.epsilon)
            if isinstance(self.rule, Budget) or (found[-1].above <= 1 and exact):
                break  # a wider dtype could not cut more off
        best = min(found, key=self._worth)
        if isinstance(self.rule, Budget) and not self._fits(best):
            unit = "bytes" if self.rule.params is None else "parameters"
            coded = best is coded
            made = "in bits" if coded else "with one direction in every stack"
            raise OptionError(
                f"the smallest bank found, {made}, takes {self._taken(best):,} {unit}; the budget "
                f"is {self.rule.size:,}: ask for more"
            )
        return best

    def _is_met(self, one: Outcome) -> bool:
        """Whether the error is kept, or the size used up."""
        if isinstance(self.rule, Budget):
            return FILLED * self.rule.size <= one.file <= self.rule.size
        return one.above <= 1

    def _worth(self, one: Outcome) -> tuple[float, ...]:
        """Smaller is better: for a size the worst error; else bytes, once the error is met."""
        if isinstance(self.rule, Budget) and not self._fits(one):
            return np.inf, one.file
        if isinstance(self.rule, Budget) and self.coding == "auto":
            return float(errors_of(one.groups, self.energies, self.each).max()), one.file
        return one.rank

    def _in_bits(self, ways: Sequence[Stacking]) -> Outcome | None:
        """The best way of stacking in bits; None where stacks are too large, or no step does.

        For a size that leaves nothing of any adapter, the smallest that leaves something.
        """
        assert not isinstance(self.rule, FixedRank)
        rule = self.rule if isinstance(self.rule, Budget) else TotalError(self.rule.epsilon)
        found: list[Outcome] = []
        costs: dict[Stacking, StackChoice] = {}
        for way in ways:
            fleet = stacks_of(self.survey, way, self.group_by)
            note = too_large(fleet) if way != ways[0] else None
            if note is not None or len(fleet) in {one.stacks for one in costs.values()}:
                if note is not None:
                    costs[way] = StackChoice(way, len(fleet), note=note)
                continue
            if not all(map(is_whole, fleet)):
                continue
            base = Outcome((), way, (), {}, None, "shared", Clusters.one(len(self.energies), []))

            def made(groups: Sequence[Made], base: Outcome = base) -> Outcome:
                return sized(self.survey, replace(base, groups=tuple(groups)), self.asked)

            coding = Coding(
                tuple(fleet), self.energies, rule, self.each, lambda groups: made(groups).file
            )
            least = min((one.file for one in found), default=np.inf)
            beside = DESCRIBED * len(fleet) + sum(
                content.entry.nbytes for content in self.survey.contents.tensors
            )
            groups = coding.best(np.inf if isinstance(rule, Budget) else least - beside)
            if groups is None:
                if found:
                    note = f"not made: more than {least:,} bytes"
                    costs[way] = StackChoice(way, len(fleet), note=note)
                continue
            above = above_of(groups, self.energies, self.epsilon, self.each)
            routes = {one.name: "whole" for one in fleet}
            found.append(replace(made(groups), above=above, routes=routes))
            costs[way] = StackChoice(way, len(fleet), found[-1].file)
        if not found:
            return None
        told = tuple(costs[way] for way in ways if way in costs)
        return replace(min(found, key=self._worth), stackings=told)

    def _smallest(self, ways: Sequence[Stacking]) -> Outcome:
        """The best way of stacking in one dtype; those that come near the best are made."""
        wanted = self._wanted()
        plans, costs = self._plans(ways, wanted)
        best: Outcome | None = None
        while plans:
            way = min(plans, key=lambda way: self._rank(plans[way]))
            choices = plans.pop(way)  # curves of all stacks, which may be found anew
            stacks = len(choices.stacks)
            if best is not None and not self._near(choices, best):
                note = f"not made: about {choices.bytes:,} bytes of stacks by its curves"
                costs[way] = StackChoice(way, stacks, note=note)
                continue
            found = self._by(way, choices, wanted)
            costs[way] = StackChoice(way, stacks, found.file)
            best = found if best is None else min(best, found, key=lambda one: one.rank)
        assert best is not None  # the first way is always measured
        told = tuple(costs[way] for way in ways if way in costs)
        return replace(best, stackings=told)

    def _near(self, choices: Choices, best: Outcome) -> bool:
        """Whether what is predicted leaves a way a chance; for a budget one that fits is made."""
        if isinstance(self.rule, Budget):
            return not self._fits(best)
        return choices.least < size_of(best.groups)

    def _taken(self, one: Outcome) -> int:
        """What of a budget is taken."""
        assert isinstance(self.rule, Budget)
        return one.file if self.rule.params is None else sum(made.numbers for made in one.groups)

    def _fits(self, one: Outcome) -> bool:
        """Whether a budget has room for it."""
        assert isinstance(self.rule, Budget)
        return self._taken(one) <= self.rule.size

    def _by(self, way: Stacking, choices: Choices, wanted: Wanted) -> Outcome:
        """All stacks of one way, made; each adapter cut for itself where that takes less."""
        clusters = self._clusters(choices, wanted)
        split = len(np.unique(clusters.labels)) > 1
        separate = self._separate(choices)
        alone = None if separate is None else self._alone(way, choices, separate)
        if alone is not None:
            alone = replace(alone, clusters=replace(alone.clusters, splits=clusters.splits))
            if not split and self._leaves_nothing(alone, choices):
                return sized(self.survey, alone, self.asked)
        if split:
            choices = choose(clusters.stacks, self.energies, wanted, self.progress)
        elif self._refines:
            stacks = [weighed.reduced for weighed in choices.stacks]
            choices = choose(stacks, self.energies, wanted, self.progress, known=choices)
        made = Settling(wanted, self.energies, self.epsilon, self.progress).best(choices)
        routes = {one.reduced.fleet.name: one.reduced.route for one in choices.stacks}
        known = None if separate is None else separate.bytes
        above = above_of(made, self.energies, self.epsilon, self.each)
        outcome = Outcome(made, way, (), routes, known, "shared", clusters, above)
        outcome = self._filled(sized(self.survey, outcome, self.asked), choices, wanted)
        if alone is None:
            return self._or_apart(outcome, choices)
        return min(outcome, sized(self.survey, alone, self.asked), key=lambda one: one.rank)

    def _filled(self, outcome: Outcome, choices: Choices, wanted: Wanted) -> Outcome:
        """With what a budget of bytes has left, now that what is no number of a stack is known."""
        if not isinstance(self.rule, Budget) or self.rule.params is not None:
            return outcome
        stacks = [weighed.reduced for weighed in choices.stacks]
        spent = outcome.file - _counted(choices)
        for left in reversed(range(FILLS)):
            if not left and not self._fits(outcome):
                spent = self.rule.size  # the least of all stacks
            wanted = replace(wanted, spent=spent)
            again = choose(stacks, self.energies, wanted, self.progress, known=choices)
            gained = _counted(again) > _counted(choices)
            if again.points == choices.points or (self._fits(outcome) and not gained):
                break
            made = Settling(wanted, self.energies, self.epsilon, self.progress).best(again)
            other = sized(self.survey, replace(outcome, groups=made), self.asked)
            spent = other.file - _counted(again)
            if self._fits(other) or other.file < outcome.file:
                outcome, choices = other, again
        return outcome

    def _leaves_nothing(self, alone: Outcome, choices: Choices) -> bool:
        """Whether the curves of all stacks let nothing be smaller than adapters cut alone."""
        return alone.above <= 1 and size_of(alone.groups) <= choices.least

    def _plans(
        self, ways: Sequence[Stacking], wanted: Wanted
    ) -> tuple[dict[Stacking, Choices], dict[Stacking, StackChoice]]:
        """What the curves choose for each way, and why a way is not looked at."""
        plans: dict[Stacking, Choices] = {}
        costs: dict[Stacking, StackChoice] = {}
        fleets = {way: stacks_of(self.survey, way, self.group_by) for way in ways}
        counts: set[int] = set()
        separate: Separate | None = None
        for way in sorted(ways, key=lambda way: len(fleets[way])):  # the fewest headers first
            fleet, note = fleets[way], None
            if len(fleet) in counts:
                continue  # the same stacks under another name
            if way != ways[0]:  # whose stacks are the smallest, where there are several
                note = too_large(fleet)
            elif plans and not isinstance(self.rule, Budget):
                note = too_many(fleet, min(plans.values(), key=lambda one: one.bytes), separate)
            if note is not None:
                costs[way] = StackChoice(way, len(fleet), note=note)
                continue
            counts.add(len(fleet))
            reduced = self._reduced(fleet)
            first = replace(wanted, spent=self._overhead(fleet))
            plans[way] = choose(reduced, self.energies, first, self.progress, refine=False)
            separate = separate or self._separate(plans[way])
        return {way: plans[way] for way in ways if way in plans}, costs

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
        few = len(self.energies) < 3  # apart, two have nothing to share: a way of its own
        if few or not self.cluster or isinstance(wanted.rule, Budget):
            return Clusters.one(len(self.energies), reduced)
        return clusters_of(reduced, self.energies, wanted, choices.bytes, self.progress)

    def _wanted(self) -> Wanted:
        rule = self.rule
        assert not isinstance(rule, FixedRank)
        rule = rule if isinstance(rule, Budget) else TotalError(rule.epsilon)
        return Wanted(rule, self.each, self.options)

    def _require_room(self) -> None:
        """Refuse a budget that other things than updates use up alone."""
        if not isinstance(self.rule, Budget) or self.rule.params is not None:
            return
        taken = sum(content.entry.nbytes for content in self.survey.contents.tensors)
        if self.rule.size <= taken:
            raise OptionError(
                f"heads and configurations alone take {taken:,} bytes; the budget is "
                f"{self.rule.size:,}: ask for more"
            )

    def _overhead(self, fleet: Sequence[FleetStack]) -> int:
        """About what of a budget of bytes all but the counted parts of stacks will take."""
        if not isinstance(self.rule, Budget) or self.rule.params is not None:
            return 0
        survey = self.survey
        layers = sum(len(stack.layers) for stack in fleet)
        beside = bank_overhead(survey.adapters, survey.contents.tensors, layers)
        return beside + DESCRIBED * len(fleet)

    def _reduced(self, fleet: Sequence[FleetStack]) -> list[ReducedStack]:
        found: list[ReducedStack] = []
        survey = self.survey
        goal = Goal(self.epsilon, self.energies, survey.energies, survey.counts, self.factors)
        for stack in fleet:
            if self.progress is not None:
                self.progress(stack.name)
            found += reduce_all(stack, goal, self.route, *self.sketch)
        return found

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
        outcome = Outcome(made, way, (), routes, None, "ranks", one)
        outcome = sized(self.survey, outcome, self.asked)
        return replace(outcome, stackings=(StackChoice(way, len(fleet), outcome.file),))

    def _separate(self, choices: Choices) -> Separate | None:
        """The ranks of each adapter cut for itself, where an error is asked of each."""
        if not self.epsilon or not self.each or ALONE.name not in self.options.formats:
            return None
        reduced = [weighed.reduced for weighed in choices.stacks]
        return separate_ranks(reduced, self.energies, self.epsilon, self.options.dtype)

    def _alone(self, way: Stacking, choices: Choices, separate: Separate) -> Outcome | None:
        """Each adapter cut for itself; None where that is more, or needs the originals."""
        reduced = [weighed.reduced for weighed in choices.stacks]
        if separate.bytes >= NEAR * choices.numbers or any(x.kept is not None for x in reduced):
            return None
        made = made_separate(reduced, separate, self.options)
        routes = {one.fleet.name: one.route for one in reduced}
        one = Clusters.one(len(self.energies), reduced)
        above = above_of(made, self.energies, self.epsilon, self.each)
        return Outcome(made, way, (), routes, separate.bytes, "separate", one, above)

    def _or_apart(self, outcome: Outcome, choices: Choices) -> Outcome:
        """Each adapter cut for itself instead, of stacks that are known between bases alone."""
        reduced = [weighed.reduced for weighed in choices.stacks]
        known = outcome.bytes_separate
        if known is None or all(one.kept is None for one in reduced):
            return outcome
        outcome = replace(outcome, bytes_separate=None)  # of what the bases hold: an estimate
        if known >= outcome.bytes:
            return outcome
        other = replace(self, route="apart")._smallest((outcome.stacking,))
        return min(outcome, other, key=lambda one: one.bytes)


def _counted(choices: Choices) -> int:
    """What of a budget of bytes the points of all stacks were counted to take."""
    return choices.bytes - DESCRIBED * len(choices.stacks)
