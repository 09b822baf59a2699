"""The best format for one stack within an error, as it is then stored."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.analysis.candidates import (
    Candidate,
    Stored,
    Subject,
    make_point,
    measured_candidate,
    predicted_candidate,
)
from lotr_tn.analysis.curve import Curve, best_point
from lotr_tn.analysis.forms import FORMS, FormatName, Options
from lotr_tn.analysis.requested import made_within
from lotr_tn.decompose.search import meet_error, resolution
from lotr_tn.errors import FormatError, OptionError, PrecisionWarning
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.ranks import Energy, RankLimits, RelativeError


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen for a stack."""

    candidate: Candidate  # measured unless it is the LoRA as it is
    stack: Stored  # as stored; the one given for the LoRA as it is
    others: tuple[Candidate, ...]  # in the order of `FORMS`

    @property
    def all(self) -> tuple[Candidate, ...]:
        """All candidates, in the order of `FORMS`."""
        found = (self.candidate, *self.others)
        return tuple(sorted(found, key=lambda candidate: list(FORMS).index(candidate.format)))


def choose_within(
    stack: LoRAStack, subject: Subject, rule: RelativeError | Energy, options: Options
) -> Choice:
    """The smallest form of a stack in bytes within a relative error, made and measured.

    The exact curves of all formats say what each would store. A LoTR by HOOI may store less; it is
    made where its lower bound leaves it a chance. Where rounding to the dtype costs a stack its
    place, the next one is made. None stores more numbers than the LoRA; of equals the earlier in
    the order of `FORMS` is taken. An OptionError says that none is left.
    """
    found: dict[FormatName, Candidate] = {}
    stacks: dict[FormatName, Stored] = {}
    allowed = allowed_loss(rule.epsilon, subject.coordinates.energy, options.dtype)
    for name, curve in subject.curves.items():
        place = best_point(curve, allowed)
        if place is not None:
            found[name] = _predicted(subject, curve, place, rule, options)
    above: list[Candidate] = []  # asked for, and losing more than may be lost
    for name in options.formats:
        if name in subject.curves:
            continue
        made = made_within(stack, FORMS[name], rule, replace(options, limits=subject.limits))
        measured = measured_candidate(subject, made, options)
        if measured.relative_error > rule.epsilon > 0 and len(options.formats) > 1:
            above.append(measured)
        else:
            found[name], stacks[name] = measured, made
    while True:
        name = _smallest(found, subject)
        if name is None:
            raise OptionError(
                f"no ranks within the limits keep the relative error to {rule.epsilon:g}; allow "
                "larger ranks or a larger error"
            )
        if FORMS[name].kept or name in stacks:
            others = (candidate for key, candidate in found.items() if key != name)
            return Choice(found[name], stacks.get(name, stack), (*others, *above))
        try:
            made = _made_within(stack, subject, name, rule, options)
        except FormatError:  # an entry is beyond the range of float16
            if len(found) == 1:
                raise
            del found[name]
            continue
        measured = measured_candidate(subject, made, options)
        if measured.relative_error > rule.epsilon > 0 and len(found) > 1:
            del found[name]  # the dtype is too coarse for this error
            continue
        found[name], stacks[name] = measured, made


def allowed_loss(epsilon: float, energy: float, dtype: str) -> float:
    """Squared error that may be cut off: what rounding to the dtype may take is set aside."""
    return max(epsilon**2 - UNIT_ROUNDOFF[dtype] ** 2, 0.0) * energy


def _predicted(
    subject: Subject, curve: Curve, place: int, rule: RelativeError | Energy, options: Options
) -> Candidate:
    candidate = predicted_candidate(subject, curve, place, options)
    fewest, coordinates = FORMS[curve.format].least, subject.coordinates
    least = fewest and fewest(coordinates, rule.epsilon**2 * coordinates.energy, options)
    if least is None:
        return candidate
    return replace(candidate, least=min(least, candidate.parameters))


def _smallest(found: Mapping[FormatName, Candidate], subject: Subject) -> FormatName | None:
    """The format of fewest bytes, by the least that each could store; None where there is none."""
    most = subject.stored if any(FORMS[name].kept for name in found) else math.inf
    sizes: dict[FormatName, int] = {}
    for name in FORMS:  # of equals the first is taken
        if (candidate := found.get(name)) is None:
            continue
        numbers = candidate.parameters if candidate.least is None else candidate.least
        if numbers <= most:
            sizes[name] = numbers * (candidate.bytes // max(candidate.parameters, 1))
    return min(sizes, key=lambda name: sizes[name], default=None)


def _made_within(
    stack: LoRAStack,
    subject: Subject,
    name: FormatName,
    rule: RelativeError | Energy,
    options: Options,
) -> Stored:
    """The smallest stack of a format whose error, as stored, keeps to the rule."""
    within = FORMS[name].within
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)  # what is measured decides
        if within is not None and subject.limits == RankLimits():
            return within(stack, rule, options)
        curve, total = subject.curves[name], subject.coordinates.energy

        def attempt(budget: float) -> Stored:
            place = best_point(curve, budget)
            last = len(curve.parameters) - 1
            return make_point(stack, subject, curve, last if place is None else place, options)

        floor = resolution(wide=options.dtype == "float64") ** 2 * total
        return meet_error(attempt, rule, total, floor, options.dtype)
