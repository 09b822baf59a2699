"""One budget or one error for several stacks, against trying every choice of points."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn.analysis.candidates import Subject, joint_error, make_point
from lotr_tn.analysis.choice import allowed_loss
from lotr_tn.analysis.coordinates import coordinates_of
from lotr_tn.analysis.division import (
    choose_point,
    divide,
    division_path,
    others_of_size,
    require_room,
    settle,
)
from lotr_tn.analysis.forms import Options
from lotr_tn.errors import OptionError
from lotr_tn.linalg.ranks import RankLimits
from lotr_tn.testing import laws
from tests.analysis.planted import clustered, dense_of, lora, one_side, partly_shared, shared

SIZES = {"float16": 2, "float32": 4, "float64": 8}
OPTIONS = Options(dtype="float64", method="hosvd")
MIXES = {
    "unlike": lambda seed: [lora(seed), shared(seed, (5, 17, 13), (3, 2), 2, noise=0.1)],
    "sizes": lambda seed: [
        lora(seed, (2, 9, 7), (2, 3)),
        one_side(seed, "out", (4, 31, 19)),
        partly_shared(seed, (3, 14, 12)),
    ],
    "one is zero": lambda seed: [
        lora(seed, (3, 9, 7), (2, 1, 2)),
        lt.LoRAStack(np.zeros((8, 3)), np.ones((3, 5)), (2, 1)),
        clustered(seed, ((0, 2), (1, 3)), (4, 15, 11)),
    ],
    "one": lambda seed: [lora(seed, (3, 12, 10), (2, 3, 1))],
}
each_mix = pytest.mark.parametrize("mix", MIXES)


def subjects_of(stacks, options=OPTIONS, own="float64"):
    return [
        Subject.of(coordinates_of(stack), lt.parameter_count(stack), own, options)
        for stack in stacks
    ]


def menu(subject, options, unit, *, something):
    """(cost, loss) of every point that may be chosen, by plain loops over the curves."""
    found = []
    for name, curve in subject.curves.items():
        each = {"bytes": SIZES[subject.dtype if name == "lora" else options.dtype]}.get(unit, 1)
        for parameters, lost in zip(curve.parameters, curve.lost, strict=True):
            empty = parameters == 0 and subject.coordinates.energy > 0
            if parameters <= subject.stored and not (something and empty):
                found.append((float(parameters * each), float(lost)))
    return found


def undominated(points):
    """Points that no other is at most as costly and as lossy as."""
    kept, least = [], np.inf
    for cost, loss in sorted(points):
        if loss < least:
            kept.append((cost, loss))
            least = loss
    return kept


def least_loss_within(menus, limit):
    """The least total loss of any choice within a total cost: all combinations."""
    best = np.inf
    for picks in itertools.product(*map(undominated, menus)):
        cost, loss = (sum(values) for values in zip(*picks, strict=True))
        if cost <= limit:
            best = min(best, loss)
    return best


def chosen(subjects, points, options, unit):
    cost = loss = 0.0
    for subject, (name, place) in zip(subjects, points, strict=True):
        curve = subject.curves[name]
        each = {"bytes": SIZES[subject.dtype if name == "lora" else options.dtype]}.get(unit, 1)
        cost += float(curve.parameters[place]) * each
        loss += float(curve.lost[place])
    return cost, loss


@each_mix
@pytest.mark.parametrize("unit", ["params", "bytes"])
@settings(max_examples=8)
@given(seed=st.integers(0, 99), share=st.floats(0.0, 1.1))
def test_a_budget_loses_least(mix, unit, seed, share):
    options = Options(dtype="float32", method="hosvd")
    subjects = subjects_of(MIXES[mix](seed), options)
    menus = [menu(subject, options, unit, something=True) for subject in subjects]
    least = sum(min(points)[0] for points in menus)
    most = sum(subject.stored for subject in subjects) * (8 if unit == "bytes" else 1)
    size = int(least + share * (most - least))
    rule = lt.Budget(size) if unit == "params" else lt.Budget(bytes=size)
    division = divide(subjects, rule, options)
    cost, loss = chosen(subjects, division.points, options, unit)
    assert cost <= size
    wanted = least_loss_within(menus, size)
    energy = sum(subject.coordinates.energy for subject in subjects)
    assert loss**0.5 <= 1.02 * wanted**0.5 + 1e-12 * energy**0.5
    assert loss >= wanted * (1 - 1e-9), "less than any choice there is"
    assert division.bound <= wanted * (1 + 1e-9) + 1e-24 * energy
    for subject, (name, place) in zip(subjects, division.points, strict=True):
        assert (subject.curves[name].parameters[place] > 0) == (subject.coordinates.energy > 0)
    if share >= 1:
        assert loss <= 1e-24 * energy
    spent = divide(subjects, lt.Budget(**{unit: size + 77}), options, spent=77)
    assert chosen(subjects, spent.points, options, unit) == (cost, loss)


@each_mix
@settings(max_examples=8)
@given(seed=st.integers(0, 99), epsilon=st.sampled_from([0.7, 0.3, 0.1, 0.03, 0.001]))
def test_a_total_error_stores_least(mix, seed, epsilon):
    options = Options(dtype="float32", method="hosvd")
    subjects = subjects_of(MIXES[mix](seed), options)
    energy = sum(subject.coordinates.energy for subject in subjects)
    division = divide(subjects, lt.TotalError(epsilon), options)
    cost, loss = chosen(subjects, division.points, options, "bytes")
    allowed = allowed_loss(epsilon, energy, "float32")
    assert loss <= allowed <= epsilon**2 * energy
    menus = [menu(subject, options, "bytes", something=False) for subject in subjects]
    swapped = [[(loss, cost) for cost, loss in points] for points in menus]
    wanted = least_loss_within(swapped, allowed)
    assert wanted <= cost <= 1.02 * wanted
    assert division.bound <= wanted * (1 + 1e-9)


@each_mix
@pytest.mark.parametrize("rule", [lt.TotalError(0.2), lt.TotalError(0.01), "budget"], ids=str)
def test_what_is_settled_is_made(mix, rule):
    stacks = MIXES[mix](3)
    options = Options(dtype="float32")
    subjects = subjects_of(stacks, options, "float64")
    if rule == "budget":
        rule = lt.Budget(sum(subject.stored for subject in subjects) // 3)
    division, choices = settle(
        lambda: stacks, subjects, rule, options, divide(subjects, rule, options)
    )
    energy, lost, size = 0.0, 0.0, 0
    for stack, choice in zip(stacks, choices, strict=True):
        dense = dense_of(stack)
        energy += float(np.linalg.norm(dense)) ** 2
        lost += float(np.linalg.norm(dense - laws.dense_updates(choice.stack))) ** 2
        assert lt.parameter_count(choice.stack) == choice.candidate.parameters
        size += choice.candidate.parameters
    found = joint_error([choice.candidate for choice in choices], subjects)
    assert found**2 * energy == pytest.approx(lost, rel=1e-6, abs=1e-20 * energy)
    if isinstance(rule, lt.TotalError):
        assert lost <= rule.epsilon**2 * energy
        assert division.bound <= sum(choice.candidate.bytes for choice in choices)
    else:
        assert size <= rule.size
        assert division.bound <= lost * (1 + 1e-9)


def test_an_error_that_rounding_exceeds_is_divided_anew():
    """Entries that float16 rounds worst, both factors alike, beside directions to cut off."""
    u = 2.0**-11
    rng = np.random.default_rng(0)
    worst = 1 + 0.98 * u  # rounds to 1, and 2 and 1/2 times it alike
    signs = rng.choice([-1.0, 1.0], (2, 3)), rng.choice([-1.0, 1.0], (3, 32))
    coarse = lt.LoRAStack(worst * signs[0], worst * signs[1], (1, 1, 1))
    size = 3**0.5 * worst**2 * 8 * u
    columns, rows = (np.linalg.qr(rng.standard_normal((s, 10)))[0] for s in (13, 11))
    small = lt.LoRAStack(size**0.5 * columns, size**0.5 * rows.T, (1,) * 10)
    stacks = [coarse, small]
    options = Options(formats=("truncated",), dtype="float16")
    subjects = subjects_of(stacks, options)
    rule = lt.TotalError(3 * u)
    first = divide(subjects, rule, options)
    made = [
        choose_point(stack, subject, point, options)
        for stack, subject, point in zip(stacks, subjects, first.points, strict=True)
    ]
    found = joint_error([choice.candidate for choice in made], subjects)
    assert found > rule.epsilon, "nothing is tested"
    division, choices = settle(
        lambda: stacks, subjects, rule, options, divide(subjects, rule, options)
    )
    assert joint_error([choice.candidate for choice in choices], subjects) <= rule.epsilon
    assert division.points != first.points
    assert sum(c.candidate.parameters for c in choices) < lt.parameter_count(coarse) + 10 * 24


@each_mix
@pytest.mark.parametrize("most", [3, 12, 1000])
def test_the_path_grows(mix, most):
    subjects = subjects_of(MIXES[mix](5))
    menus = [menu(subject, OPTIONS, "params", something=True) for subject in subjects]
    path = division_path(subjects, OPTIONS, most)
    assert 1 <= len(path) <= most
    figures = [chosen(subjects, points, OPTIONS, "params") for points in path]
    for (cost, loss), (more, less) in itertools.pairwise(figures):
        assert more > cost
        assert less < loss
    assert figures[0][0] == sum(min(points)[0] for points in menus)
    energy = sum(subject.coordinates.energy for subject in subjects)
    assert figures[-1][1] <= 1e-24 * energy
    for cost, loss in figures[:: max(len(figures) // 6, 1)]:
        assert loss == pytest.approx(least_loss_within(menus, cost), rel=1e-9, abs=1e-24 * energy)
        again = divide(subjects, lt.Budget(int(cost)), OPTIONS)
        found = chosen(subjects, again.points, OPTIONS, "params")
        assert found[1] == pytest.approx(loss, rel=1e-9, abs=1e-24 * energy)


@each_mix
def test_the_other_formats_of_a_size(mix):
    for stack, subject in zip(MIXES[mix](7), subjects_of(MIXES[mix](7)), strict=True):
        for name in ("truncated", "lotr"):
            place = len(subject.curves[name].parameters) // 2
            size = subject.curves[name].parameters[place]
            others = others_of_size(subject, (name, place), OPTIONS)
            assert name not in {candidate.format for candidate in others}
            for candidate in others:
                curve = subject.curves[candidate.format]
                assert candidate.parameters <= size
                (own,) = np.flatnonzero(curve.parameters == candidate.parameters)
                assert own + 1 == len(curve.parameters) or curve.parameters[own + 1] > size
                made = make_point(stack, subject, curve, own, OPTIONS)
                dense = dense_of(stack)
                lost = np.linalg.norm(dense - laws.dense_updates(made))
                wanted = candidate.relative_error * np.linalg.norm(dense)
                assert lost == pytest.approx(wanted, rel=1e-9, abs=1e-12 * np.linalg.norm(dense))


@pytest.mark.parametrize("limits", [RankLimits(1, 2), RankLimits(2), RankLimits(0, 1)])
def test_limits(limits):
    stacks = MIXES["sizes"](2)
    options = Options(("truncated", "lotr", "lotr-low-rank"), "float64", "hosvd", limits)
    subjects = subjects_of(stacks, options)
    size = sum(subject.stored for subject in subjects)
    rule = lt.Budget(size)
    division = divide(subjects, rule, options)
    _, choices = settle(lambda: stacks, subjects, rule, options, division)
    for stack, choice in zip(stacks, choices, strict=True):
        made = choice.stack
        if isinstance(made, lt.LoRAStack):
            bounded = list(zip(made.ranks, stack.ranks, strict=True))
        else:
            pair = made.ranks if isinstance(made, lt.Tucker2) else made.shared_ranks
            bounded = [(rank, 99) for rank in pair]
        for rank, full in bounded:
            assert min(limits.least, full) <= rank <= (limits.most or full)


@pytest.mark.parametrize("unit", ["params", "bytes"])
def test_a_budget_that_is_too_small(unit):
    subjects = subjects_of(MIXES["unlike"](0))
    menus = [menu(subject, OPTIONS, unit, something=True) for subject in subjects]
    least = int(sum(min(points)[0] for points in menus))
    found = divide(subjects, lt.Budget(**{unit: least}), OPTIONS)
    assert found.cost == least
    small, spent = (lt.Budget(**{unit: least - 1}), 0), (lt.Budget(**{unit: least + 49}), 50)
    words = "parameters" if unit == "params" else "bytes"
    for rule, beside in (small, spent):
        again = divide(subjects, rule, OPTIONS, spent=beside)
        assert (again.points, again.cost) == (found.points, found.cost)
        kept = ", 50 of them for what is kept as it is" if beside else ""
        message = f"the smallest result, .*takes {least + beside:,} {words}{kept}.*: ask for more"
        with pytest.raises(OptionError, match=message):
            require_room(rule, least + beside, beside)
