"""LoRA adapters to compressed ones, group by group or under one budget for all."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import suits_float16, to_numpy
from lotr_tn.adapters.adapter import (
    Adapter,
    Compressed,
    LoRAAdapter,
    LoRAGroup,
    LoTRAdapter,
    LoTRGroup,
)
from lotr_tn.adapters.asked import Asked, Where
from lotr_tn.adapters.grouping import lora_groups
from lotr_tn.adapters.question import Question, is_met, measure, subject_of
from lotr_tn.adapters.restrictions import Limits, kept_apart, limits_of
from lotr_tn.adapters.storage import AdapterRule, format_of, stored_ranks
from lotr_tn.analysis.choice import Choice, choose_within
from lotr_tn.analysis.division import bounded
from lotr_tn.analysis.forms import FORMS, Form, FormatName, Options
from lotr_tn.analysis.truncation import cut_parameters, cut_tails
from lotr_tn.conversion.outcome import Conversion, GroupConversion
from lotr_tn.errors import CheckpointError, FormatError, OptionError, PrecisionWarning
from lotr_tn.files.budget import spent_beside
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
    rule = ranks if isinstance(ranks, TotalError | Budget) else as_rule(ranks)
    asked = Asked(rule, format, method, group_by, dtype, limits, keep)
    return Converting.of(adapter, asked, Where(backend, device)).run(progress)


@dataclass(frozen=True)
class Converting:
    """One conversion: the groups of an adapter, and what is asked of them."""

    adapter: LoRAAdapter
    asked: Asked  # what is asked
    where: Where  # where it is worked out
    options: Options  # how candidates are made
    groups: Mapping[str, LoRAGroup]  # what is converted
    kept: Mapping[str, LoRAGroup]  # what is kept as it is

    @classmethod
    def of(cls, adapter: Adapter, asked: Asked, where: Where) -> "Converting":
        """The conversion of an adapter; refused as by `convert_adapter`."""
        if not isinstance(adapter, LoRAAdapter):
            raise CheckpointError(
                f"{adapter.source} is a LoTR file already; export it to LoRA first to convert it "
                "anew"
            )
        options = asked.options(adapter.dtype)
        several = len(options.formats) > 1
        if isinstance(asked.rule, FixedRank) and (several or FORMS[asked.form].kept):
            raise OptionError(
                f"--format {asked.form} has no ranks to be told; ask for an error or a size, or "
                "for another format"
            )
        groups, kept = kept_apart(lora_groups(adapter, asked.group_by), asked.keep)
        limits_of(groups, asked.limits)  # a group that is not there is refused at once
        return cls(adapter, asked, where, options, groups, kept)

    @property
    def steps(self) -> int:
        """How often `run` tells of its progress, unless an error has to be divided anew."""
        return len(self.groups) * (2 if isinstance(self.asked.rule, Budget | TotalError) else 1)

    def run(self, progress: Callable[[str], None] | None = None) -> Conversion:
        """Convert; `progress` is called with the name of each group."""
        rule = self.asked.rule
        tell = progress or (lambda name: None)
        if isinstance(rule, Budget | TotalError):
            return self._together(rule, tell)
        return self._each(rule, tell)

    def _each(self, rule: RankRule, tell: Callable[[str], None]) -> Conversion:
        """Every group by the same rule, in the memory of one."""
        limits = limits_of(self.groups, self.asked.limits)
        made = []
        for name, group in self.groups.items():
            tell(name)
            stack = self.where.stack(group)
            options = replace(self.options, limits=limits[name])
            done = self._by(rule, group, stack, options)
            error = _certificate(done).relative_error
            met = isinstance(rule, FixedRank) or is_met(rule, [error], error)
            made.append(_Made(group, done, cut_tails(stack), met))
        return self._finished([*made, *self._as_they_are()])

    def _by(
        self, rule: RankRule, group: LoRAGroup, stack: LoRAStack, options: Options
    ) -> LoTRGroup | LoRAGroup:
        form, free = FORMS[options.formats[0]], options.limits == RankLimits()
        if len(options.formats) == 1 and form.within is not None and free:
            return self._alone(group, stack, form, rule)
        if isinstance(rule, FixedRank):
            return _stored(group, form.at_ranks(stack, rule, self.options))
        assert isinstance(rule, RelativeError | Energy)
        subject = subject_of(group, stack, options)
        return _chosen(group, choose_within(stack, subject, rule, self.options))

    def _together(self, rule: Budget | TotalError, tell: Callable[[str], None]) -> Conversion:
        """A budget or an error divided over all groups."""
        groups = list(self.groups.values())
        measured = measure(groups, self.options, self.asked.limits, self.where, tell)
        kept = self._as_they_are()
        spent = spent_beside(rule, [self.adapter], self.groups, self.kept, self.asked.group_by)
        converted = sum(one.subject.coordinates.energy for one in measured)
        whole = converted + sum(_energy(one.made) for one in kept)
        only = _without_kept(rule, converted, whole)
        question = Question(only, self.options, measured, spent)
        tails: dict[str, np.ndarray] = {}

        def look(group: LoRAGroup, stack: LoRAStack) -> None:
            tell(group.name)
            if group.name not in tails:
                tails[group.name] = cut_tails(stack)

        division, choices = question.answers(look)
        made = [
            _Made(group, _chosen(group, choice), tails[group.name], met=True)
            for group, choice in zip(groups, choices, strict=True)
        ]
        conversion = self._finished([*made, *kept])
        return replace(
            conversion,
            met=is_met(rule, (), conversion.relative_error),
            bound=question.bound(division, whole),
            bound_unit="bytes" if isinstance(rule, TotalError) else "relative error",
            bound_forms=bounded(self.options.formats),
        )

    def _as_they_are(self) -> "list[_Made]":
        """The groups that are kept."""
        found = []
        for group in self.kept.values():
            stack = group.stack
            found.append(_Made(group, kept_as_is(group, stack), cut_tails(stack), met=True))
        return found

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
                if roomy or self.asked.dtype != "auto":
                    return _stored(group, made)
            except FormatError:
                if self.asked.dtype != "auto":
                    raise
            wide = replace(options, dtype="float32")
            return _stored(group, decompose(stack, rule, wide))

    def _finished(self, made: "list[_Made]") -> Conversion:
        own, by = self.adapter.dtype, self.asked.group_by
        origin = {"format": "peft-lora", "dtype": own, "group_by": by}
        groups = {one.made.name: one.made for one in made}
        adapter = LoTRAdapter(groups, self.adapter.extras, self.adapter.config_text, origin)
        return Conversion(adapter, tuple(one.report for one in made), all(one.met for one in made))


@dataclass(frozen=True, eq=False)
class _Made:
    """A group before and after, with the losses of cutting each layer's own rank."""

    group: LoRAGroup
    made: LoTRGroup | LoRAGroup
    tails: np.ndarray
    met: bool

    @property
    def report(self) -> GroupConversion:
        certificate, group = _certificate(self.made), self.group
        truncated = cut_parameters(self.tails, group.shape, certificate.relative_error)
        return GroupConversion(
            name=group.name,
            shape=group.shape,
            parameters_before=group.stored,
            parameters_after=self.made.stored,
            parameters_truncated=truncated,
            certificate=certificate,
            ranks=tuple(stored_ranks(self.made)),
            modules=tuple(target.name for target in group.targets),
            met=self.met,
            format=format_of(self.made),
        )


def _without_kept(rule: Budget | TotalError, converted: float, whole: float) -> Budget | TotalError:
    """The rule for the groups that are converted, of squared norms: the others lose nothing."""
    if isinstance(rule, Budget) or not 0 < converted < whole:
        return rule
    return TotalError(min(rule.epsilon / (converted / whole) ** 0.5, 1 - 1e-9))


def _certificate(made: LoTRGroup | LoRAGroup) -> Certificate:
    certificate = made.certificate
    assert certificate is not None
    return certificate


def _energy(made: LoTRGroup | LoRAGroup) -> float:
    return float((_certificate(made).norms ** 2).sum())


def _chosen(group: LoRAGroup, choice: Choice) -> LoTRGroup | LoRAGroup:
    if FORMS[choice.candidate.format].kept:
        return kept_as_is(group, choice.stack)
    return _stored(group, choice.stack)


def kept_as_is(group: LoRAGroup, stack: Compressed) -> LoRAGroup:
    """The group with its own factors, and a certificate that nothing is lost."""
    norms = to_numpy(layer_norms(stack))
    nothing = np.float64(0.0)
    certificate = Certificate(np.zeros_like(norms), norms, nothing, nothing, "as it is", 0)
    return LoRAGroup(group.name, group.modules, certificate)


def _stored(group: LoRAGroup, stack: Compressed) -> LoTRGroup:
    """The group as a compressed stack on NumPy."""
    certificate = stack.certificate
    assert certificate is not None
    on_host = replace(
        certificate,
        distances=to_numpy(certificate.distances),
        norms=to_numpy(certificate.norms),
        lower=np.float64(float(certificate.lower)),
        upper=np.float64(float(certificate.upper)),
    )
    arrays = {name: to_numpy(array) for name, array in arrays_of(stack).items()}
    on_numpy = replace(stack, **arrays, certificate=on_host)
    return LoTRGroup(group.name, group.targets, on_numpy)
