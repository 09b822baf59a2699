"""LoRA adapters to compressed ones, group by group or under one budget for all."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from lotr_tn._arrays import suits_float16, to_numpy
from lotr_tn.adapters.adapter import (
    Compressed,
    LoRAAdapter,
    LoRAGroup,
    LoTRAdapter,
    LoTRGroup,
)
from lotr_tn.adapters.grouping import lora_groups
from lotr_tn.adapters.restrictions import Limits, kept_apart, limits_of
from lotr_tn.adapters.storage import AdapterRule, format_of, storage_dtype_for, stored_ranks
from lotr_tn.analysis.candidates import Subject
from lotr_tn.analysis.choice import Choice, choose_within
from lotr_tn.analysis.coordinates import coordinates_of
from lotr_tn.analysis.division import Division, settle
from lotr_tn.analysis.forms import FORMS, Form, FormatName, Options, auto_forms, form_named
from lotr_tn.analysis.forms.lotr import DECOMPOSITIONS
from lotr_tn.analysis.truncation import truncated_parameters
from lotr_tn.errors import CheckpointError, FormatError, OptionError, PrecisionWarning
from lotr_tn.files.dialects.native import overhead
from lotr_tn.formats import Certificate, LoRAStack
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
from lotr_tn.ops.norms import layer_norms

__all__ = ["METHODS", "Conversion", "GroupConversion", "convert_adapter"]

Method: TypeAlias = Literal["hooi", "st-hosvd", "hosvd"]
METHODS = DECOMPOSITIONS


@dataclass(frozen=True)
class GroupConversion:
    """What converting one group cost and lost.

    Attributes:
        name: the group.
        shape: (L, m, n).
        parameters_before: entries of its LoRA factors.
        parameters_after: entries stored for it.
        parameters_truncated: entries that the cheapest per-layer rank truncation would need to
            reach the same relative error.
        certificate: the measured errors and their bounds.
        ranks: (r1, r2) of a LoTR, and with low-rank cores then each core's; r of one shared side;
            else each layer's rank.
        modules: the modules' paths in stack order.
        met: whether the rank rule was met.
        format: in which it is stored.
    """

    name: str
    shape: tuple[int, int, int]
    parameters_before: int
    parameters_after: int
    parameters_truncated: int
    certificate: Certificate
    ranks: tuple[int, ...]
    modules: tuple[str, ...]
    met: bool
    format: FormatName = "lotr"


@dataclass(frozen=True)
class Conversion:
    """A converted adapter, and what each group cost and lost.

    Attributes:
        adapter: the adapter.
        groups: the figures of each group.
        met: whether the rule was met.
        bound: where a budget or an error was divided over the groups, what no other division of
            the same groups goes below: the relative error for a budget, the bytes for an error;
            else None.
        bound_unit: `relative error` or `bytes`.
    """

    adapter: LoTRAdapter
    groups: tuple[GroupConversion, ...]
    met: bool = True
    bound: float | None = None
    bound_unit: Literal["bytes", "relative error"] | None = None

    @property
    def relative_error(self) -> float:
        """‖T − T̂‖ / ‖T‖ of all converted updates together."""
        lost = np.array([group.certificate.distance for group in self.groups])
        size = np.array([group.certificate.norm for group in self.groups])
        return float(np.linalg.norm(lost) / np.linalg.norm(size)) if size.any() else 0.0

    def total(self, field: str) -> int:
        """The sum over the groups of a count, such as `parameters_after`."""
        return sum(getattr(group, field) for group in self.groups)


def convert_adapter(
    adapter: LoRAAdapter,
    ranks: AdapterRule | int | tuple[int, int],
    *,
    format: FormatName = "lotr",
    method: Method = "hooi",
    group_by: str = "kind",
    dtype: str = "auto",
    limits: Limits = None,
    keep: str | None = None,
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
        group_by: `kind`, `shape` or a regular expression; see `group_modules`.
        dtype: storage dtype, or `auto`: the adapter's own where its rounding is at most 1/8 of
            the error asked for, else float32, else float64.
        limits: the ranks that a rule may choose; by group name, where they differ.
        keep: a regular expression; modules whose path it is found in are kept as they are.
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
        BackendError, RankError: as the decompositions raise them.

    Cost: that of the decomposition of each group, with its curves where a format or a budget is
    to be chosen; memory of one group's factors at a time, beside the result.
    """
    if not isinstance(adapter, LoRAAdapter):
        raise CheckpointError(
            f"{adapter.source} is a LoTR file already; export it to LoRA first to convert it anew"
        )
    rule = ranks if isinstance(ranks, TotalError | Budget) else as_rule(ranks)
    formats = auto_forms() if format == "auto" else (form_named(format).name,)
    if isinstance(rule, FixedRank) and (len(formats) > 1 or FORMS[format].kept):
        raise OptionError(
            f"--format {format} has no ranks to be told; ask for an error or a size, or for "
            "another format"
        )
    chosen = storage_dtype_for(adapter.dtype, rule) if dtype == "auto" else dtype
    groups, kept = kept_apart(lora_groups(adapter, group_by), keep)
    job = _Job(
        adapter,
        groups,
        kept,
        Options(formats, chosen, method),
        limits_of(groups, limits),
        group_by,
        backend,
        device,
        progress,
        may_widen=dtype == "auto",
    )
    if isinstance(rule, Budget | TotalError):
        return job.together(rule)
    return job.each(rule)


@dataclass(frozen=True)
class _Job:
    """One conversion: what is converted, and how."""

    adapter: LoRAAdapter
    groups: Mapping[str, LoRAGroup]
    kept: Mapping[str, LoRAGroup]
    options: Options
    limits: Mapping[str, RankLimits]
    group_by: str
    backend: str
    device: str | None
    progress: Callable[[str], None] | None
    may_widen: bool

    def each(self, rule: RankRule) -> Conversion:
        """Every group by the same rule."""
        converted = []
        for name, stack in self._stacks():
            group = self.groups[name]
            free = self.limits[name] == RankLimits()
            form = FORMS[self.options.formats[0]]
            if len(self.options.formats) == 1 and form.within is not None and free:
                made: LoTRGroup | LoRAGroup = self._alone(group, stack, form, rule)
            elif isinstance(rule, FixedRank):
                fixed = form.at_ranks(stack, rule, self.options)
                made = _stored(group, fixed)
            else:
                assert isinstance(rule, RelativeError | Energy)
                subject = self._subject(group, stack)
                made = _chosen(group, choose_within(stack, subject, rule, self.options))
            met = isinstance(rule, FixedRank | Budget) or _keeps_to(made, rule.epsilon)
            converted.append((made, self._report(group, stack, made, met)))
        return self._finished(converted)

    def together(self, rule: Budget | TotalError) -> Conversion:
        """A budget or an error divided over all groups."""
        subjects = [self._subject(self.groups[name], stack) for name, stack in self._stacks()]
        size = Norms(sum(s.coordinates.energy for s in subjects), self._kept_energy())
        spent = self._spent(rule)
        only = _without_kept(rule, size)
        division, choices = settle(self._each_stack, subjects, only, self.options, spent)
        converted = []
        for group, choice in zip(self.groups.values(), choices, strict=True):
            made = _chosen(group, choice)
            converted.append((made, self._report(group, group.stack, made, met=True)))
        conversion = self._finished(converted)
        met = isinstance(rule, Budget) or conversion.relative_error <= rule.epsilon
        bound = _bound(rule, division, size)
        unit = "bytes" if isinstance(rule, TotalError) else "relative error"
        return dataclasses.replace(conversion, met=met, bound=bound, bound_unit=unit)

    def _each_stack(self) -> Iterator[LoRAStack]:
        return (stack for _, stack in self._stacks())

    def _stacks(self) -> Iterator[tuple[str, LoRAStack]]:
        for name, group in self.groups.items():
            if self.progress is not None:
                self.progress(name)
            yield name, group.to_stack(self.backend, self.device)

    def _subject(self, group: LoRAGroup, stack: LoRAStack) -> Subject:
        options = dataclasses.replace(self.options, limits=self.limits[group.name])
        return Subject.of(coordinates_of(stack), group.stored, group.dtype, options)

    def _alone(self, group: LoRAGroup, stack: LoRAStack, form: Form, rule: RankRule) -> LoTRGroup:
        """By the form's own search; where float16 has no room for its cores, in float32."""
        decompose: Any = form.at_ranks if isinstance(rule, FixedRank) else form.within
        options, dtype = self.options, self.options.dtype
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PrecisionWarning)  # reported by `met`
            try:
                made = decompose(stack, rule, options)
                own = [to_numpy(layer) for name in form.own for layer in arrays_of(made)[name]]
                roomy = dtype != "float16" or all(map(suits_float16, own))
                if roomy or not self.may_widen:
                    return _stored(group, made)
            except FormatError:
                if not self.may_widen:
                    raise
            wide = dataclasses.replace(options, dtype="float32")
            return _stored(group, decompose(stack, rule, wide))

    def _kept_energy(self) -> float:
        return sum(float((layer_norms(g.stack) ** 2).sum()) for g in self.kept.values())

    def _spent(self, rule: Budget | TotalError) -> int:
        """What of a budget the modules that are kept take, and of bytes all that is no number."""
        if not isinstance(rule, Budget):
            return 0
        if rule.params is not None:
            return sum(group.stored for group in self.kept.values())
        own = sum(_bytes_of(group) for group in self.kept.values())
        return own + overhead(self.adapter, {**self.groups, **self.kept}, self.group_by)

    def _report(
        self, group: LoRAGroup, stack: LoRAStack, made: LoTRGroup | LoRAGroup, met: bool
    ) -> GroupConversion:
        certificate = made.certificate
        assert certificate is not None
        return GroupConversion(
            name=group.name,
            shape=group.shape,
            parameters_before=group.stored,
            parameters_after=made.stored,
            parameters_truncated=truncated_parameters(stack, certificate.relative_error),
            certificate=certificate,
            ranks=tuple(stored_ranks(made)),
            modules=tuple(target.name for target in group.targets),
            met=met,
            format=format_of(made),
        )

    def _finished(
        self, converted: list[tuple[LoTRGroup | LoRAGroup, GroupConversion]]
    ) -> Conversion:
        groups = {made.name: made for made, _ in converted}
        reports = [report for _, report in converted]
        for name, group in self.kept.items():
            stack = group.stack
            groups[name] = kept_as_is(group, stack)
            reports.append(self._report(group, stack, groups[name], met=True))
        origin = {
            "format": "peft-lora",
            "dtype": self.adapter.dtype,
            "group_by": self.group_by,
        }
        adapter = LoTRAdapter(groups, self.adapter.extras, self.adapter.config_text, origin)
        return Conversion(adapter, tuple(reports), all(report.met for report in reports))


@dataclass(frozen=True)
class Norms:
    """Squared norms of what is converted and of what is kept as it is."""

    converted: float
    kept: float

    @property
    def share(self) -> float:
        """The share of the whole norm that is converted."""
        whole = self.converted + self.kept
        return (self.converted / whole) ** 0.5 if whole else 1.0


def _without_kept(rule: Budget | TotalError, size: Norms) -> Budget | TotalError:
    """The rule for the groups that are converted: those that are kept lose nothing."""
    if isinstance(rule, Budget) or size.share in (0.0, 1.0):
        return rule
    return TotalError(min(rule.epsilon / size.share, 1 - 1e-9))


def _bound(rule: Budget | TotalError, division: Division, size: Norms) -> float:
    if isinstance(rule, TotalError):
        return division.bound
    whole = size.converted + size.kept
    return (division.bound / whole) ** 0.5 if whole else 0.0


def _keeps_to(made: LoTRGroup | LoRAGroup, epsilon: float) -> bool:
    certificate = made.certificate
    assert certificate is not None
    return epsilon == 0 or certificate.relative_error <= epsilon


def _bytes_of(group: LoRAGroup) -> int:
    return sum(module.up.nbytes + module.down.nbytes for module in group.modules)


def _chosen(group: LoRAGroup, choice: Choice) -> LoTRGroup | LoRAGroup:
    if FORMS[choice.candidate.format].kept:
        assert isinstance(choice.stack, LoRAStack)
        return kept_as_is(group, choice.stack)
    return _stored(group, choice.stack)


def kept_as_is(group: LoRAGroup, stack: LoRAStack) -> LoRAGroup:
    """The group with its own factors, and a certificate that nothing is lost."""
    norms = to_numpy(layer_norms(stack))
    nothing = np.float64(0.0)
    certificate = Certificate(np.zeros_like(norms), norms, nothing, nothing, "as it is", 0)
    return LoRAGroup(group.name, group.modules, certificate)


def _stored(group: LoRAGroup, stack: Compressed) -> LoTRGroup:
    """The group as a compressed stack on NumPy."""
    certificate = stack.certificate
    assert certificate is not None
    on_host = dataclasses.replace(
        certificate,
        distances=to_numpy(certificate.distances),
        norms=to_numpy(certificate.norms),
        lower=np.float64(float(certificate.lower)),
        upper=np.float64(float(certificate.upper)),
    )
    arrays = {name: to_numpy(array) for name, array in arrays_of(stack).items()}
    on_numpy = dataclasses.replace(stack, **arrays, certificate=on_host)
    return LoTRGroup(group.name, group.targets, on_numpy)
