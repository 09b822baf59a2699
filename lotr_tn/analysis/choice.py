"""The best format for one stack within an error, as it is then stored."""

import math
import warnings
from dataclasses import dataclass, replace
from typing import TypeAlias

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

    The exact curves of all formats say what each would store in each dtype that `options` allow,
    rounding being a part of the error. A LoTR by HOOI may store less; it is made where its lower
    bound leaves it a chance. Where what is measured exceeds the error, the next one is made. None
    stores more numbers than the LoRA; of equals the earlier in the order of `FORMS` is taken. An
    OptionError says that none is left.
    """
    if options.each_layer and rule.epsilon:
        return _every_layer_within(stack, subject, rule, options)
    work = _Within(stack, subject, rule, options)
    while True:
        key = work.smallest()
        if key is None:
            raise OptionError(
                f"no ranks within the limits keep the relative error to {rule.epsilon:g}; allow "
                "larger ranks or a larger error"
            )
        if FORMS[key[0]].kept or key in work.stacks:
            return work.choice(key)
        work.make(key)


def _every_layer_within(
    stack: LoRAStack, subject: Subject, rule: RelativeError | Energy, options: Options
) -> Choice:
    """The smallest form found whose every layer keeps to the error: asked of the stack, ever less.

    The LoRA as it is ends the search where it may be chosen.
    """
    free, asked = replace(options, each_layer=False), rule.epsilon
    while True:
        choice = choose_within(stack, subject, RelativeError(asked), free)
        if FORMS[choice.candidate.format].kept or asked == 0:
            return choice
        certificate = choice.stack.certificate
        assert certificate is not None
        worst = certificate.worst_error
        if worst <= rule.epsilon:
            return choice
        asked = asked * max(0.99 * rule.epsilon / worst, 0.5)
        asked = 0.0 if asked < LEAST_ASKED * rule.epsilon else asked


LEAST_ASKED = 1e-3
"""Share of the error of a layer below which the stack is asked to lose nothing."""

Key: TypeAlias = tuple[FormatName, str]  # a format and a dtype


class _Within:
    """What is known of the candidates while the smallest is looked for."""

    def __init__(
        self, stack: LoRAStack, subject: Subject, rule: RelativeError | Energy, options: Options
    ) -> None:
        self.stack, self.subject, self.rule = stack, subject, rule
        self.headers = options.headers
        self.options = {one.dtype: one for one in options.each}
        self.found: dict[Key, Candidate] = {}
        self.stacks: dict[Key, Stored] = {}
        self.above: list[Candidate] = []  # made, and losing more than may be lost
        for dtype, own in self.options.items():
            allowed = allowed_loss(rule.epsilon, subject.coordinates.energy, dtype)
            for name, curve in subject.curves.items():
                place = best_point(curve, allowed)
                if place is not None:
                    self.found[name, dtype] = _predicted(subject, curve, place, rule, own)
        for name in options.formats:
            if name not in subject.curves:
                self.ask_for(name)

    def ask_for(self, name: FormatName) -> None:
        """A form without a curve, made in the narrowest dtype that keeps to the error."""
        for dtype, own in self.options.items():
            made = made_within(
                self.stack, FORMS[name], self.rule, replace(own, limits=self.subject.limits)
            )
            measured = measured_candidate(self.subject, made, own)
            self.found[name, dtype], self.stacks[name, dtype] = measured, made
            if measured.relative_error <= self.rule.epsilon or self.rule.epsilon == 0:
                return
            if len(self.found) > 1:
                self.drop((name, dtype))

    def make(self, key: Key) -> None:
        """Make a candidate and measure it; it is dropped where it is not what was asked for."""
        name, dtype = key
        try:
            made = _made_within(self.stack, self.subject, name, self.rule, self.options[dtype])
        except FormatError:  # an entry is beyond the range of float16
            if len(self.found) == 1:
                raise
            del self.found[key]
            return
        self.found[key] = measured_candidate(self.subject, made, self.options[dtype])
        self.stacks[key] = made
        if self.found[key].relative_error > self.rule.epsilon > 0 and len(self.found) > 1:
            self.drop(key)  # the dtype is too coarse for this error

    def drop(self, key: Key) -> None:
        """Leave a candidate out."""
        self.above.append(self.found.pop(key))
        self.stacks.pop(key, None)

    def smallest(self) -> Key | None:
        """The candidate of fewest bytes, by the least that each could store."""
        kept = any(FORMS[name].kept for name, _ in self.found)
        most, layers = self.subject.stored if kept else math.inf, self.subject.coordinates.shape[0]
        sizes: dict[Key, int] = {}
        for name in FORMS:  # of equals the first is taken
            for dtype in self.options:
                if (candidate := self.found.get((name, dtype))) is None:
                    continue
                numbers = candidate.parameters if candidate.least is None else candidate.least
                if numbers <= most:
                    size = self.subject.bytes_of(name, numbers, dtype)
                    header = FORMS[name].header(layers) if self.headers else 0
                    sizes[name, dtype] = size + header
        return min(sizes, key=lambda key: sizes[key], default=None)

    def choice(self, key: Key) -> Choice:
        """The one that was found, with the smallest of each other format."""
        others: dict[FormatName, Candidate] = {}
        for candidate in (*self.above, *self.found.values()):
            name = candidate.format
            known = others.get(name)
            beats = known is None or known in self.above or candidate.bytes < known.bytes
            if name != key[0] and beats:
                others[name] = candidate
        return Choice(self.found[key], self.stacks.get(key, self.stack), tuple(others.values()))


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
