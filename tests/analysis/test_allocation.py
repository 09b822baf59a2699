"""Allocation over groups, against trying every choice."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotr_tn.analysis.allocation import Menu, allocate, hull_path
from lotr_tn.analysis.pareto import pareto_front
from lotr_tn.errors import OptionError


def menus_of(seed, groups, size, *, integers):
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(groups):
        cost = np.sort(rng.integers(0, 60, size)) if integers else np.sort(rng.random(size))
        made.append(Menu(cost.astype(float), rng.random(size) * np.exp(-cost / (cost.max() + 1))))
    return made


def brute_force(menus, limit):
    best = None
    for picks in itertools.product(*(range(len(menu.cost)) for menu in menus)):
        cost = sum(menu.cost[pick] for menu, pick in zip(menus, picks, strict=True))
        loss = sum(menu.loss[pick] for menu, pick in zip(menus, picks, strict=True))
        if cost <= limit * (1 + 1e-12) and (best is None or loss < best):
            best = loss
    return best


@given(
    seed=st.integers(0, 10**6),
    groups=st.integers(1, 4),
    size=st.integers(1, 7),
    share=st.floats(0.0, 1.2),
    integers=st.booleans(),
)
def test_the_choice_is_the_best_there_is(seed, groups, size, share, integers):
    menus = menus_of(seed, groups, size, integers=integers)
    least = sum(menu.cost.min() for menu in menus)
    most = sum(menu.cost.max() for menu in menus)
    limit = least + share * (most - least)
    found = allocate(menus, limit)
    wanted = brute_force(menus, limit)
    assert found.loss == pytest.approx(wanted, rel=1e-9)
    assert found.bound <= wanted * (1 + 1e-9)
    assert found.cost <= limit * (1 + 1e-9)
    cost = sum(menu.cost[pick] for menu, pick in zip(menus, found.picks, strict=True))
    loss = sum(menu.loss[pick] for menu, pick in zip(menus, found.picks, strict=True))
    assert (cost, loss) == pytest.approx((found.cost, found.loss))


@given(seed=st.integers(0, 10**6), groups=st.integers(1, 3), size=st.integers(1, 6))
def test_every_choice_on_the_path_is_the_best_for_its_cost(seed, groups, size):
    menus = menus_of(seed, groups, size, integers=False)
    costs = []
    for picks in hull_path(menus):
        cost = sum(menu.cost[pick] for menu, pick in zip(menus, picks, strict=True))
        loss = sum(menu.loss[pick] for menu, pick in zip(menus, picks, strict=True))
        assert loss == pytest.approx(brute_force(menus, cost), rel=1e-9)
        costs.append(cost)
    assert costs == sorted(costs)


def test_many_groups_stay_close_to_the_bound():
    menus = menus_of(0, 64, 200, integers=False)
    found = allocate(menus, 20.0)
    assert found.cost <= 20
    assert found.bound <= found.loss <= 1.005 * found.bound


def test_a_limit_below_the_cheapest_choices_is_refused():
    with pytest.raises(OptionError, match="together cost 2, above 1"):
        allocate([Menu(np.array([1.0]), np.array([0.0]))] * 2, 1.0)


def test_rounding_does_not_put_a_point_on_the_front():
    cost, loss = np.arange(6), np.array([3.0, 3.0, 2.0, 2.0, 2.0, 0.0])
    for noise in np.random.default_rng(0).uniform(-1e-14, 1e-14, (8, 6)):
        assert pareto_front(cost, loss * (1 + noise)).tolist() == [0, 2, 5]


@pytest.mark.parametrize("noise", [1e-16, -1e-16, 4e-16])
def test_costs_that_are_equal_but_for_rounding_are_one(noise):
    """The first of equals is taken, and fits where the cheapest of them just does."""
    costs = 0.3 * np.array([1, 1 + noise, 1 - noise])
    menus = [Menu(costs, np.full(3, 5.0)) for _ in range(40)]
    least = sum(float(menu.cost.min()) for menu in menus)
    assert allocate(menus, least).picks == (0,) * 40
    menus = [Menu(np.full(3, 5.0), costs) for _ in range(40)]
    assert allocate(menus, 300.0).picks == (0,) * 40
