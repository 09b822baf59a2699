"""An adapter, or several, before anything is converted: what each form would cost and lose."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.adapters.adapter import Adapter, LoRAAdapter
from lotr_tn.adapters.as_lora import to_lora
from lotr_tn.adapters.grouping import lora_groups
from lotr_tn.adapters.restrictions import Limits, limits_of
from lotr_tn.adapters.stackings import StackedGroup, Stacking, stackings_of
from lotr_tn.adapters.storage import storage_dtype_for
from lotr_tn.analysis.candidates import (
    Candidate,
    Subject,
    joint_error,
    predicted_candidate,
)
from lotr_tn.analysis.choice import Choice, allowed_loss, choose_within
from lotr_tn.analysis.clustering import Clustering, clusters_of
from lotr_tn.analysis.coordinates import coordinates_of
from lotr_tn.analysis.curve import best_point
from lotr_tn.analysis.division import Point, divide, division_path, settle
from lotr_tn.analysis.forms import LORA, Options, auto_forms
from lotr_tn.analysis.subspaces import Overlaps, overlaps_of
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.files.dialects.native import overhead
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.ranks import (
    Budget,
    Energy,
    FixedRank,
    RelativeError,
    TotalError,
)

__all__ = ["Analysis", "GroupAnalysis", "StackingCost", "analyze_adapters"]

Question: TypeAlias = RelativeError | Energy | TotalError | Budget

LARGEST_STACK = 1024
"""Rank terms of a stack up to which other ways of stacking are measured without being asked for."""

PATH = 100
"""Whole-adapter budgets that are listed."""


@dataclass(frozen=True, eq=False)
class GroupAnalysis:
    """One stack of modules.

    Attributes:
        stacked: its modules and labels.
        subject: its coordinates and curves.
        choice: the format chosen for it, and the others.
        overlaps: of its layers' subspaces.
        clustering: which layers belong together, at this group's error.
    """

    stacked: StackedGroup
    subject: Subject
    choice: Choice
    overlaps: Overlaps
    clustering: Clustering

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, m, n)."""
        return self.stacked.group.shape


@dataclass(frozen=True)
class StackingCost:
    """What one way of stacking all modules would store, with the best format for each stack.

    Attributes:
        stacking: its name.
        label: the same in words.
        stacks: how many stacks it makes.
        parameters: numbers stored, by the curves; None where it was not measured.
        bytes: what they take.
        relative_error: of all updates together, by the curves.
        chosen: whether the groups of the analysis are stacked this way.
        note: why it was not measured.
    """

    stacking: str
    label: str
    stacks: int
    parameters: int | None = None
    bytes: int | None = None
    relative_error: float | None = None
    chosen: bool = False
    note: str | None = None


@dataclass(frozen=True, eq=False)
class Analysis:
    """Adapters of one base, before anything is converted.

    Attributes:
        sources: where they were read from.
        base_model: the base that their configuration names.
        question: what was asked.
        dtype: in which all candidates but the LoRA as it is would be stored.
        groups: the stacks, by the best way of stacking where there are several adapters.
        stackings: all ways of stacking.
        path: for growing budgets the best candidate of every group.
        met: whether the question can be met.
        bound: where a budget or an error is divided over the groups, what no other choice of
            formats and ranks goes below: the relative error for a budget, the bytes for an error.
        seconds: it took.
    """

    sources: tuple[str, ...]
    base_model: str | None
    question: Question
    dtype: str
    groups: tuple[GroupAnalysis, ...]
    stackings: tuple[StackingCost, ...]
    path: tuple[tuple[Candidate, ...], ...]
    met: bool
    seconds: float
    bound: float | None = None

    @property
    def parameters(self) -> int:
        """Numbers that the LoRAs store."""
        return sum(group.subject.stored for group in self.groups)

    @property
    def bytes(self) -> int:
        """Bytes that these take."""
        return sum(
            group.subject.bytes_of(LORA.name, group.subject.stored, self.dtype)
            for group in self.groups
        )

    @property
    def relative_error(self) -> float:
        """Of all updates together, with the candidates chosen."""
        return joint_error(
            [group.choice.candidate for group in self.groups],
            [group.subject for group in self.groups],
        )


def analyze_adapters(
    adapters: Sequence[Adapter],
    question: Question | None = None,
    *,
    group_by: str = "kind",
    groups: Sequence[str] = (),
    dtype: str = "auto",
    limits: Limits = None,
    stack_all: bool = False,
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
        dtype: storage dtype of the candidates, or `auto`: what `convert_adapter` would take.
        limits: the ranks that may be chosen; by group name, where they differ.
        stack_all: whether to measure ways of stacking whose stacks are larger than 1024 rank
            terms, which takes seconds to minutes.
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
    begun = time.perf_counter()
    question = RelativeError(0.05) if question is None else question
    if isinstance(question, FixedRank):
        raise OptionError("an analysis asks for an error or a size; ranks are what it answers")
    named = _restricted(_named(adapters), group_by, groups)
    _require_one_base(named)
    own = min((a.dtype for a in named.values()), key=_coarseness)
    chosen_dtype = storage_dtype_for(own, question) if dtype == "auto" else dtype
    options = Options(auto_forms(), chosen_dtype)
    ways = stackings_of(named, group_by)
    work = _Work(named, question, options, limits, group_by, stack_all, progress)
    best, costs = work.compare(ways)
    choices, bound = work.choices(best)
    analysed, path, met = work.analyse(best, choices)
    return Analysis(
        tuple(str(adapter.source) for adapter in adapters),
        _base_model(named),
        question,
        chosen_dtype,
        analysed,
        tuple(costs),
        path,
        met,
        time.perf_counter() - begun,
        bound,
    )


@dataclass(frozen=True, eq=False)
class _Measured:
    """A way of stacking with the curves of all its stacks, and the points that answer."""

    stacking: Stacking
    subjects: tuple[Subject, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True, eq=False)
class _Work:
    """One analysis: what is analysed, and how."""

    adapters: Mapping[str, LoRAAdapter]
    question: Question
    options: Options
    limits: Limits
    group_by: str
    stack_all: bool
    progress: Callable[[str], None] | None

    def compare(self, ways: list[Stacking]) -> tuple[_Measured, list[StackingCost]]:
        """All ways of stacking; the first one, or of several adapters the smallest, is chosen."""
        measured: dict[str, _Measured] = {}
        costs: list[StackingCost] = []
        for index, way in enumerate(ways):
            largest = max(sum(t.rank for t in g.group.targets) for g in way.groups)
            known = StackingCost(way.name, way.label, len(way.groups))
            note = self._note(largest) if index else None
            if note is not None:
                costs.append(replace(known, note=note))
                continue
            found = measured[way.name] = self._measured(way)
            costs.append(self._cost(known, found))
        best = min(measured, key=lambda name: self._rank(costs, name))
        if len(self.adapters) == 1:
            best = ways[0].name
        costs = [replace(cost, chosen=cost.stacking == best) for cost in costs]
        return measured[best], costs

    def _note(self, largest: int) -> str | None:
        """Why another way of stacking is not measured; None where it is."""
        if isinstance(self.limits, Mapping):
            return "not measured: ranks are limited by the names of groups"
        if largest > LARGEST_STACK and not self.stack_all:
            return f"not measured: {largest:,} rank terms in one stack (--stack-all)"
        return None

    def _rank(self, costs: Sequence[StackingCost], name: str) -> tuple[float, float]:
        """Smaller is better: bytes for an error, the error for a budget."""
        cost = next(cost for cost in costs if cost.stacking == name)
        assert cost.bytes is not None
        assert cost.relative_error is not None
        size = float(cost.bytes)
        error = cost.relative_error
        return (error, size) if isinstance(self.question, Budget) else (size, error)

    def _measured(self, way: Stacking) -> _Measured:
        subjects = []
        limits = limits_of([stacked.name for stacked in way.groups], self.limits)
        for stacked in way.groups:
            if self.progress is not None:
                self.progress(stacked.name)
            group = stacked.group
            options = replace(self.options, limits=limits[stacked.name])
            coordinates = coordinates_of(group.stack)
            subjects.append(Subject.of(coordinates, group.stored, group.dtype, options))
        return _Measured(way, tuple(subjects), self._points(way, subjects))

    def _points(self, way: Stacking, subjects: Sequence[Subject]) -> tuple[Point, ...]:
        """The points of the curves that answer the question."""
        if isinstance(self.question, Budget | TotalError):
            spent = self._spent(way)
            return divide(subjects, self.question, self.options, spent).points
        return tuple(self._smallest(subject, self.question) for subject in subjects)

    def _smallest(self, subject: Subject, rule: RelativeError | Energy) -> Point:
        allowed = allowed_loss(rule.epsilon, subject.coordinates.energy, self.options.dtype)
        best: tuple[int, Point] | None = None
        for name, curve in subject.curves.items():
            place = best_point(curve, allowed)
            if place is not None and curve.parameters[place] <= subject.stored:
                size = predicted_candidate(subject, curve, place, self.options).bytes
                if best is None or size < best[0]:
                    best = size, (name, place)
        assert best is not None  # the LoRA as it is loses nothing
        return best[1]

    def _spent(self, way: Stacking) -> int:
        if not isinstance(self.question, Budget) or self.question.params is not None:
            return 0
        (first, *others) = self.adapters.values()
        groups = {stacked.name: stacked.group for stacked in way.groups}
        beside = sum(t.data.nbytes for other in others for t in other.extras.values())
        return overhead(first, groups, self.group_by) + beside

    def _cost(self, known: StackingCost, found: _Measured) -> StackingCost:
        candidates = [
            predicted_candidate(subject, subject.curves[name], place, self.options)
            for subject, (name, place) in zip(found.subjects, found.points, strict=True)
        ]
        return replace(
            known,
            parameters=sum(candidate.parameters for candidate in candidates),
            bytes=sum(candidate.bytes for candidate in candidates),
            relative_error=joint_error(candidates, found.subjects),
        )

    def analyse(
        self, found: _Measured, choices: Sequence[Choice]
    ) -> tuple[tuple[GroupAnalysis, ...], tuple[tuple[Candidate, ...], ...], bool]:
        """Every stack of the chosen way, with its candidate made and measured."""
        groups = []
        picked = zip(found.stacking.groups, found.subjects, choices, strict=True)
        for stacked, subject, choice in picked:
            overlaps = overlaps_of(subject.coordinates)
            error = choice.candidate.relative_error or self._asked()
            clustering = clusters_of(subject.coordinates, overlaps, subject.curves, error)
            groups.append(GroupAnalysis(stacked, subject, choice, overlaps, clustering))
        path = tuple(
            tuple(
                predicted_candidate(subject, subject.curves[name], place, self.options)
                for subject, (name, place) in zip(found.subjects, points, strict=True)
            )
            for points in division_path(found.subjects, self.options, PATH)
        )
        return tuple(groups), path, self._met(groups)

    def choices(self, found: _Measured) -> tuple[list[Choice], float | None]:
        """What is made of every stack, the very same as a conversion makes; and a bound."""

        def stacks() -> Iterator[LoRAStack]:
            return (stacked.group.stack for stacked in found.stacking.groups)

        if isinstance(self.question, Budget | TotalError):
            spent = self._spent(found.stacking)
            division, made = settle(stacks, found.subjects, self.question, self.options, spent)
            if isinstance(self.question, TotalError):
                return made, division.bound
            energy = sum(subject.coordinates.energy for subject in found.subjects)
            return made, (division.bound / energy) ** 0.5 if energy else 0.0
        pairs = zip(stacks(), found.subjects, strict=True)
        return [choose_within(*pair, self.question, self.options) for pair in pairs], None

    def _asked(self) -> float:
        """The error asked for; for a budget 5%, where the LoRA as it is fits."""
        return 0.05 if isinstance(self.question, Budget) else self.question.epsilon

    def _met(self, groups: Sequence[GroupAnalysis]) -> bool:
        errors = [group.choice.candidate.relative_error for group in groups]
        match self.question:
            case Budget():
                return True
            case TotalError():
                candidates = [group.choice.candidate for group in groups]
                subjects = [group.subject for group in groups]
                return joint_error(candidates, subjects) <= self.question.epsilon
            case _:
                return all(error <= self.question.epsilon for error in errors)


def _coarseness(dtype: str) -> float:
    return UNIT_ROUNDOFF[dtype]


def _named(adapters: Sequence[Adapter]) -> dict[str, LoRAAdapter]:
    """The adapters as LoRAs, by the shortest tails of their paths that differ."""
    if not adapters:
        raise CheckpointError("an analysis needs at least one adapter")
    paths = [Path(str(adapter.source or f"adapter {i}")) for i, adapter in enumerate(adapters)]
    tails = ["/".join(path.resolve().parts[-1:]) for path in paths]
    depth = 1
    while len(set(tails)) < len(tails) and depth < 20:
        depth += 1
        tails = ["/".join(path.resolve().parts[-depth:]) for path in paths]
    if len(set(tails)) < len(tails):
        twice = next(path for path, tail in zip(paths, tails, strict=True) if tails.count(tail) > 1)
        raise CheckpointError(f"{twice} is named twice; name each adapter once")
    loras = [
        a if isinstance(a, LoRAAdapter) else to_lora(a, ranks="minimal").adapter for a in adapters
    ]
    return dict(zip(tails, loras, strict=True))


def _base_model(adapters: Mapping[str, LoRAAdapter]) -> str | None:
    for adapter in adapters.values():
        if name := adapter.config.get("base_model_name_or_path"):
            return str(name)
    return None


def _require_one_base(adapters: Mapping[str, LoRAAdapter]) -> None:
    """Refuse adapters whose modules of one path differ in shape."""
    seen: dict[str, tuple[str, tuple[int, int]]] = {}
    for name, adapter in adapters.items():
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
            raise OptionError(f"there is no group {name!r}; the groups are {', '.join(known)}")
    kept = {
        name: tuple(m for group in names if group in groups for m in groups[group].modules)
        for name, groups in grouped.items()
    }
    return {name: replace(adapters[name], modules=modules) for name, modules in kept.items()}
