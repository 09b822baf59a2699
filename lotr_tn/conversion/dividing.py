"""One error or size for all groups of an adapter: divided over them, by the best way to group."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lotr_tn.adapters.adapter import LoRAAdapter, LoRAGroup, LoTRAdapter, LoTRGroup
from lotr_tn.adapters.asked import Asked, Where
from lotr_tn.adapters.question import Question, is_met, measure
from lotr_tn.adapters.storage import AdapterRule
from lotr_tn.adapters.ways import Grouped
from lotr_tn.analysis.choice import Choice
from lotr_tn.analysis.division import bounded, require_room
from lotr_tn.analysis.truncation import cut_tails
from lotr_tn.conversion.coding import coded_together
from lotr_tn.conversion.made import Made, chosen_group, chosen_size, energy_of, kept_as_is, rank_of
from lotr_tn.conversion.outcome import Conversion
from lotr_tn.decompose.coded import codable
from lotr_tn.files.budget import spent_beside
from lotr_tn.files.dialects.native import native_size
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.ranks import Budget, TotalError

Tell = Callable[[str], None]


def divided_together(
    adapter: LoRAAdapter, asked: Asked, where: Where, ways: Sequence[Grouped], tell: Tell
) -> Conversion:
    """A budget or an error divided over all groups, by the best way to group them."""
    rule = asked.rule
    assert isinstance(rule, Budget | TotalError)
    options, known = asked.options(adapter.dtype), ()
    shared: list[_Shared] = []
    for way in ways:
        groups = list(way.groups.values())
        measured = measure(groups, options, asked.limits, where, tell, known)
        known = (*known, *measured)
        kept = as_they_are(way)
        spent = spent_beside(rule, [adapter], way.groups, way.kept, way.name)
        converted = sum(one.subject.coordinates.energy for one in measured)
        whole = converted + sum(energy_of(one.made) for one in kept)
        only = _without_kept(rule, converted, whole)
        question = Question(only, options, measured, spent)
        one = _Shared(adapter, way, question, kept, whole)
        if isinstance(rule, Budget) and rule.params is None:
            one = replace(one, question=replace(question, size_of=one.size_of))
        shared.append(one)
    found = []
    if asked.coding != "none":
        coded = [one.coded_together(rule) for one in shared]
        found = [one for one in coded if one is not None]
    found.append(_best_divided(shared, rule, tell))
    best = min(found, key=lambda one: worth_of(rule, one))
    _require_room(rule, best, ways[0].groups)
    return best


def _best_divided(shared: "Sequence[_Shared]", rule: Budget | TotalError, tell: Tell) -> Conversion:
    best: Conversion | None = None
    for one in sorted(shared, key=lambda one: one.question.divided[0].rank):
        if best is None or one.may_beat(best):
            found = one.divided(rule, tell)
            best = found if best is None else min(best, found, key=lambda x: worth_of(rule, x))
    assert best is not None  # there is a way
    return best


@dataclass(frozen=True, eq=False)
class _Shared:
    """A budget or an error asked of the groups of one way."""

    adapter: LoRAAdapter
    way: Grouped
    question: Question
    kept: list[Made]  # its groups that are kept
    energy: float  # ‖T‖² with those that are kept

    def may_beat(self, best: Conversion) -> bool:
        """Whether its bound leaves it a chance."""
        rule = self.question.rule
        assert isinstance(rule, Budget | TotalError)
        bound = min(one.division.bound for one in self.question.divided)
        if isinstance(rule, TotalError):
            return bound < native_size(replace(best.adapter, extras={}))
        return _taken(rule, best) > rule.size or bound <= best.relative_error**2 * self.energy

    def size_of(self, choices: Sequence[Choice]) -> int:
        """Bytes of the file of the groups as they were chosen."""
        kept = [one.made for one in self.kept]
        return chosen_size(self.adapter, self.way.groups.values(), choices, self.way.name, kept)

    def divided(self, rule: Budget | TotalError, tell: Tell) -> Conversion:
        """In numbers: every group at its part of the error or the size."""
        question, groups = self.question, list(self.way.groups.values())
        tails: dict[str, np.ndarray] = {}

        def look(group: LoRAGroup, stack: LoRAStack) -> None:
            tell(group.name)
            if group.name not in tails:
                tails[group.name] = cut_tails(stack)

        division, choices = question.answers(look)
        made = [
            Made(group, chosen_group(group, choice), tails[group.name], met=True)
            for group, choice in zip(groups, choices, strict=True)
        ]
        conversion = finished(self.adapter, self.way, [*made, *self.kept])
        return replace(
            conversion,
            met=is_met(rule, (), conversion.relative_error),
            bound=question.bound(division, self.energy),
            bound_unit="bytes" if isinstance(rule, TotalError) else "relative error",
            bound_forms=bounded(question.options.formats),
        )

    def coded_together(self, rule: Budget | TotalError) -> Conversion | None:
        """In bits, all groups by one step; None where no step does."""
        groups = list(self.way.groups.values())
        each = [codable(measured.stack) for measured in self.question.measured]
        codables = [lora for lora in each if lora is not None]
        if len(codables) < len(each):
            return None

        def made_of(made: Sequence[LoTRGroup]) -> Conversion:
            parts = zip(groups, made, (lora.tails for lora in codables), strict=True)
            coded = [Made(*part, met=True) for part in parts]
            return finished(self.adapter, self.way, [*coded, *self.kept])

        found = coded_together(
            groups,
            codables,
            rule,
            energy=self.energy,
            size_of=lambda made: native_size(made_of(made).adapter),
        )
        if found is None:
            return None
        conversion = made_of(found)
        return replace(conversion, met=is_met(rule, (), conversion.relative_error))


def as_they_are(way: Grouped) -> list[Made]:
    """The groups that are kept."""
    found = []
    for group in way.kept.values():
        stack = group.stack
        found.append(Made(group, kept_as_is(group, stack), cut_tails(stack), met=True))
    return found


def finished(adapter: LoRAAdapter, way: Grouped, made: Sequence[Made]) -> Conversion:
    """The conversion of groups that were made."""
    groups = {one.made.name: one.made for one in made}
    converted = LoTRAdapter.of_lora(adapter, groups, way.name)
    return Conversion(converted, tuple(one.report for one in made), all(one.met for one in made))


def worth_of(rule: AdapterRule, one: Conversion) -> tuple[float, ...]:
    """Smaller is better."""
    size = native_size(one.adapter)
    if isinstance(rule, Budget) and _taken(rule, one, size) > rule.size:
        return (2, size)
    return rank_of(rule, size, one.relative_error, one.met)


def _taken(rule: Budget, one: Conversion, size: int | None = None) -> int:
    """What a conversion takes of a budget; `size` is that of its file, where it is known."""
    if rule.params is not None:
        return one.total("parameters_after")
    return native_size(one.adapter) if size is None else size


def _require_room(
    rule: Budget | TotalError, best: Conversion, converted: Mapping[str, LoRAGroup]
) -> None:
    """Refuse a budget that has no room for the smallest that was found."""
    if not isinstance(rule, Budget):
        return
    modules = {target.name for group in converted.values() for target in group.targets}
    own = [group for group in best.groups if modules.issuperset(group.modules)]
    unit = "bytes_after" if rule.params is None else "parameters_after"
    taken, coded = _taken(rule, best), any(group.coded for group in best.groups)
    require_room(rule, taken, taken - sum(getattr(group, unit) for group in own), coded=coded)


def _without_kept(rule: Budget | TotalError, converted: float, whole: float) -> Budget | TotalError:
    """The rule for the groups that are converted, of squared norms: the others lose nothing."""
    if isinstance(rule, Budget) or not 0 < converted < whole:
        return rule
    return TotalError(min(rule.epsilon / (converted / whole) ** 0.5, 1 - 1e-9))
