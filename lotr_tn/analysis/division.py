"""A size or an error divided over all groups of an adapter, their layers and their formats."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.analysis.allocation import Menu, allocate, cost_of, hull_path, least_loss
from lotr_tn.analysis.candidates import (
    Candidate,
    Subject,
    joint_error,
    make_point,
    measured_candidate,
    predicted_candidate,
)
from lotr_tn.analysis.choice import Choice
from lotr_tn.analysis.forms import FORMS, LORA, FormatName, Options
from lotr_tn.analysis.requested import require_curves
from lotr_tn.errors import OptionError
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.ranks import Budget, TotalError

Point: TypeAlias = tuple[FormatName, int]  # a format, and a place on its curve
ATTEMPTS = 4  # times that an error of all groups is divided, less what was measured above it


@dataclass(frozen=True)
class Division:
    """The points chosen for all groups."""

    points: tuple[Point, ...]
    bound: float  # no stacks in these formats, however made, have less squared loss, or bytes
    cost: float  # what they take


@dataclass(frozen=True, eq=False)
class Points:
    """All points that one group can choose, and what they cost in the unit of the question."""

    names: tuple[Point, ...]
    menu: Menu
    lower: Menu  # the same, with what no stack that shares both sides can undercut


def divide(
    subjects: Sequence[Subject], rule: Budget | TotalError, options: Options, spent: int = 0
) -> Division:
    """The points of all groups' curves that together lose least in a budget, or store least.

    Of the budget some is `spent` already, on what is no group. Every group that is not zero keeps
    at least one direction in it, also where the budget has no room for that. A LoTR that is then
    made by HOOI loses less than its curve says.
    """
    require_curves(options.formats)
    groups = [points_of(subject, rule, options) for subject in subjects]
    allowed = sum(subject.coordinates.energy for subject in subjects)
    if isinstance(rule, TotalError):
        allowed *= rule.epsilon**2
    return divide_points(groups, rule, allowed=allowed, spent=spent)


def divide_points(
    groups: Sequence[Points], rule: Budget | TotalError, *, allowed: float, spent: int = 0
) -> Division:
    """As `divide`, of known points; an error allows this squared loss of all groups together."""
    if isinstance(rule, TotalError):
        menus = [Menu(group.menu.loss, group.menu.cost) for group in groups]
        found = allocate(menus, max(allowed, _least(menus)))
        bound, cost = found.loss, found.loss
        if any(group.lower is not group.menu for group in groups):
            lower = [Menu(group.lower.loss, group.lower.cost) for group in groups]
            bound = min(bound, least_loss(lower, max(allowed, _least(lower))))
    else:
        menus = [group.menu for group in groups]
        found = allocate(menus, max(rule.size - spent, _least(menus)))
        reached = [float(g.lower.loss[at]) for g, at in zip(groups, found.picks, strict=True)]
        bound = least_loss([group.lower for group in groups], rule.size - spent)
        bound, cost = min(bound, sum(reached)), found.cost
    points = tuple(group.names[pick] for group, pick in zip(groups, found.picks, strict=True))
    return Division(points, bound, cost)


def settle(
    stacks: Callable[[], Iterable[LoRAStack]],
    subjects: Sequence[Subject],
    rule: Budget | TotalError,
    options: Options,
    division: Division,
) -> tuple[Division, list[Choice]]:
    """Make every group as it was divided, and measure; what rounding exceeds is divided anew.

    `stacks` gives the groups' LoRAs in order, each time it is called: once for a budget. Returned
    are the division by which the groups were made, and the groups.
    """
    asked = rule
    for attempt in range(ATTEMPTS):
        picked = zip(stacks(), subjects, division.points, strict=True)
        choices = [choose_point(stack, subject, point, options) for stack, subject, point in picked]
        if not isinstance(rule, TotalError) or not isinstance(asked, TotalError):
            return division, choices
        error = joint_error([choice.candidate for choice in choices], subjects)
        if error <= rule.epsilon or attempt == ATTEMPTS - 1:
            return division, choices
        above = error**2 - rule.epsilon**2
        asked = TotalError(max(asked.epsilon**2 - 1.5 * above, 0.0) ** 0.5)
        division = divide(subjects, asked, options)
    raise AssertionError("the last attempt returns")


def require_room(rule: Budget, taken: int, beside: int = 0, *, coded: bool = False) -> None:
    """Refuse a budget that the smallest result, with so much beside its groups, goes beyond."""
    if taken <= rule.size:
        return
    made = "in bits" if coded else "with one direction in every group"
    unit, kept = "parameters", "what is kept as it is"
    if rule.params is None:
        unit, kept = "bytes", f"{kept} and the header"
    more = f", {beside:,} of them for {kept}" if beside else ""
    raise OptionError(
        f"the smallest result, {made}, takes {taken:,} {unit}{more}; the budget is "
        f"{rule.size:,}: ask for more"
    )


def division_path(
    subjects: Sequence[Subject], options: Options, most: int
) -> list[tuple[Point, ...]]:
    """At most so many divisions of growing budgets, evenly spread in size, each of least loss."""
    groups = [points_of(subject, Budget(0), options) for subject in subjects]
    menus = [group.menu for group in groups]
    path = hull_path(menus)
    sizes = np.array([cost_of(menus, picks) for picks in path])
    wanted = np.linspace(sizes[0], sizes[-1], most)
    places = np.unique(np.abs(sizes[None, :] - wanted[:, None]).argmin(axis=1))
    return [
        tuple(group.names[pick] for group, pick in zip(groups, path[place], strict=True))
        for place in places
    ]


def choose_point(stack: LoRAStack, subject: Subject, point: Point, options: Options) -> Choice:
    """The stack at one point, made and measured, beside the best other formats of its size."""
    format, place = point
    curve = subject.curves[format]
    made = make_point(stack, subject, curve, place, options)
    if FORMS[format].kept:
        chosen = predicted_candidate(subject, curve, place, options)
    else:
        chosen = measured_candidate(subject, made, options)
    return Choice(chosen, made, others_of_size(subject, point, options))


def others_of_size(subject: Subject, point: Point, options: Options) -> tuple[Candidate, ...]:
    """Each other format at its best, with no more numbers than a point has."""
    size = int(subject.curves[point[0]].parameters[point[1]])
    others = []
    for name, curve in subject.curves.items():
        within = np.flatnonzero(curve.parameters <= size)
        if name != point[0] and within.size:
            others.append(predicted_candidate(subject, curve, int(within[-1]), options))
    return tuple(others)


def points_of(
    subject: Subject, rule: Budget | TotalError, options: Options, *, bounds: bool = True
) -> Points:
    """What a group can choose from: all points of its curves, with what they cost.

    Without `bounds` the curves themselves stand for what other methods could come down to.
    """
    names: list[Point] = []
    costs, losses, roundings, headers = [], [], [], []
    for name, curve in subject.curves.items():
        kept = np.flatnonzero(_allowed(subject, curve.parameters, rule))
        names.extend((name, int(place)) for place in kept)
        costs.append(_price(subject, name, curve.parameters[kept], rule, options))
        losses.append(curve.lost[kept])
        roundings.append(np.full(len(kept), _rounding(subject, name, rule, options)))
        headers.append(np.full(len(kept), _header(subject, name, rule, options)))
    if not names:
        raise OptionError(
            "no ranks within the limits store less than the LoRA itself; allow smaller ranks"
        )
    cost, lost = np.concatenate(costs), np.concatenate(losses)
    menu = Menu(cost + np.concatenate(headers), lost + np.concatenate(roundings))
    lower = Menu(cost, lost)  # rounding may lose that much, or nothing
    if bounds:
        lower = _with_lower_bounds(subject, lower, rule, options)
    return Points(tuple(names), menu, lower)


def _rounding(
    subject: Subject, name: FormatName, rule: Budget | TotalError, options: Options
) -> float:
    """Squared norm that storing in the dtype may lose, where that is to be looked at."""
    if FORMS[name].kept:
        return 0.0
    roundoff = UNIT_ROUNDOFF[options.dtype]
    if isinstance(rule, Budget) and roundoff <= UNIT_ROUNDOFF[subject.dtype]:
        return 0.0
    return roundoff**2 * subject.coordinates.energy


def _allowed(subject: Subject, parameters: np.ndarray, rule: Budget | TotalError) -> np.ndarray:
    """No more than the LoRA, where that is a choice; in a budget nothing that is not zero goes."""
    allowed = np.ones(len(parameters), dtype=bool)
    if any(FORMS[name].kept for name in subject.curves):
        allowed &= parameters <= subject.stored
    if isinstance(rule, Budget) and subject.coordinates.energy:
        allowed &= parameters > 0
    return allowed


def _price(
    subject: Subject,
    name: FormatName,
    parameters: np.ndarray,
    rule: Budget | TotalError,
    options: Options,
) -> np.ndarray:
    """Numbers for a budget of numbers, else bytes."""
    if isinstance(rule, Budget) and rule.params is not None:
        return parameters.astype(np.float64)
    return parameters * float(subject.bytes_of(name, 1, options.dtype))


def _header(subject: Subject, name: FormatName, rule: Budget | TotalError, options: Options) -> int:
    """Bytes of a file's header, about, beyond those of the LoRA as it is; in a budget of bytes."""
    if not options.headers or isinstance(rule, TotalError) or rule.params is not None:
        return 0
    layers = subject.coordinates.shape[0]
    return FORMS[name].header(layers) - FORMS[LORA.name].header(layers)


def _with_lower_bounds(
    subject: Subject, menu: Menu, rule: Budget | TotalError, options: Options
) -> Menu:
    costs, losses = [menu.cost], [menu.loss]
    for name in subject.curves:
        bounds = FORMS[name].lower_bounds
        if callable(bounds):
            numbers, loss = bounds(subject.coordinates, subject.limits)
            costs.append(_price(subject, name, numbers, rule, options))
            losses.append(loss)
    return Menu(np.concatenate(costs), np.concatenate(losses))


def bounded(formats: Iterable[FormatName]) -> tuple[FormatName, ...]:
    """The forms for which the bound of a division holds by whatever method they are made."""
    return tuple(name for name in formats if FORMS[name].lower_bounds is not None)


def _least(menus: Sequence[Menu]) -> float:
    return sum(float(menu.cost.min()) for menu in menus)
