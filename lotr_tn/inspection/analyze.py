"""An adapter, or several, before anything is converted: what each form would cost and lose."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from lotr_tn._arguments import door
from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.adapters.adapter import Adapter, LoRAAdapter, LoTRAdapter
from lotr_tn.adapters.as_lora import as_lora_adapter
from lotr_tn.adapters.asked import Asked, Where
from lotr_tn.adapters.base_models import base_model_of
from lotr_tn.adapters.grouping import lora_groups
from lotr_tn.adapters.paths import require_common, shapes_of
from lotr_tn.adapters.question import Measured, Question, Rule, is_met, measure
from lotr_tn.adapters.restrictions import Limits
from lotr_tn.adapters.stackings import LARGEST_STACK, Stacking, rules_of, stackings_of
from lotr_tn.analysis.candidates import joint_error
from lotr_tn.analysis.choice import Choice
from lotr_tn.analysis.clustering import clusters_of
from lotr_tn.analysis.division import Division, division_path, require_room
from lotr_tn.analysis.forms import FORMS, FormatName, Options
from lotr_tn.analysis.subspaces import overlaps_of
from lotr_tn.banks.making.conversion import make_bank
from lotr_tn.conversion.coding import require_codable
from lotr_tn.conversion.convert import Converting
from lotr_tn.conversion.made import chosen_size, rank_of
from lotr_tn.errors import CheckpointError, OptionError, listed, meant
from lotr_tn.files.budget import heads_of, spent_beside
from lotr_tn.files.dialects.native import native_size
from lotr_tn.files.places import name_of, told_apart
from lotr_tn.inspection.analysis import Analysis, BankCost, BitsCost, GroupAnalysis, StackingCost
from lotr_tn.inspection.bits import bits_curves
from lotr_tn.linalg.ranks import Budget, FixedRank, RankLimits, RelativeError, TotalError

PATH = 100  # whole-adapter budgets that are listed


@door
def analyze_adapters(
    adapters: Sequence[Adapter],
    question: Rule | None = None,
    *,
    group_by: str = "kind",
    groups: Sequence[str] = (),
    formats: Sequence[FormatName] = (),
    dtype: str = "auto",
    limits: Limits = None,
    stack_all: bool = False,
    coding: str = "none",
    progress: Callable[[str], None] | None = None,
) -> Analysis:
    """What every format and every way of stacking would cost and lose, and which is best.

    Args:
        adapters: one adapter, or several of one base. LoTR adapters are analysed as the LoRA that
            they export to.
        question: a `RelativeError` for each group (0.05 where left out), a `TotalError` or a
            `Budget` for all groups together.
        group_by: `kind`, `shape` or a regular expression; see `group_modules`.
        groups: names of the groups to analyse; all where left out.
        formats: forms that are looked at beside those of `auto`, which are made and measured.
        dtype: storage dtype of the candidates, or `auto`: what `convert_adapter` would take.
        limits: the ranks that may be chosen; by group name, where they differ.
        stack_all: whether to measure ways of stacking whose stacks are larger than 1024 rank
            terms, which takes seconds to minutes.
        coding: `auto` makes the file, or the bank, in bits too, aside; see `convert_adapter`.
        progress: called with the name of each stack before it is looked at.

    Returns:
        An `Analysis`. The candidates chosen are made and measured: `convert_adapter` with
        `format="auto"` and the same question gives the very same.

    Raises:
        CheckpointError: no adapter, or adapters without a common base.
        OptionError: an unknown group, or a question that makes no sense.

    Cost: for each stack its coordinates and curves (about a HOSVD), the tree of its layers (about
    as much again), and one or two decompositions; memory of O(R²) for each stack.
    """
    question = RelativeError(0.05) if question is None else question
    common = Asked(question, "auto", group_by=group_by, dtype=dtype, limits=limits)
    asked = replace(common, beside=tuple(formats), coding=coding)
    return Analysing.of(adapters, asked, groups, stack_all=stack_all).run(progress)


@dataclass(frozen=True, eq=False)
class Analysing:
    """One analysis: the adapters, the ways to stack them, and what is asked."""

    sources: tuple[str, ...]  # where they were read from
    lotr_sources: tuple[str, ...]  # those that are LoTR already
    adapters: Mapping[str, LoRAAdapter]  # the adapters by name, with the modules that are analysed
    asked: Asked  # what is asked
    rule: Rule  # the same, as an error or a size
    options: Options  # how candidates are made
    # the ways of stacking, with why one is not measured
    ways: tuple[tuple[Stacking, str | None], ...]

    @classmethod
    def of(
        cls, adapters: Sequence[Adapter], asked: Asked, groups: Sequence[str], *, stack_all: bool
    ) -> "Analysing":
        """The analysis of adapters; refused as by `analyze_adapters`."""
        rule = asked.rule
        if isinstance(rule, FixedRank):
            raise OptionError("an analysis asks for an error or a size; ranks are what it answers")
        require_codable(asked)
        if asked.coding != "none" and len(adapters) > 1 and _bank_error(asked) is None:
            raise OptionError(
                "what several adapters take in bits is told for an error of each, or of all "
                "together; ask for one, or make the bank that you mean"
            )
        if groups:  # they are named by the first way of grouping
            asked = replace(asked, group_by=rules_of(asked.group_by)[0])
        named = _restricted(_named(adapters), asked.group_by, groups)
        _require_one_base(named)
        own = min((a.dtype for a in named.values()), key=lambda dtype: UNIT_ROUNDOFF[dtype])
        first, *others = stackings_of(named, asked.group_by)
        ways = [(first, None), *((way, _note(way, asked, stack_all)) for way in others)]
        sources = tuple(str(adapter.source) for adapter in adapters)
        lotr = tuple(str(one.source) for one in adapters if isinstance(one, LoTRAdapter))
        return cls(sources, lotr, named, asked, rule, asked.options(own), tuple(ways))

    @property
    def steps(self) -> int:
        """How often `run` tells of its progress."""
        return sum(len(way.groups) for way, note in self.ways if note is None)

    def run(self, progress: Callable[[str], None] | None = None) -> Analysis:
        """Analyse; `progress` is called with the name of each stack."""
        begun = time.perf_counter()
        best, costs = self._compared(progress)
        question, division, choices = best.question, best.division, best.choices
        groups = []
        for stacked, subject, choice in zip(
            best.way.groups, question.subjects, choices, strict=True
        ):
            overlaps = overlaps_of(subject.coordinates)
            error = choice.candidate.relative_error or self._error
            clustering = clusters_of(subject.coordinates, overlaps, subject.curves, error)
            groups.append(GroupAnalysis(stacked, subject, choice, overlaps, clustering))
        found = [choice.candidate for choice in choices]
        joint = joint_error(found, question.subjects)
        energy = sum(subject.coordinates.energy for subject in question.subjects)
        narrow = replace(self.options, dtype=best.dtype, others=())
        path = division_path(question.subjects, narrow, PATH)
        return Analysis(
            self.sources,
            next(filter(None, map(base_model_of, self.adapters.values())), None),
            self.rule,
            best.dtype,
            tuple(groups),
            costs,
            tuple(question.at(points, narrow) for points in path),
            is_met(self.rule, [candidate.relative_error for candidate in found], joint),
            time.perf_counter() - begun,
            question.bound(division, energy),
            self._bank(),
            self.lotr_sources,
            self._in_bits(best),
        )

    def _in_bits(self, best: "_Answered") -> BitsCost | None:
        """The file of one adapter in bits, made aside."""
        if self.asked.coding == "none" or len(self.adapters) > 1:
            return None
        (adapter,) = self.adapters.values()
        asked = replace(self.asked, group_by=best.way.name, beside=())
        done = Converting.of(adapter, asked, Where()).run()
        curves = bits_curves([one.stack for one in best.question.measured])
        return BitsCost(native_size(done.adapter), done.bytes_after, done.relative_error, curves)

    def _bank(self) -> BankCost | None:
        """The bank of several adapters, made aside, where an error is asked for."""
        asked, rule = self.asked, _bank_error(self.asked)
        if len(self.adapters) < 2 or rule is None:
            return None
        names = told_apart([name_of(Path(source)) for source in self.sources], self.sources)
        named = dict(zip(names, self.adapters.values(), strict=True))
        if len(named) < len(names):  # they were read from nowhere
            named = self.adapters
        by, dtype = rules_of(asked.group_by)[0], asked.dtype
        with TemporaryDirectory() as folder:
            path = Path(folder) / "bank.lotr.safetensors"
            made = make_bank(
                named,
                path,
                rule,
                group_by=by,
                dtype=dtype,
                any_base=True,
                coding=asked.coding,
            )
            together = isinstance(rule, TotalError)
            return BankCost(
                path.stat().st_size,
                sum(x.entry.nbytes for one in made.bank.groups.values() for x in one.tensors),
                made.parameters_after,
                made.bank.relative_error if together else max(made.errors.values()),
                made.bank.stacking,
                made.met,
            )

    def _compared(
        self, progress: Callable[[str], None] | None
    ) -> "tuple[_Answered, tuple[StackingCost, ...]]":
        """All ways of stacking, made; the one that was asked for, or else the best, is chosen."""
        found: dict[str, _Answered] = {}
        for way, note in self.ways:
            if note is None:
                known = [one for other in found.values() for one in other.question.measured]
                found[way.name] = self._answered(self._question(way, known, progress), way)
        free = len(self.adapters) > 1 or self.asked.group_by == "auto"
        best = min(found.values(), key=lambda one: one.rank) if free else next(iter(found.values()))
        best.require_room()
        costs = [
            found[way.name].cost(chosen=way is best.way)
            if note is None
            else StackingCost(way.name, way.label, len(way.groups), note=note)
            for way, note in self.ways
        ]
        return best, tuple(costs)

    def _answered(self, question: Question, way: Stacking) -> "_Answered":
        """One way, made as `convert_adapter` makes it."""
        division, choices = question.answers()
        size = self._size(way, choices)
        found = [choice.candidate for choice in choices]
        error = joint_error(found, question.subjects)
        met = is_met(self.rule, [one.relative_error for one in found], error)
        rank = rank_of(self.rule, size, error, met)
        if isinstance(self.rule, Budget) and question.taken(choices) > self.rule.size:
            rank = (2, question.taken(choices))  # it is told where none fits
        return _Answered(way, question, division, choices, size, error, rank)

    def _question(
        self, way: Stacking, known: Sequence[Measured], progress: Callable[[str], None] | None
    ) -> Question:
        groups = {stacked.name: stacked.group for stacked in way.groups}
        limits = self.asked.limits
        measured = measure(list(groups.values()), self.options, limits, Where(), progress, known)
        adapters = list(self.adapters.values())
        spent = spent_beside(self.rule, adapters, groups, {}, way.name)
        question = Question(self.rule, self.options, measured, spent)
        if not isinstance(self.rule, Budget) or self.rule.params is not None:
            return question
        heads = heads_of(adapters[1:])
        return replace(question, size_of=lambda choices: heads + self._size(way, choices))

    def _size(self, way: Stacking, choices: Sequence[Choice]) -> int:
        """Bytes of the file of one way, as it was chosen."""
        first = next(iter(self.adapters.values()))
        groups = [stacked.group for stacked in way.groups]
        return chosen_size(first, groups, choices, way.name)

    @property
    def _error(self) -> float:
        """The error asked for; for a budget 5%, where the LoRA as it is fits."""
        return 0.05 if isinstance(self.rule, Budget) else self.rule.epsilon


@dataclass(frozen=True, eq=False)
class _Answered:
    """A way of stacking, made and measured."""

    way: Stacking
    question: Question
    division: Division | None
    choices: list[Choice]
    bytes: int  # of the file
    error: float  # of all updates together
    rank: tuple[float, ...]  # smaller is better

    @property
    def dtype(self) -> str:
        """The finest dtype of what is not kept as it is."""
        made = [c.candidate.dtype for c in self.choices if not FORMS[c.candidate.format].kept]
        names = made or [self.question.options.dtype]
        return min(names, key=lambda name: UNIT_ROUNDOFF[name])

    def require_room(self) -> None:
        """Refuse a budget that has no room for it."""
        rule = self.question.rule
        if isinstance(rule, Budget):
            found, numbers = [one.candidate for one in self.choices], rule.params is not None
            own = sum(one.parameters if numbers else one.bytes for one in found)
            taken = self.question.taken(self.choices)
            require_room(rule, taken, taken - own)

    def cost(self, *, chosen: bool) -> StackingCost:
        """What it takes and loses."""
        numbers = sum(choice.candidate.parameters for choice in self.choices)
        count = len(self.way.groups)
        figures = numbers, self.bytes, self.error, chosen
        return StackingCost(self.way.name, self.way.label, count, *figures)


def _bank_error(asked: Asked) -> RelativeError | TotalError | None:
    """The error that a bank is made for; None where what is asked is none of a bank."""
    free = asked.limits in (None, RankLimits()) and not asked.each_layer
    return asked.rule if free and isinstance(asked.rule, RelativeError | TotalError) else None


def _note(way: Stacking, asked: Asked, stack_all: bool) -> str | None:
    """Why another way of stacking is not measured; None where it is."""
    largest = max(sum(t.rank for t in g.group.targets) for g in way.groups)
    if isinstance(asked.limits, Mapping):
        return "not measured: ranks are limited by the names of groups"
    if largest > LARGEST_STACK and not stack_all:
        return f"not measured: {largest:,} rank terms in one stack (stack_all=True)"
    return None


def _named(adapters: Sequence[Adapter]) -> dict[str, LoRAAdapter]:
    """The adapters as LoRAs, by the shortest tails of their paths that differ."""
    if not adapters:
        raise CheckpointError("an analysis needs at least one adapter")
    paths = [Path(str(adapter.source or f"adapter {i}")) for i, adapter in enumerate(adapters)]
    tails: list[str] = []
    for depth in range(1, 21):
        tails = ["/".join(path.resolve().parts[-depth:]) for path in paths]
        if len(set(tails)) == len(tails):
            break
    else:
        twice = next(path for path, tail in zip(paths, tails, strict=True) if tails.count(tail) > 1)
        raise CheckpointError(f"{twice} is named twice; name each adapter once")
    return dict(zip(tails, map(as_lora_adapter, adapters), strict=True))


def _require_one_base(adapters: Mapping[str, LoRAAdapter]) -> None:
    """Refuse adapters whose modules of one path differ in shape, or that have none in common."""
    seen: dict[str, tuple[str, tuple[int, int]]] = {}
    for name, adapter in adapters.items():
        require_common(seen, name, shapes_of(adapter))
        for module in adapter.modules:
            path = module.target.name
            other, shape = seen.setdefault(path, (name, module.shape))
            if shape != module.shape:
                raise CheckpointError(
                    f"{path} is {shape[0]}x{shape[1]} in {other} and {module.shape[0]}x"
                    f"{module.shape[1]} in {name}; needed adapters of one base"
                )


def _restricted(
    adapters: Mapping[str, LoRAAdapter], group_by: str, names: Sequence[str]
) -> Mapping[str, LoRAAdapter]:
    """The adapters with the modules of the named groups alone; all modules where none is named."""
    if not names:
        return adapters
    grouped = {name: lora_groups(adapter, group_by) for name, adapter in adapters.items()}
    known = list(dict.fromkeys(group for groups in grouped.values() for group in groups))
    for name in names:
        if name not in known:
            raise OptionError(
                f"there is no group {name!r}; the groups are {listed(known)}{meant(name, known)}"
            )
    kept = {
        name: tuple(m for group in names if group in groups for m in groups[group].modules)
        for name, groups in grouped.items()
    }
    return {name: replace(adapters[name], modules=modules) for name, modules in kept.items()}
