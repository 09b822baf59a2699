"""Formats and ranks for all stacks of a bank, so that every adapter keeps to the error asked for.

A bank bounds the relative error of every adapter, not of every stack: Σ over its modules of
‖ΔW − ΔŴ‖² ≤ ε²·‖ΔW‖². One division of the error over all stacks minimises the bytes for a weighted
sum of these errors. Weights start at 1 / ‖ΔW‖² for each adapter, so that all count the same (the
JD-Full objective), and grow for the adapters that come out above ε, until none does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from lotr_tn.analysis.allocation import Menu
from lotr_tn.analysis.candidates import Subject
from lotr_tn.analysis.coordinates import Coordinates
from lotr_tn.analysis.curve import Curve
from lotr_tn.analysis.curves import layer_losses
from lotr_tn.analysis.division import Point, Points, divide_points, points_of
from lotr_tn.analysis.forms import FORMS, FormatName, Options, auto_forms
from lotr_tn.banks.making.stacks import ReducedStack
from lotr_tn.linalg.ranks import ITEM_SIZES, Budget, TotalError

ROUNDS = 6
"""Times that weights are refined."""

DAMPING = 0.8
"""Power of an adapter's squared error, over the one asked for, by which its weight grows."""

SHARES = 8
"""Times that less of the error is divided, for weights with which an adapter exceeds it."""

SPENT = 0.98
"""Share of the error asked for that every adapter has to use, for weights to be good enough."""

GAIN = 0.995
"""Share of the bytes that another round has to come down to, for yet another to be made."""

HELD = 1 << 26
"""Bytes of coordinates that are held in memory; beyond, they are read again from the spool."""

HEADER = 150
"""Bytes of a bank's header that one tensor takes, about: name, dtype, shape, checksum."""

DESCRIBED = 200
"""Bytes that a stack takes beside its own tensors, about: its names, shape and places."""

NEAR = 1.1
"""How far above the smallest file the curves of a way, or of one form, may lie for it to be made:
what refining and a method's own gains may bring."""

POINTS = 1024
"""Points of a curve, at most: a stack of thousands of rank terms has no need of each of them."""


def sharing() -> tuple[FormatName, ...]:
    """The forms of a stack that is only known between its bases."""
    return tuple(name for name, form in FORMS.items() if form.curve and form.takes_cores)


@dataclass(frozen=True)
class Wanted:
    """What a bank is asked for."""

    rule: TotalError | Budget  # the error, or the budget for all stacks
    each: bool  # whether every adapter counts the same and keeps to the error; else all together do
    options: Options  # how candidates are made
    spent: int = 0  # what of a budget other things take


@dataclass(frozen=True, eq=False)
class Choices:
    """A point for each stack."""

    # (N,) by which each adapter's updates are multiplied before stacks are decomposed
    factors: np.ndarray
    stacks: tuple["Weighed", ...]  # the stacks, weighed, with their curves
    points: tuple[Point, ...]  # the format and place chosen for each
    bytes: int  # what all stacks take, their part of the header too, predicted
    numbers: int  # what their numbers take alone
    errors: np.ndarray  # (N,) the relative error of each adapter, predicted
    share: float = 1.0  # of the squared error asked for that was divided
    even: dict[int, Subject] = field(default_factory=dict)  # curves of stacks as they are

    @property
    def least(self) -> float:
        """What all stacks may come down to when they are made.

        Some methods gain on their curve, and headers are known to a quarter.
        """
        gains = any(FORMS[name].least is not None for name, _ in self.points)
        return (self.bytes - (self.bytes - self.numbers) / 4) / (NEAR if gains else 1)


@dataclass(frozen=True, eq=False)
class Weighed:
    """A stack with weighed layers, and its curves."""

    reduced: ReducedStack
    factors: np.ndarray  # (L,)
    options: Options
    curves: dict[FormatName, Curve]
    points: Points
    held: Subject | None
    known: dict[Point, np.ndarray] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(
        reduced: ReducedStack,
        factors: np.ndarray,
        wanted: Wanted,
        hold: bool,
        known: Callable[[Callable[[], Subject]], Subject],
    ) -> "Weighed":
        """The stack, layer l times factors[l]; `known` keeps the curves of equal factors."""
        options = replace(wanted.options, formats=_worth_trying(reduced, wanted.options.formats))
        if (factors == factors[0]).all():
            ones = np.ones(len(factors))
            subject = _scaled(known(lambda: _subject(reduced, ones, options)), float(factors[0]))
        else:
            subject = _subject(reduced, factors, options)
        points = points_of(subject, wanted.rule, options, bounds=False)
        points = with_headers(points, wanted, int(reduced.fleet.bytes.sum()))
        held = subject if hold else None
        return Weighed(reduced, factors, options, dict(subject.curves), points, held)

    @property
    def subject(self) -> Subject:
        """The stack in coordinates, with its curves, which are not computed again."""
        fleet = self.reduced.fleet
        return self.held or Subject(
            self.reduced.coordinates().weighed(self.factors),
            fleet.stored,
            fleet.dtype,
            self.curves,
            self.options.limits,
        )

    def losses(self, point: Point) -> np.ndarray:
        """(L,) squared error of each layer at a point, as it was before weighing."""
        if point not in self.known:
            curve, limits = self.curves[point[0]], self.options.limits
            found = layer_losses(self.subject.coordinates, curve, point[1], limits)
            self.known[point] = found / self.factors**2 + self.reduced.missed
        return self.known[point]

    def bytes(self, point: Point) -> int:
        """What the stack takes at a point."""
        if FORMS[point[0]].kept:
            return int(self.reduced.fleet.bytes.sum())
        return int(self.curves[point[0]].parameters[point[1]]) * ITEM_SIZES[self.options.dtype]

    def header(self, point: Point) -> int:
        """Bytes of the header that the stack takes, about: bases, own numbers, index, figures."""
        return DESCRIBED + HEADER * len(FORMS[point[0]].axes)


def with_headers(points: Points, wanted: Wanted, kept: int) -> Points:
    """Points that also cost what the header takes of each form; of numbers as they are.

    LoRAs that are kept take `kept` bytes, each in its own dtype.
    """
    menu = points.menu
    if not (isinstance(wanted.rule, Budget) and wanted.rule.params is not None):
        headers = np.array([HEADER * len(FORMS[name].axes) for name, _ in points.names])
        own = np.array([FORMS[name].kept for name, _ in points.names])
        menu = Menu(np.where(own, kept, menu.cost) + headers, menu.loss)
    return Points(points.names, menu, menu)  # bounds of other methods would be as long


def _worth_trying(reduced: ReducedStack, formats: tuple[FormatName, ...]) -> tuple[FormatName, ...]:
    """The forms that can be best: of a bank's bases those that share both sides, of few layers few.

    A layer alone shares nothing, and two have no cores to speak of: low rank saves nothing there.
    """
    if reduced.kept is not None:
        return tuple(name for name in formats if name in sharing()) or sharing()
    layers = len(reduced.fleet.layers)
    if layers > 2 or not {*auto_forms()} <= {*formats}:
        return formats
    return tuple(name for name in formats if name not in auto_forms() or _suits(name, layers))


def _suits(name: FormatName, layers: int) -> bool:
    """Whether a form can be best for one layer, or for two."""
    form = FORMS[name]
    low_rank_cores = form.shares and any(form.per_term(array) for array in form.axes)
    return not form.shares if layers == 1 else not low_rank_cores


def _scaled(subject: Subject, factor: float) -> Subject:
    """A subject of a stack, all of whose layers are multiplied by one factor."""
    own, curves = subject.coordinates, subject.curves.items()
    sides = own.left * factor, own.right, own.left_sigma * factor, own.right_sigma * factor
    return replace(
        subject,
        coordinates=Coordinates(own.shape, own.slices, *sides),
        curves={
            name: Curve(c.format, c.parameters, c.lost * factor**2, c.settings)
            for name, c in curves
        },
    )


def _subject(reduced: ReducedStack, factors: np.ndarray, options: Options) -> Subject:
    coordinates = reduced.coordinates().weighed(factors)
    subject = Subject.of(coordinates, reduced.fleet.stored, reduced.fleet.dtype, options)
    return replace(subject, curves={name: _thin(c) for name, c in subject.curves.items()})


def _thin(curve: Curve) -> Curve:
    """At most so many points of a curve, evenly spread, both ends among them."""
    size = len(curve.lost)
    kept = np.unique(np.linspace(0, size - 1, min(size, POINTS)).round().astype(np.int64))
    return Curve(curve.format, curve.parameters[kept], curve.lost[kept], curve.settings[kept])


def choose(
    stacks: Sequence[ReducedStack],
    energies: np.ndarray,
    wanted: Wanted,
    progress: Callable[[str], None] | None = None,
    *,
    refine: bool = True,
    known: Choices | None = None,
) -> Choices:
    """Formats and ranks for all stacks, of adapters whose ‖ΔW‖² are `energies` (N,).

    Weights are refined until every adapter keeps to the error; without `refine` it holds for their
    mean square, which tells ways of stacking apart. `progress` hears of each stack in every round;
    `known` is an earlier choice of these very stacks: what it has found is not found again.
    Cost: a HOSVD in coordinates and its curves for each stack, at most six times.
    """
    before, even = ((), {}) if known is None else (known.stacks, known.even)
    work = _Choosing(tuple(stacks), energies, wanted, progress, even, before)
    if isinstance(wanted.rule, Budget) or not wanted.each or not refine:
        weights = np.ones(len(energies))
        found = work.picked(work.weighed(weights), weights, 1.0)
        return work.within(found, weights) if wanted.each and work.bounds else found
    return work.refined()


@dataclass(frozen=True, eq=False)
class _Choosing:
    stacks: tuple[ReducedStack, ...]
    energies: np.ndarray
    wanted: Wanted
    progress: Callable[[str], None] | None
    # the curves of stacks as they are, by the place of each, where weights are equal
    even: dict[int, Subject] = field(default_factory=dict)
    before: tuple[
        Weighed, ...
    ] = ()  # the stacks as an earlier choice weighed them, if there is one

    @property
    def epsilon(self) -> float:
        assert isinstance(self.wanted.rule, TotalError)
        return self.wanted.rule.epsilon

    @property
    def bounds(self) -> bool:
        """Whether an error is asked for, and no size."""
        return isinstance(self.wanted.rule, TotalError)

    def kept(self, place: int, make: Callable[[], Subject]) -> Subject:
        """The curves of a stack as it is, which are worked out once."""
        if place not in self.even:
            self.even[place] = make()
        return self.even[place]

    @cached_property
    def hold(self) -> bool:
        """Whether all coordinates fit in memory."""
        terms = sum(2 * int(r.fleet.ranks.sum()) ** 2 for r in self.stacks if r.kept is None)
        return 8 * terms <= HELD and all(r.kept is None for r in self.stacks)

    def factors(self, weights: np.ndarray) -> np.ndarray:
        """What multiplies each adapter: the root of its weight over its norm."""
        energies = self.energies if self.wanted.each else np.full(len(weights), self.total)
        safe = np.where(energies > 0, energies, 1.0)
        return np.sqrt(weights / safe)

    @cached_property
    def present(self) -> np.ndarray:
        """The adapters that have layers in these stacks."""
        return np.unique(np.concatenate([one.fleet.adapters for one in self.stacks]))

    @property
    def total(self) -> float:
        """‖·‖² of all adapters together."""
        return float(self.energies.sum())

    def weighed(self, weights: np.ndarray) -> tuple[Weighed, ...]:
        factors = self.factors(weights)
        found = []
        for place, reduced in enumerate(self.stacks):
            if self.progress is not None:
                self.progress(reduced.fleet.name)
            mine = factors[reduced.fleet.adapters]
            if self.before and np.array_equal(self.before[place].factors, mine):
                found.append(self.before[place])
                continue
            found.append(
                Weighed.of(reduced, mine, self.wanted, self.hold, partial(self.kept, place))
            )
        return tuple(found)

    def picked(self, stacks: tuple[Weighed, ...], weights: np.ndarray, share: float) -> Choices:
        """The best points with these weights, for a share of the squared error allowed."""
        rule, factors = self.wanted.rule, self.factors(weights)
        allowed = 0.0
        if isinstance(rule, TotalError):
            whole = float((factors**2 * self.energies)[self.present].sum())
            allowed = share * rule.epsilon**2 * whole
            allowed -= sum(float((s.factors**2 * s.reduced.missed).sum()) for s in stacks)
        points, spent = [stack.points for stack in stacks], self.wanted.spent
        if isinstance(rule, Budget):  # what is no number is an estimate, which refuses nothing
            least = sum(float(one.menu.cost.min()) for one in points)
            spent = min(spent, math.floor(rule.size - least))
        division = divide_points(points, rule, allowed=max(allowed, 0.0), spent=spent)
        chosen = tuple(zip(stacks, division.points, strict=True))
        size = sum(stack.bytes(point) for stack, point in chosen)
        lost = np.zeros(len(weights))
        for stack, point in chosen:
            np.add.at(lost, stack.reduced.fleet.adapters, stack.losses(point))
        safe = np.where(self.energies > 0, self.energies, 1.0)
        errors = np.sqrt(np.maximum(lost, 0.0) / safe)
        whole = size + sum(stack.header(point) for stack, point in chosen)
        return Choices(factors, stacks, division.points, whole, size, errors, share, self.even)

    def refined(self) -> Choices:
        """The smallest choice found whose worst adapter keeps to the error."""
        weights, ratios = np.ones(len(self.energies)), np.ones(1)
        best: Choices | None = None
        damping = DAMPING
        for _ in range(ROUNDS):
            tried = np.clip(weights * np.clip(ratios, 1 / 4, 4.0) ** damping, 1e-4, 1e4)
            tried /= tried.mean()
            first = self.picked(self.weighed(tried), tried, 1.0)
            found = self.within(first, tried)
            gained = best is None or found.bytes <= GAIN * best.bytes
            if best is None or found.bytes < best.bytes:
                best = found
            if gained:
                weights = tried
                ratios = (first.errors / self.epsilon) ** 2 if self.epsilon else np.zeros(1)
                spent = found.errors[self.present].min(initial=1.0) >= SPENT * self.epsilon
                if ratios.max(initial=0.0) <= 1 or spent:  # weights cannot make more of it
                    break
            elif damping == DAMPING:
                damping = DAMPING / 2  # it may have been too far
            else:
                break
        assert best is not None
        return best

    def within(self, found: Choices, weights: np.ndarray) -> Choices:
        """With these weights, as large a share of the error that no adapter exceeds it."""
        share = found.share
        for attempt in range(SHARES):
            worst = float(found.errors.max(initial=0.0))
            if worst <= self.epsilon * (1 - 1e-9):
                return found
            # what is chosen goes in steps: ever more is taken away until it takes one
            share *= min((self.epsilon / worst) ** 2, 0.999) ** 2**attempt
            found = self.picked(found.stacks, weights, share)
        return self.picked(found.stacks, weights, 0.0)


def shrunk(choices: Choices, energies: np.ndarray, wanted: Wanted, share: float) -> Choices:
    """The same stacks and weights with a smaller share of the error."""
    work = _Choosing(tuple(s.reduced for s in choices.stacks), energies, wanted, None)
    weights = choices.factors**2 / work.factors(np.ones(len(energies))) ** 2
    return work.picked(choices.stacks, weights, share)


def in_one_form(
    choices: Choices, energies: np.ndarray, wanted: Wanted, name: FormatName
) -> Choices | None:
    """The same stacks and weights, in one form all that can have it; None where none can."""
    stacks: list[Weighed] = []
    if not any(name in one.curves for one in choices.stacks):
        return None
    for one in choices.stacks:
        places = [at for at, point in enumerate(one.points.names) if point[0] == name]
        if not places:  # as a layer alone, which shares nothing
            stacks.append(one)
            continue
        menu = Menu(one.points.menu.cost[places], one.points.menu.loss[places])
        names = tuple(one.points.names[at] for at in places)
        stacks.append(replace(one, points=Points(names, menu, menu)))
    work = _Choosing(tuple(s.reduced for s in stacks), energies, wanted, None)
    weights = choices.factors**2 / work.factors(np.ones(len(energies))) ** 2
    found = work.picked(tuple(stacks), weights, 1.0)
    return work.within(found, weights) if wanted.each else found
