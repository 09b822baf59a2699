"""LoRA adapters to compressed ones, group by group or under one budget for all."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import suits_float16, to_numpy
from lotr_tn.adapters.adapter import (
    Adapter,
    LoRAAdapter,
    LoRAGroup,
    LoRAModule,
    LoTRAdapter,
    LoTRGroup,
)
from lotr_tn.adapters.asked import Asked, Where
from lotr_tn.adapters.question import Question, is_met, measure, subject_of
from lotr_tn.adapters.restrictions import Limits, limits_of
from lotr_tn.adapters.storage import AdapterRule, is_negligible
from lotr_tn.adapters.ways import Grouped, grouped
from lotr_tn.analysis.choice import choose_within
from lotr_tn.analysis.division import bounded
from lotr_tn.analysis.forms import FORMS, Form, FormatName, Options
from lotr_tn.analysis.truncation import cut_tails
from lotr_tn.conversion.coding import coded_together, coded_within, require_codable
from lotr_tn.conversion.made import (
    Made,
    certificate_of,
    chosen_group,
    energy_of,
    kept_as_is,
    rank_of,
    stored_group,
)
from lotr_tn.conversion.outcome import Conversion
from lotr_tn.decompose.coded import codable
from lotr_tn.errors import CheckpointError, FormatError, OptionError, PrecisionWarning
from lotr_tn.files.budget import spent_beside
from lotr_tn.files.dialects.native import native_size
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.ranks import (
    Budget,
    Energy,
    FixedRank,
    RankLimits,
    RankRule,
    RelativeError,
    TotalError,
    as_rule,
)
from lotr_tn.ops.arrays import arrays_of

Method: TypeAlias = Literal["hooi", "st-hosvd", "hosvd"]


@door
def convert_adapter(
    adapter: Adapter,
    ranks: AdapterRule | int | tuple[int, int],
    *,
    format: FormatName = "lotr",
    method: Method = "hooi",
    group_by: str = "kind",
    dtype: str = "auto",
    limits: Limits = None,
    keep: str | None = None,
    coding: str = "none",
    backend: str = "numpy",
    device: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Conversion:
    """Convert a LoRA adapter: to LoTR, to another compressed format, or to the best for each group.

    Args:
        adapter: a LoRA adapter, as `load_adapter` gives it.
        ranks: the ranks, a `RelativeError` or an `Energy` for every group; or a `Budget` or a
            `TotalError` for all groups together, divided so that the whole is best.
        format: `lotr`; `auto`, the smallest of all formats for each group, which is never larger
            than the LoRA; or one of `truncated` (each layer's rank cut), `shared-in` (V shared),
            `shared-out` (U shared), `lotr-low-rank` (LoTR with low-rank cores), and `lora` (as it
            is).
        method: `hooi`, `st-hosvd` or `hosvd`, for LoTR.
        group_by: `kind`, `shape` or a regular expression (see `group_modules`); or `auto`: of
            `kind` and `shape` what takes the smaller file, or for a budget loses less.
        dtype: storage dtype, or `auto`: in which the file is smallest, rounding being a part of
            the error asked for. For ranks the adapter's own.
        limits: the ranks that a rule may choose; by group name, where they differ.
        keep: a regular expression; modules whose path it is found in are kept as they are.
        coding: `auto` stores a group in bits where that takes fewer bytes: its singular directions
            in steps of one size, which is chosen for the error or the size, and entropy coded; for
            the formats `auto` and `truncated`. `none` stores numbers.
        backend: `numpy` or `torch`, which computes; the result is on NumPy.
        device: a device of the backend.
        progress: called with each group's name before it is converted; twice where a budget or an
            error is divided over the groups.

    Returns:
        The adapter and the figures of each group.

    Raises:
        CheckpointError: the adapter is LoTR already.
        OptionError: the format, the limits or `keep` make no sense; a budget is too small for one
            direction in every group; `auto` is given fixed ranks.
        FormatError: a number is too large for the dtype that was asked for.
        ArgumentError: an argument is of another type.
        BackendError, RankError: as the decompositions raise them.

    Cost: that of the decomposition of each group, with its curves where a format or a budget is
    to be chosen; memory of one group's factors at a time, beside the result.
    """
    rule = ranks if isinstance(ranks, TotalError | Budget) else as_rule(ranks)
    asked = Asked(rule, format, method, group_by, dtype, limits, keep, coding=coding)
    return Converting.of(adapter, asked, Where(backend, device)).run(progress)


@dataclass(frozen=True)
class Converting:
    """One conversion: the groups of an adapter, and what is asked of them."""

    adapter: LoRAAdapter
    asked: Asked  # what is asked
    where: Where  # where it is worked out
    options: Options  # how candidates are made
    ways: tuple[Grouped, ...]  # the ways to group the modules, of which the best is taken

    @classmethod
    def of(cls, adapter: Adapter, asked: Asked, where: Where) -> "Converting":
        """The conversion of an adapter; refused as by `convert_adapter`."""
        if not isinstance(adapter, LoRAAdapter):
            raise CheckpointError(
                f"{adapter.source} is a LoTR file already; export it to LoRA first to convert it "
                "anew"
            )
        require_codable(asked)
        options = asked.options(adapter.dtype)
        several = len(options.formats) > 1
        if isinstance(asked.rule, FixedRank) and (several or FORMS[asked.form].kept):
            raise OptionError(
                f"format {asked.form} has no ranks to be told; ask for an error or a size, or "
                "for another format"
            )
        ways = grouped(adapter, asked)
        limits_of(ways[0].groups, asked.limits)  # a group that is not there is refused at once
        return cls(adapter, asked, where, options, ways)

    @property
    def steps(self) -> int:
        """How often `run` tells of its progress, unless an error has to be divided anew."""
        each = 2 if isinstance(self.asked.rule, Budget | TotalError) else 1
        return each * sum(len(way.groups) for way in self.ways)

    def run(self, progress: Callable[[str], None] | None = None) -> Conversion:
        """Convert; `progress` is called with the name of each group."""
        rule = self.asked.rule
        tell = progress or (lambda name: None)
        if isinstance(rule, Budget | TotalError):
            return self._together(rule, tell)
        known: dict[tuple[LoRAModule, ...], Made] = {}
        found = [self._each(way, rule, tell, known) for way in self.ways]
        return found[0] if len(found) == 1 else min(found, key=lambda one: _rank(rule, one))

    def _each(
        self,
        way: Grouped,
        rule: RankRule,
        tell: Callable[[str], None],
        known: "dict[tuple[LoRAModule, ...], Made]",
    ) -> Conversion:
        """Every group by the same rule, in the memory of one; those `known` are made already."""
        limits = limits_of(way.groups, self.asked.limits)
        made = []
        for name, group in way.groups.items():
            tell(name)
            if group.modules in known:
                made.append(known[group.modules].named(name))
                continue
            stack = self.where.stack(group)
            options = replace(self.options, limits=limits[name])
            done = self._in_bits(rule, group, stack, self._by(rule, group, stack, options))
            error = certificate_of(done).relative_error
            met = isinstance(rule, FixedRank) or is_met(rule, [error], error)
            made.append(Made(group, done, cut_tails(stack), met))
            known[group.modules] = made[-1]
        return self._finished(way, [*made, *self._as_they_are(way)])

    def _in_bits(
        self, rule: RankRule, group: LoRAGroup, stack: LoRAStack, done: LoTRGroup | LoRAGroup
    ) -> LoTRGroup | LoRAGroup:
        """The group in bits where that is asked for, holds the error, and takes fewer bytes."""
        if self.asked.coding == "none" or not isinstance(rule, RelativeError | Energy):
            return done
        each = self.options.each_layer
        coded = coded_within(group, stack, rule.epsilon, each_layer=each)
        if coded is None or coded.nbytes >= done.nbytes:
            return done
        found = certificate_of(coded)
        error = found.worst_error if each else found.relative_error
        return coded if error <= rule.epsilon else done

    def _by(
        self, rule: RankRule, group: LoRAGroup, stack: LoRAStack, options: Options
    ) -> LoTRGroup | LoRAGroup:
        form, free = FORMS[options.formats[0]], options.limits == RankLimits()
        if (
            len(options.formats) == 1
            and form.within is not None
            and free
            and not options.each_layer
        ):
            return self._alone(group, stack, form, rule)
        if isinstance(rule, FixedRank):
            return stored_group(group, form.at_ranks(stack, rule, self.options))
        assert isinstance(rule, RelativeError | Energy)
        subject = subject_of(group, stack, options)
        return chosen_group(group, choose_within(stack, subject, rule, self.options))

    def _together(self, rule: Budget | TotalError, tell: Callable[[str], None]) -> Conversion:
        """A budget or an error divided over all groups, by the best way to group them."""
        limits, known = self.asked.limits, ()
        shared: list[_Shared] = []
        for way in self.ways:
            groups = list(way.groups.values())
            measured = measure(groups, self.options, limits, self.where, tell, known)
            known = (*known, *measured)
            kept = self._as_they_are(way)
            spent = spent_beside(rule, [self.adapter], way.groups, way.kept, way.name)
            converted = sum(one.subject.coordinates.energy for one in measured)
            whole = converted + sum(energy_of(one.made) for one in kept)
            only = _without_kept(rule, converted, whole)
            shared.append(_Shared(way, Question(only, self.options, measured, spent), kept, whole))
        if self.asked.coding == "none":
            return self._best_divided(shared, rule, tell)
        found = [self._coded_together(one, rule) for one in shared]
        coded = [one for one in found if one is not None]
        try:
            coded.append(self._best_divided(shared, rule, tell))
        except OptionError:  # one direction of numbers is more than a size, but perhaps not of bits
            if not coded:
                raise
        return min(coded, key=lambda one: _rank(rule, one))

    def _best_divided(
        self, shared: "Sequence[_Shared]", rule: Budget | TotalError, tell: Callable[[str], None]
    ) -> Conversion:
        best: Conversion | None = None
        for one in sorted(shared, key=lambda one: one.question.divided[0].rank):
            if best is None or one.may_beat(best):
                found = self._divided(rule, one, tell)
                best = found if best is None else min(best, found, key=lambda x: _rank(rule, x))
        assert best is not None  # there is a way
        return best

    def _coded_together(self, one: "_Shared", rule: Budget | TotalError) -> Conversion | None:
        """All groups of one way in bits by one step; None where no step does."""
        groups, kept = list(one.way.groups.values()), one.kept
        each = [codable(measured.stack) for measured in one.question.measured]
        codables = [lora for lora in each if lora is not None]
        if len(codables) < len(each):
            return None

        def finished(made: Sequence[LoTRGroup]) -> Conversion:
            parts = zip(groups, made, (lora.tails for lora in codables), strict=True)
            return self._finished(one.way, [*(Made(*part, met=True) for part in parts), *kept])

        found = coded_together(
            groups,
            codables,
            rule,
            energy=one.energy,
            size_of=lambda made: native_size(finished(made).adapter),
        )
        if found is None:
            return None
        conversion = finished(found)
        return replace(conversion, met=is_met(rule, (), conversion.relative_error))

    def _divided(
        self, rule: Budget | TotalError, one: "_Shared", tell: Callable[[str], None]
    ) -> Conversion:
        """A budget or an error divided over the groups of one way."""
        question, groups = one.question, list(one.way.groups.values())
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
        conversion = self._finished(one.way, [*made, *one.kept])
        return replace(
            conversion,
            met=is_met(rule, (), conversion.relative_error),
            bound=question.bound(division, one.energy),
            bound_unit="bytes" if isinstance(rule, TotalError) else "relative error",
            bound_forms=bounded(self.options.formats),
        )

    def _as_they_are(self, way: Grouped) -> "list[Made]":
        """The groups that are kept."""
        found = []
        for group in way.kept.values():
            stack = group.stack
            found.append(Made(group, kept_as_is(group, stack), cut_tails(stack), met=True))
        return found

    def _alone(self, group: LoRAGroup, stack: LoRAStack, form: Form, rule: RankRule) -> LoTRGroup:
        """By the form's own search, in the dtype that takes least."""
        best: LoTRGroup | None = None
        for options in (tries := self.options.each):
            last = options == tries[-1]
            made = self._in_dtype(group, stack, form, rule, options, last=last)
            if made is None or not (last or _keeps_to(rule, made)):
                continue
            if best is None or made.nbytes < best.nbytes:
                best = made
            if is_negligible(options.dtype, _epsilon(rule)):
                break
        assert best is not None  # the last one is taken as it comes
        return best

    def _in_dtype(
        self,
        group: LoRAGroup,
        stack: LoRAStack,
        form: Form,
        rule: RankRule,
        options: Options,
        *,
        last: bool,
    ) -> LoTRGroup | None:
        """By the form's own search; in float32 where float16 has no room for the cores."""
        decompose: Any = form.at_ranks if isinstance(rule, FixedRank) else form.within
        dtype = options.dtype
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PrecisionWarning)  # reported by `met`
            try:
                made = decompose(stack, rule, options)
                own = [to_numpy(layer) for name in form.own for layer in arrays_of(made)[name]]
                roomy = dtype != "float16" or all(map(suits_float16, own))
                if roomy or not last or self.asked.dtype != "auto":
                    return stored_group(group, made)
            except FormatError:
                if self.asked.dtype != "auto":
                    raise
            if not last:
                return None
            wide = replace(options, dtype="float32")
            return stored_group(group, decompose(stack, rule, wide))

    def _finished(self, way: Grouped, made: "list[Made]") -> Conversion:
        groups = {one.made.name: one.made for one in made}
        adapter = LoTRAdapter.of_lora(self.adapter, groups, way.name)
        return Conversion(adapter, tuple(one.report for one in made), all(one.met for one in made))


@dataclass(frozen=True, eq=False)
class _Shared:
    """A budget or an error asked of the groups of one way."""

    way: Grouped
    question: Question
    kept: list[Made]  # its groups that are kept
    energy: float  # ‖T‖² with those that are kept

    def may_beat(self, best: Conversion) -> bool:
        """Whether its bound leaves it a chance."""
        bound = min(one.division.bound for one in self.question.divided)
        if isinstance(self.question.rule, TotalError):
            beside = sum(tensor.data.nbytes for tensor in best.adapter.extras.values())
            return bound < native_size(best.adapter) - beside
        return bound < best.relative_error**2 * self.energy


def _epsilon(rule: RankRule) -> float:
    return rule.epsilon if isinstance(rule, RelativeError | Energy) else math.inf


def _keeps_to(rule: RankRule, made: LoTRGroup) -> bool:
    return certificate_of(made).relative_error <= _epsilon(rule)


def _without_kept(rule: Budget | TotalError, converted: float, whole: float) -> Budget | TotalError:
    """The rule for the groups that are converted, of squared norms: the others lose nothing."""
    if isinstance(rule, Budget) or not 0 < converted < whole:
        return rule
    return TotalError(min(rule.epsilon / (converted / whole) ** 0.5, 1 - 1e-9))


def _rank(rule: AdapterRule, one: Conversion) -> tuple[float, ...]:
    return rank_of(rule, native_size(one.adapter), one.relative_error, one.met)
