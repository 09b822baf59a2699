"""Stacks in the formats that can be chosen: predicted from their curves, or made and measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from lotr_tn.analysis.coordinates import Coordinates
from lotr_tn.analysis.curve import Curve
from lotr_tn.analysis.curves import curves_of
from lotr_tn.analysis.forms import FORMS, FormatName, Options, form_of
from lotr_tn.formats import LoRAStack, LowRankTucker2, Tucker1, Tucker2
from lotr_tn.linalg.ranks import ITEM_SIZES, RankLimits
from lotr_tn.ops.counts import parameter_count

Stored: TypeAlias = LoRAStack | Tucker2 | Tucker1 | LowRankTucker2


@dataclass(frozen=True, eq=False)
class Subject:
    """A stack to choose a format for."""

    coordinates: Coordinates
    stored: int  # numbers that its LoRA stores
    dtype: str  # in which the LoRA is stored
    curves: Mapping[FormatName, Curve]  # of all formats that may be chosen
    limits: RankLimits = field(default_factory=RankLimits)  # on the ranks of the curves

    @classmethod
    def of(cls, coordinates: Coordinates, stored: int, dtype: str, options: Options) -> "Subject":
        """The subject with its curves."""
        curves = curves_of(coordinates, stored, options.formats, options.limits)
        return cls(coordinates, stored, dtype, curves, options.limits)

    def bytes_of(self, format: FormatName, parameters: int, dtype: str) -> int:
        """What so many numbers take: the LoRA as it is keeps its own dtype."""
        return parameters * ITEM_SIZES[self.dtype if FORMS[format].kept else dtype]


@dataclass(frozen=True)
class Candidate:
    """A stack in one format, predicted from its curve or made and measured."""

    format: FormatName
    parameters: int
    bytes: int
    relative_error: float  # Frobenius, of the whole stack
    setting: tuple[int, ...]  # as `Curve.settings` has it; of a LoTR that was made, its ranks
    dtype: str  # in which it is stored
    measured: bool = False  # or else predicted, which a LoTR by HOOI may still undercut
    least: int | None = None  # no stack of this format and error stores less, if known to be lower


def joint_error(candidates: Sequence[Candidate], subjects: Sequence[Subject]) -> float:
    """The relative error of all subjects together, each in its candidate's form."""
    pairs = zip(candidates, subjects, strict=True)
    lost = sum(one.relative_error**2 * subject.coordinates.energy for one, subject in pairs)
    energy = sum(subject.coordinates.energy for subject in subjects)
    return (lost / energy) ** 0.5 if energy else 0.0


def predicted_candidate(subject: Subject, curve: Curve, place: int, options: Options) -> Candidate:
    """What a point of a curve says."""
    parameters = int(curve.parameters[place])
    energy = subject.coordinates.energy
    return Candidate(
        curve.format,
        parameters,
        subject.bytes_of(curve.format, parameters, options.dtype),
        (float(curve.lost[place]) / energy) ** 0.5 if energy else 0.0,
        tuple(int(x) for x in curve.settings[place]),
        subject.dtype if FORMS[curve.format].kept else options.dtype,
    )


def measured_candidate(subject: Subject, stack: Stored, options: Options) -> Candidate:
    """What a stack that was made stores and loses."""
    assert stack.certificate is not None
    form, parameters = form_of(stack), parameter_count(stack)
    size = subject.bytes_of(form.name, parameters, options.dtype)
    error = stack.certificate.relative_error
    setting = form.setting(stack)
    return Candidate(form.name, parameters, size, error, setting, options.dtype, measured=True)


def make_point(
    stack: LoRAStack, subject: Subject, curve: Curve, place: int, options: Options
) -> Stored:
    """The stack at one point of a curve, certified; the stack itself for the LoRA as it is."""
    make = FORMS[curve.format].make
    assert make is not None  # as every form with a curve has
    options = replace(options, limits=subject.limits)
    return make(
        stack, [int(x) for x in curve.settings[place]], options, lambda: subject.coordinates
    )
