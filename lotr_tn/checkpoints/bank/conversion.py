"""Many adapters into one bank: joint conversion in bounded memory."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from lotr_tn.analysis.candidates import Options
from lotr_tn.analysis.curves import FORMATS
from lotr_tn.checkpoints.adapter import Adapter
from lotr_tn.checkpoints.bank.bank import Bank, Stacking
from lotr_tn.checkpoints.bank.choosing import Choices, Wanted, choose, require_room, shrunk
from lotr_tn.checkpoints.bank.clusters import Clusters, clusters_of
from lotr_tn.checkpoints.bank.file import load_bank, overhead, save_bank
from lotr_tn.checkpoints.bank.locking import exclusive
from lotr_tn.checkpoints.bank.making import Made, made_at, made_at_ranks
from lotr_tn.checkpoints.bank.separate import made_separate, separate_ranks
from lotr_tn.checkpoints.bank.spool import Spool
from lotr_tn.checkpoints.bank.stacks import (
    FleetStack,
    Goal,
    Reduced,
    Route,
    reduce_all,
    stacks_of,
)
from lotr_tn.checkpoints.bank.survey import Survey, survey_of
from lotr_tn.checkpoints.conversion import FORMAT_CHOICES, FormatChoice, Method, storage_dtype_for
from lotr_tn.checkpoints.writing import refuse_existing
from lotr_tn.errors import OptionError
from lotr_tn.linalg.ranks import Budget, FixedRank, RelativeError, TotalError

__all__ = ["BankConversion", "BankRule", "StackChoice", "convert_adapters"]

BankRule: TypeAlias = RelativeError | FixedRank | Budget
StackingChoice: TypeAlias = Literal["auto", "adapters", "layers", "all"]
STACKINGS: tuple[Stacking, ...] = ("adapters", "layers", "all")

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
class BankConversion:
    """A bank that was made, and what making it cost and lost.

    Attributes:
        bank: the bank, opened from its file.
        bytes_before: of all tensors of all adapters.
        parameters_before: numbers of all LoRAs.
        parameters_after: numbers of all stacks.
        bytes_separate: what each adapter's own ranks, cut at the same error, would take; None
            where it was not computed.
        stackings: the ways of stacking that were compared.
        routes: how each stack was made small.
        met: whether the rule was met.
    """

    bank: Bank
    bytes_before: int
    parameters_before: int
    parameters_after: int
    bytes_separate: int | None
    stackings: tuple[StackChoice, ...]
    routes: Mapping[str, str]
    met: bool

    @property
    def errors(self) -> dict[str, float]:
        """The relative error of each adapter, measured."""
        return {name: self.bank.figures(name).relative_error for name in self.bank.names}


def convert_adapters(
    adapters: Mapping[str, Adapter],
    destination: str | Path,
    rule: BankRule | TotalError,
    *,
    each: bool = True,
    stack: StackingChoice = "auto",
    format: FormatChoice = "auto",
    method: Method = "hooi",
    group_by: str = "kind",
    cluster: bool = True,
    dtype: str = "auto",
    route: Route = "auto",
    sketch: int | None = None,
    seed: int = 0,
    any_base: bool = False,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> BankConversion:
    """Convert adapters of one base to a bank: one file, from which each can be taken out.

    Args:
        adapters: by name; each is asked for once and released before the next. They may differ in
            rank, dtype and modules; a module that an adapter does not have is absent.
        destination: the file to write, ending in .safetensors.
        rule: a `RelativeError` of every adapter (of all together with `each=False`, or as a
            `TotalError`), a `Budget` for the whole file (bytes) or for all stacks (parameters), or
            a `FixedRank` for every stack.
        each: whether every adapter counts the same, whatever its norm, and keeps to the error.
            The weights 1 / ‖ΔW‖² are the objective JD-Full of Compress-then-Serve.
        stack: `adapters`: the updates of each module by all adapters are a stack. `layers`: of each
            kind of module, over the layers too. `all`: of each shape. `auto`: what takes least,
            among those whose stacks have at most 1024 rank terms.
        format: `auto`: the smallest for each stack; or one for all, as for `convert_adapter`.
        method: how shared factors are found: `hooi`, `st-hosvd` or `hosvd`.
        group_by: how kinds are told apart; see `group_modules`.
        cluster: whether adapters get bases of their own in several clusters where that takes less
            at the error asked for.
        dtype: storage dtype, or `auto`, as for `convert_adapter`.
        route: how stacks become small: `whole` holds all factors of one stack; `updated` holds
            bases that grow as the error asks; `sketch` holds bases of a given size; `auto` takes
            `whole` up to 512 rank terms, else `updated`.
        sketch: the size for the route `sketch`.
        seed: for the route `sketch`.
        any_base: whether differing names of the base model are let through.
        force: whether an existing file may be replaced.
        progress: called with the name of each adapter read, and of each stack looked at or made.

    Returns:
        The bank and the figures of its making. Errors are measured on what is stored.

    Raises:
        CheckpointError: adapters do not belong to one base, the target exists, or writing failed.
        OptionError: a rule or option makes no sense, or a budget is too small.

    Cost: each adapter is read once. Memory of one adapter, and of one stack: its factors, or
    8·(m + n)·k bytes for bases of k directions with its coordinates. A temporary file beside the
    destination takes as many bytes as all factors.

    Source: Brüel-Gabrielsson et al. (2024), Compress then Serve, arXiv 2407.00066, for JD-Full.
    """
    path = Path(destination)
    _check(rule, stack, format, route, sketch)
    refuse_existing(path, force=force)
    each = each and not isinstance(rule, TotalError)
    with Spool(path.resolve().parent) as spool:
        survey = survey_of(adapters, spool, any_base=any_base, progress=progress)
        own = survey.dtype
        chosen = storage_dtype_for(own, rule) if dtype == "auto" else dtype
        formats = FORMATS if format == "auto" else (format,)
        options = Options(formats, chosen, method)
        sketched = sketch or 0, seed
        energies = survey.energies
        job = Job(
            survey, energies, rule, each, options, route, sketched, group_by, cluster, progress
        )
        made = job.made(STACKINGS if stack == "auto" else (stack,))
        asked = _asked(rule, each)
        bank = bank_of(survey, made, asked)
        with exclusive(path) if path.exists() else nullcontext():
            save_bank(bank, path, force=force)
    bank = load_bank(path)
    return BankConversion(
        bank,
        survey.bytes,
        sum(adapter.parameters for adapter in survey.adapters),
        sum(_numbers(one) for one in made.groups),
        made.bytes_separate,
        made.stackings,
        made.routes,
        _met(rule, each, bank),
    )


def _check(
    rule: BankRule | TotalError, stack: str, format: str, route: str, sketch: int | None
) -> None:
    if stack not in ("auto", *STACKINGS):
        raise OptionError(f"stack must be auto, {', '.join(STACKINGS)}; found {stack!r}")
    if format not in FORMAT_CHOICES:
        raise OptionError(f"format must be one of {', '.join(FORMAT_CHOICES)}; found {format!r}")
    if route not in ("auto", "whole", "updated", "sketch", "apart"):
        raise OptionError(f"route must be auto, whole, updated, sketch or apart; found {route!r}")
    if (route == "sketch") != (sketch is not None):
        raise OptionError(
            "the route sketch, and no other, needs the size of its bases, such as 256"
        )
    if isinstance(rule, FixedRank) and format in ("auto", "lora"):
        return
    if not isinstance(rule, RelativeError | TotalError | FixedRank | Budget):
        raise OptionError(
            f"a bank is asked for an error, a size or ranks; found {type(rule).__name__}"
        )


def _asked(rule: BankRule | TotalError, each: bool) -> dict[str, Any]:
    match rule:
        case RelativeError() | TotalError():
            return {"relative_error": rule.epsilon, "each": each}
        case Budget():
            return {"params": rule.params, "bytes": rule.bytes, "each": each}
        case FixedRank():
            return {"ranks": list(rule.pair), "each": each}


def _met(rule: BankRule | TotalError, each: bool, bank: Bank) -> bool:
    if not isinstance(rule, RelativeError | TotalError):
        return True
    if each:
        errors = [bank.figures(name).relative_error for name in bank.names]
        return max(errors) <= rule.epsilon
    return bank.relative_error <= rule.epsilon


def _numbers(made: Made) -> int:
    (part,) = made.group.parts
    tensors = [*made.group.outputs, *made.group.inputs, *part.tensors.values()]
    return sum(int(np.prod(tensor.shape)) for tensor in tensors)


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


@dataclass(frozen=True, eq=False)
class Job:
    """One joint conversion: what is converted, and how."""

    survey: Survey
    energies: np.ndarray  # of each adapter: its error squared is measured as a share of this
    rule: BankRule | TotalError
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

    def made(self, ways: Sequence[Stacking]) -> Outcome:
        """The groups, by the best way of stacking, made and measured."""
        if isinstance(self.rule, FixedRank):
            return self._at_ranks(ways[0], self.rule)
        wanted = self._wanted()
        best: tuple[Choices, Stacking] | None = None
        costs: list[StackChoice] = []
        for way in ways:
            fleet = stacks_of(self.survey, way, self.group_by)
            largest = max(int(one.ranks.sum()) for one in fleet)
            if best is not None and largest > COMPARED_UP_TO:
                note = f"not measured: {largest:,} rank terms in one stack"
                costs.append(StackChoice(way, len(fleet), note=note))
                continue
            if best is not None and len(fleet) == len(best[0].stacks):
                continue  # the same stacks under another name
            reduced = self._reduced(fleet)
            found = choose(reduced, self.energies, wanted, self.progress, refine=False)
            costs.append(StackChoice(way, len(fleet), found.bytes))
            if best is None or _better(found, best[0], wanted):
                best = found, way
        assert best is not None
        choices, way = best
        clusters = self._clusters(choices, wanted)
        if len(np.unique(clusters.labels)) > 1 or self._refines:
            choices = choose(clusters.stacks, self.energies, wanted, self.progress)
        made = self._settled(choices, wanted)
        routes = {one.reduced.fleet.name: one.reduced.route for one in choices.stacks}
        outcome = Outcome(made, way, tuple(costs), routes, None, "shared", clusters)
        return self._or_separate(outcome, choices)

    @property
    def _refines(self) -> bool:
        return self.each and not isinstance(self.rule, Budget)

    def _clusters(self, choices: Choices, wanted: Wanted) -> Clusters:
        """The adapters in clusters, where an error is asked for and sets may be split."""
        reduced = [one.reduced for one in choices.stacks]
        if not self.cluster or isinstance(wanted.rule, Budget):
            return Clusters(np.zeros(len(self.energies), dtype=np.int64), tuple(reduced), ())
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
        modules = [(layers.name, layers.layout) for layers in survey.modules.values()]
        layers = sum(len(one.integers) for one in survey.modules.values())
        return overhead(survey.adapters, survey.contents.tensors, modules, layers)

    def _reduced(self, fleet: Sequence[FleetStack]) -> list[Reduced]:
        found: list[Reduced] = []
        survey, safe = self.survey, np.where(self.energies > 0, self.energies, 1.0)
        factors = safe**-0.5 if self.each else np.ones(len(safe))
        goal = Goal(self.epsilon, self.energies, survey.energies, survey.counts, factors)
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
        formats = ("lotr",) if self.options.formats == FORMATS else self.options.formats
        options = replace(self.options, formats=formats)
        count, energies = len(self.energies), self.energies
        weights = np.where(energies > 0, energies, 1.0) if self.each else np.ones(count)
        made = tuple(
            made_at_ranks(one, weights[one.fleet.adapters] ** -0.5, rule, options)
            for one in reduced
        )
        routes = {one.fleet.name: one.route for one in reduced}
        one = Clusters(np.zeros(len(self.energies), dtype=np.int64), tuple(reduced), ())
        return Outcome(made, way, (StackChoice(way, len(fleet)),), routes, None, "ranks", one)

    def _or_separate(self, outcome: Outcome, choices: Choices) -> Outcome:
        """Each adapter's own ranks cut instead, where that takes less."""
        if not self.epsilon or not self.each or "truncated" not in self.options.formats:
            return outcome
        reduced = [weighed.reduced for weighed in choices.stacks]
        if any(one.kept is not None for one in reduced):
            return outcome
        dtype = self.options.dtype
        separate = separate_ranks(reduced, self.energies, self.epsilon, dtype)
        outcome = replace(outcome, bytes_separate=separate.bytes)
        if separate.bytes >= sum(made.bytes for made in outcome.groups):
            return outcome
        made = made_separate(reduced, separate, self.options)
        if errors_of(made, self.energies, each=True).max() > self.epsilon:
            return outcome
        none = np.zeros(len(self.energies), dtype=np.int64)
        one = replace(outcome.clusters, labels=none, stacks=tuple(reduced))
        return replace(outcome, groups=made, note="separate", clusters=one)


def _better(found: Choices, best: Choices, wanted: Wanted) -> bool:
    if isinstance(wanted.rule, Budget):
        return float(found.errors.max()) < float(best.errors.max())
    return found.bytes < best.bytes


def errors_of(made: Sequence[Made], energies: np.ndarray, each: bool) -> np.ndarray:
    """The measured error of each adapter, or the one of all together, relative to these norms."""
    lost, whole = np.zeros(len(energies)), energies
    for one in made:
        np.add.at(lost, one.adapters, one.distances**2)
    if not each:
        lost, whole = lost.sum(keepdims=True), whole.sum(keepdims=True)
    return np.sqrt(np.divide(lost, whole, out=np.zeros_like(lost), where=whole > 0))


def bank_of(survey: Survey, made: Outcome, asked: Mapping[str, Any]) -> Bank:
    explanation = {
        "chosen": made.note,
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
