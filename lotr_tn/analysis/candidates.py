"""Stacks in the formats that can be chosen: predicted from their curves, or made and measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lotr_tn.analysis.coordinates import Coordinates
from lotr_tn.analysis.curves import FORMATS, Curve, FormatName, curves_of, layer_ranks
from lotr_tn.decompose.low_rank_cores import low_rank_tucker2
from lotr_tn.decompose.truncation import cut_layers
from lotr_tn.decompose.tucker import hooi, hosvd, st_hosvd
from lotr_tn.decompose.tucker1 import tucker1
from lotr_tn.formats import LoRAStack, LowRankTucker2, SharedSide, Tucker1, Tucker2
from lotr_tn.linalg.ranks import ITEM_SIZES, FixedRank, RankLimits
from lotr_tn.ops.counts import parameter_count

__all__ = [
    "DECOMPOSITIONS",
    "Candidate",
    "Options",
    "Stored",
    "Subject",
    "joint_error",
    "make_at_ranks",
    "make_point",
    "make_shared",
    "measured_candidate",
    "predicted_candidate",
]

Stored: TypeAlias = LoRAStack | Tucker2 | Tucker1 | LowRankTucker2
DECOMPOSITIONS = {"hooi": hooi, "st-hosvd": st_hosvd, "hosvd": hosvd}


@dataclass(frozen=True)
class Options:
    """How candidates are made.

    Attributes:
        formats: the formats that may be chosen.
        dtype: in which all but the LoRA as it is are stored.
        method: how shared factors are found: `hooi`, `st-hosvd` or `hosvd`.
        limits: on the ranks, where a subject is made with these options.
    """

    formats: tuple[FormatName, ...] = FORMATS
    dtype: str = "float32"
    method: str = "hooi"
    limits: RankLimits = field(default_factory=RankLimits)


@dataclass(frozen=True, eq=False)
class Subject:
    """A stack to choose a format for.

    Attributes:
        coordinates: of the stack.
        stored: numbers that its LoRA stores.
        dtype: in which the LoRA is stored.
        curves: of all formats that may be chosen.
        limits: on the ranks of these curves.
    """

    coordinates: Coordinates
    stored: int
    dtype: str
    curves: Mapping[FormatName, Curve]
    limits: RankLimits = field(default_factory=RankLimits)

    @classmethod
    def of(cls, coordinates: Coordinates, stored: int, dtype: str, options: Options) -> "Subject":
        """The subject with its curves."""
        curves = curves_of(coordinates, stored, options.formats, options.limits)
        return cls(coordinates, stored, dtype, curves, options.limits)

    def bytes_of(self, format: FormatName, parameters: int, dtype: str) -> int:
        """What so many numbers take: the LoRA as it is keeps its own dtype."""
        return parameters * ITEM_SIZES[self.dtype if format == "lora" else dtype]


@dataclass(frozen=True)
class Candidate:
    """A stack in one format, predicted from its curve or made and measured.

    Attributes:
        format: the format.
        parameters: numbers stored.
        bytes: what they take.
        relative_error: Frobenius, of the whole stack.
        setting: the point on the curve, as `Curve.settings` has it; for a LoTR that was made, its
            ranks.
        measured: whether it was made and measured; else it is what the curve says, which a LoTR by
            HOOI may still undercut.
        least: no stack of this format within the same error stores less, where that is known to be
            below `parameters`.
    """

    format: FormatName
    parameters: int
    bytes: int
    relative_error: float
    setting: tuple[int, ...]
    measured: bool = False
    least: int | None = None


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
    )


def measured_candidate(
    subject: Subject, format: FormatName, stack: Stored, options: Options
) -> Candidate:
    """What a stack that was made stores and loses."""
    assert stack.certificate is not None
    parameters = parameter_count(stack)
    match stack:
        case LoRAStack():
            setting = (sum(stack.ranks),)
        case Tucker2():
            setting = stack.ranks
        case Tucker1():
            setting = (stack.rank,)
        case LowRankTucker2():
            setting = (*stack.shared_ranks, sum(stack.ranks))
    size = subject.bytes_of(format, parameters, options.dtype)
    error = stack.certificate.relative_error
    return Candidate(format, parameters, size, error, setting, measured=True)


def make_at_ranks(
    stack: LoRAStack, format: FormatName, ranks: FixedRank, options: Options
) -> Stored:
    """The stack in one format at given ranks, or the largest that it has.

    For `truncated` every layer keeps r1, for one shared side r1 directions are shared, and
    low-rank cores keep all their terms.
    """
    dtype = options.dtype
    match format:
        case "truncated":
            _, m, n = stack.shape
            cut = tuple(min(ranks.r1, own, m, n) for own in stack.ranks)
            return cut_layers(stack, cut, dtype)
        case "shared-in" | "shared-out":
            return tucker1(stack, ranks, _side(format), dtype=dtype)
        case "lotr-low-rank":
            return low_rank_tucker2(stack, ranks.pair, sum(stack.ranks), dtype=dtype)
        case "lotr":
            return DECOMPOSITIONS[options.method](stack, ranks, dtype=dtype)
        case "lora":
            return stack


def _side(format: Literal["shared-in", "shared-out"]) -> SharedSide:
    return "in" if format == "shared-in" else "out"


def make_point(
    stack: LoRAStack, subject: Subject, curve: Curve, place: int, options: Options
) -> Stored:
    """The stack at one point of a curve, certified; the stack itself for the LoRA as it is."""
    setting = [int(x) for x in curve.settings[place]]
    if curve.format == "truncated":
        ranks = layer_ranks(subject.coordinates, setting[0], subject.limits)
        return cut_layers(stack, ranks, options.dtype)
    return make_shared(stack, curve.format, setting, subject.limits, options)


def make_shared(
    stack: LoRAStack,
    format: FormatName,
    setting: Sequence[int],
    limits: RankLimits,
    options: Options,
) -> Stored:
    """The same for a format whose setting says all that has to be known of its layers.

    Args:
        stack: the LoRA.
        format: any but `truncated`.
        setting: the point, as `Curve.settings` has it.
        limits: on the ranks of low-rank cores.
        options: how candidates are made.
    """
    match format:
        case "shared-in" | "shared-out":
            return tucker1(stack, FixedRank(setting[0]), _side(format), dtype=options.dtype)
        case "lotr":
            rule = FixedRank(setting[0], setting[1])
            return DECOMPOSITIONS[options.method](stack, rule, dtype=options.dtype)
        case "lotr-low-rank":
            pair = setting[0], setting[1]
            return low_rank_tucker2(stack, pair, setting[2], limits=limits, dtype=options.dtype)
        case "lora":
            return stack
        case "truncated":
            raise AssertionError("a number of terms does not say which layers keep them")
