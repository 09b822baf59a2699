"""LoRA adapters to compressed ones, group by group or under one budget for all."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from lotr_tn._arguments import door
from lotr_tn._arrays import suits_float16, to_numpy
from lotr_tn.adapters.adapter import (
    Adapter,
    LoRAAdapter,
    LoRAGroup,
    LoRAModule,
    LoTRGroup,
)
from lotr_tn.adapters.asked import Asked, Where
from lotr_tn.adapters.question import is_met, subject_of
from lotr_tn.adapters.restrictions import Limits, limits_of
from lotr_tn.adapters.storage import AdapterRule, is_negligible
from lotr_tn.adapters.ways import Grouped, grouped
from lotr_tn.analysis.choice import choose_within
from lotr_tn.analysis.forms import FORMS, Form, FormatName, Options
from lotr_tn.analysis.truncation import cut_tails
from lotr_tn.conversion.coding import coded_within, require_codable
from lotr_tn.conversion.dividing import as_they_are, divided_together, finished, worth_of
from lotr_tn.conversion.made import Made, certificate_of, chosen_group, stored_group
from lotr_tn.conversion.outcome import Conversion
from lotr_tn.errors import CheckpointError, FormatError, OptionError, PrecisionWarning
from lotr_tn.files.packed_tensors import PackedTensors
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
        others = PackedTensors.of if asked.coding == "auto" else dict
        adapter = replace(adapter, extras=others(adapter.extras))
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
            return divided_together(self.adapter, self.asked, self.where, self.ways, tell)
        known: dict[tuple[LoRAModule, ...], Made] = {}
        found = [self._each(way, rule, tell, known) for way in self.ways]
        return found[0] if len(found) == 1 else min(found, key=lambda one: worth_of(rule, one))

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
        return finished(self.adapter, way, [*made, *as_they_are(way)])

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
        only = len(options.formats) == 1 and form.within is not None
        if only and free and not options.each_layer:
            return self._alone(group, stack, form, rule)
        if isinstance(rule, FixedRank):
            return stored_group(group, form.at_ranks(stack, rule, self.options))
        assert isinstance(rule, RelativeError | Energy)
        subject = subject_of(group, stack, options)
        return chosen_group(group, choose_within(stack, subject, rule, self.options))

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


def _epsilon(rule: RankRule) -> float:
    return rule.epsilon if isinstance(rule, RelativeError | Energy) else math.inf


def _keeps_to(rule: RankRule, made: LoTRGroup) -> bool:
    return certificate_of(made).relative_error <= _epsilon(rule)
