"""Coordinates and curves, against dense layers, every choice of ranks, and stacks made for real."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn.analysis.candidates import Subject, make_point
from lotr_tn.analysis.coordinates import coordinates_of
from lotr_tn.analysis.curve import best_point
from lotr_tn.analysis.curves import curves_of
from lotr_tn.analysis.forms import Options, auto_forms
from lotr_tn.analysis.forms.truncated import layer_ranks
from lotr_tn.linalg.ranks import RankLimits
from lotr_tn.testing import laws, strategies
from tests.analysis.planted import (
    PLANTED,
    dense_of,
    hosvd_errors,
    lora,
    one_side,
    shared,
    tails,
    unfoldings,
)

HOSVD = Options(dtype="float64", method="hosvd")
LIMITS = [RankLimits(), RankLimits(1), RankLimits(2, 3), RankLimits(0, 2), RankLimits(9, 9)]


def repeated_columns(seed):
    """Rank terms that are there twice, in a layer and across layers."""
    stack = lora(seed, (3, 12, 10), (2, 2, 1))
    up = np.concatenate([stack.up[:, :2], stack.up[:, :2], stack.up[:, [0]]], axis=1)
    down = np.concatenate([stack.down[:2], stack.down[2:4], stack.down[[1]]])
    up[:, 3] = up[:, 2]
    return lt.LoRAStack(up, down, (2, 2, 1))


ODD = {
    "one layer": lambda: lora(1, (1, 9, 7), (4,)),
    "ragged": lambda: lora(2, (4, 9, 7), (1, 4, 2, 3)),
    "rank 0 layers": lambda: lora(3, (4, 9, 7), (0, 3, 0, 2)),
    "a zero layer": lambda: lt.LoRAStack(
        lora(4, (3, 9, 7), (2, 2, 2)).up * [1, 1, 0, 0, 1, 1], lora(5).down[:6, :7], (2, 2, 2)
    ),
    "repeated columns": lambda: repeated_columns(6),
    "rank above the sizes": lambda: lora(7, (3, 5, 4), (6, 3, 7)),
    "wide": lambda: lora(8, (2, 3, 14), (2, 3)),
    "zero": lambda: lt.LoRAStack(np.zeros((9, 4)), np.ones((4, 7)), (1, 3)),
    "nothing at all": lambda: lt.LoRAStack(np.zeros((9, 0)), np.zeros((0, 7)), (0, 0)),
}
CASES = ODD | {name: (lambda make=make: make(11)) for name, make in PLANTED.items()}
each_case = pytest.mark.parametrize("case", CASES)


def subject_of(stack, options=HOSVD):
    return Subject.of(coordinates_of(stack), lt.parameter_count(stack), "float64", options)


def squared_error(stack, made):
    return float(np.linalg.norm(dense_of(stack) - laws.dense_updates(made)) ** 2)


def places_of(curve, most=14):
    """Some of the places of a curve, first and last among them."""
    return np.unique(np.linspace(0, len(curve.parameters) - 1, most).round().astype(int))


@each_case
def test_every_point_is_what_is_made(case):
    stack = CASES[case]()
    subject = subject_of(stack)
    energy = float(np.linalg.norm(dense_of(stack)) ** 2)
    assert tuple(subject.curves) == auto_forms()
    for format, curve in subject.curves.items():
        assert curve.format == format
        for place in places_of(curve):
            made = make_point(stack, subject, curve, place, HOSVD)
            assert lt.parameter_count(made) == curve.parameters[place], (format, place)
            measured = squared_error(stack, made)
            assert measured == pytest.approx(curve.lost[place], rel=1e-9, abs=1e-24 * energy)


@given(stack=strategies.lora_stacks(degenerate=False), limits=st.sampled_from(LIMITS))
def test_any_stack_within_limits(stack, limits):
    options = Options(dtype="float64", method="hosvd", limits=limits)
    subject = subject_of(stack, options)
    _, m, n = stack.shape
    full = [min(rank, m, n) for rank in stack.ranks]
    energy = float(np.linalg.norm(dense_of(stack)) ** 2)
    for format, curve in subject.curves.items():
        for place in places_of(curve, 4):
            made = make_point(stack, subject, curve, place, options)
            assert lt.parameter_count(made) == curve.parameters[place]
            measured = squared_error(stack, made)
            assert measured == pytest.approx(curve.lost[place], rel=1e-9, abs=1e-24 * energy)
            match format:
                case "truncated":
                    bounded = list(zip(made.ranks, full, strict=True))
                case "lotr":
                    bounded = [
                        (made.ranks[0], sum_rank(stack, 0)),
                        (made.ranks[1], sum_rank(stack, 1)),
                    ]
                case "shared-in":
                    bounded = [(made.rank, sum_rank(stack, 1))]
                case "shared-out":
                    bounded = [(made.rank, sum_rank(stack, 0))]
                case "lotr-low-rank":
                    pair = made.shared_ranks
                    bounded = [(rank, sum_rank(stack, i)) for i, rank in enumerate(pair)]
                    bounded += [(r, min(f, *pair)) for r, f in zip(made.ranks, full, strict=True)]
                case _:
                    bounded = []
            for rank, most in bounded:
                assert min(limits.least, limits.most or most, most) <= rank
                assert rank <= min(most, limits.most or most)


def sum_rank(stack, side):
    """The rank of the layers side by side, or one below the other."""
    return min(stack.shape[1 + side], sum(min(rank, *stack.shape[1:]) for rank in stack.ranks))


@given(stack=strategies.lora_stacks())
def test_curves_are_fronts(stack):
    """Among them ties, zeros, dependent columns and entries of 1e-12 or 1e8."""
    curves = curves_of(coordinates_of(stack), lt.parameter_count(stack))
    energy = float(np.linalg.norm(dense_of(stack)) ** 2)
    for format, curve in curves.items():
        assert (np.diff(curve.parameters) > 0).all()
        assert (np.diff(curve.lost) < 0).all()
        assert len(curve.parameters) == len(curve.lost) == len(curve.settings)
        assert curve.lost[-1] <= 1e-26 * energy
        if format != "lora":
            assert curve.parameters[0] == 0
            assert curve.lost[0] == pytest.approx(energy, rel=1e-12)


def every_rank(values, limits):
    """All ranks of layers that the limits allow."""
    bounds = [limits.bounds(len(s)) for s in values]
    return itertools.product(*(range(low, high + 1) for low, high in bounds))


@given(
    seed=st.integers(0, 999),
    ranks=st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any),
    limits=st.sampled_from(LIMITS),
)
def test_truncation_is_the_best_of_all_ranks(seed, ranks, limits):
    stack = lora(seed, (len(ranks), 7, 5), ranks)
    values = [
        np.linalg.svd(matrix, compute_uv=False)[:rank]
        for matrix, rank in zip(dense_of(stack), ranks, strict=True)
    ]
    best = {}
    for chosen in every_rank(values, limits):
        lost = sum(tails(s)[rank] for s, rank in zip(values, chosen, strict=True))
        best[sum(chosen)] = min(lost, best.get(sum(chosen), np.inf))
    coordinates = coordinates_of(stack)
    curve = curves_of(coordinates, 10**9, ("truncated",), limits)["truncated"]
    assert curve.parameters.tolist() == [12 * terms for terms in sorted(best)]
    energy = sum(float((s**2).sum()) for s in values)
    wanted = [best[terms] for terms in sorted(best)]
    assert np.allclose(curve.lost, wanted, rtol=1e-9, atol=1e-24 * energy)
    for (terms,), lost in zip(curve.settings, curve.lost, strict=True):
        found = layer_ranks([int(terms)], coordinates, limits)
        assert sum(found) == terms
        assert found in set(every_rank(values, limits))
        own = sum(tails(s)[rank] for s, rank in zip(values, found, strict=True))
        assert own == pytest.approx(lost, rel=1e-9, abs=1e-24 * energy)


@pytest.mark.parametrize("side", ["in", "out"])
@given(seed=st.integers(0, 999), limits=st.sampled_from(LIMITS))
def test_one_shared_side_is_the_best_there_is(side, seed, limits):
    stack = lora(seed, (3, 8, 6), (2, 1, 2))
    dense = dense_of(stack)
    left, right = unfoldings(dense)
    unfolding, cost = (right, 6 + 3 * 8) if side == "in" else (left, 8 + 3 * 6)
    known = tails(np.linalg.svd(unfolding, compute_uv=False)[:5])
    format = f"shared-{side}"
    curve = curves_of(coordinates_of(stack), 10**9, (format,), limits)[format]
    low, high = limits.bounds(5)
    assert curve.parameters.tolist() == [cost * rank for rank in range(low, high + 1)]
    assert np.allclose(curve.lost, known[low : high + 1], rtol=1e-9, atol=1e-24 * known[0])
    rng = np.random.default_rng(seed)
    for rank, lost in zip(curve.settings[:, 0], curve.lost, strict=True):
        basis = np.linalg.qr(rng.standard_normal((len(unfolding), rank)))[0]
        other = np.linalg.norm(unfolding - basis @ (basis.T @ unfolding)) ** 2
        assert other >= lost * (1 - 1e-12)


@functools.cache
def known_errors(case):
    """A case's coordinates, and the dense errors of all pairs of ranks that these have."""
    stack = CASES[case]()
    found = coordinates_of(stack)
    k1, k2 = (size - 1 for size in found.lost.shape)
    return stack, found, hosvd_errors(dense_of(stack), (k1, k2))


@each_case
@pytest.mark.parametrize("limits", LIMITS[:4])
def test_the_lotr_curve_is_the_front_of_all_pairs(case, limits):
    stack, coordinates, errors = known_errors(case)
    layers, m, n = stack.shape
    most = coordinates.lost.shape[0] - 1, coordinates.lost.shape[1] - 1
    known = errors.sum(axis=2)
    curve = curves_of(coordinates, 10**9, ("lotr",), limits)["lotr"]
    (low1, high1), (low2, high2) = (limits.bounds(size) for size in most)
    floor = 1e-20 * known[0, 0]
    for r1, r2 in itertools.product(range(low1, high1 + 1), range(low2, high2 + 1)):
        within = curve.parameters <= m * r1 + n * r2 + layers * r1 * r2
        assert curve.lost[within].min() <= known[r1, r2] * (1 + 1e-9) + floor, "a pair is missing"
    for (r1, r2), parameters, lost in zip(
        curve.settings, curve.parameters, curve.lost, strict=True
    ):
        assert low1 <= r1 <= high1
        assert low2 <= r2 <= high2
        assert parameters == m * r1 + n * r2 + layers * r1 * r2
        assert lost == pytest.approx(known[r1, r2], rel=1e-9, abs=floor)


@pytest.mark.parametrize("case", ["unshared", "shared with noise", "partly shared", "ragged"])
def test_hooi_loses_no_more_than_its_curve_and_no_less_than_the_bound(case):
    stack = CASES[case]()
    hooi = Options(dtype="float64", method="hooi")
    subject = subject_of(stack, hooi)
    curve, gained = subject.curves["lotr"], 0
    for place in places_of(curve):
        r1, r2 = curve.settings[place]
        lost = squared_error(stack, make_point(stack, subject, curve, place, hooi))
        floor = 1e-24 * subject.coordinates.energy
        assert lost <= curve.lost[place] * (1 + 1e-9) + floor
        assert lost >= subject.coordinates.lower[r1, r2] * (1 - 1e-9) - floor
        gained += lost < curve.lost[place] * (1 - 1e-6)
    assert gained


@given(seed=st.integers(0, 99), allowed=st.floats(0, 1.1))
def test_the_best_point_is_the_cheapest_within(seed, allowed):
    stack = lora(seed)
    coordinates = coordinates_of(stack)
    lost = allowed * coordinates.energy
    for curve in curves_of(coordinates, lt.parameter_count(stack)).values():
        place = best_point(curve, lost)
        assert place is not None  # all end without loss, but for rounding
        within = [p for p, x in zip(curve.parameters, curve.lost, strict=True) if x <= lost]
        assert curve.parameters[place] == min(within)
        below = best_point(curve, -1.0)
        assert below is None


def test_what_is_planted_is_cheap():
    """A stack that shares is exact at its own ranks, in the format that it was made for."""
    exact = {
        "lotr": (shared(0), 31 * 4 + 23 * 3 + 9 * 12),
        "shared-out": (one_side(0, "out"), 31 * 2 + 7 * 23 * 2),
        "shared-in": (one_side(0, "in"), 23 * 2 + 7 * 31 * 2),
    }
    for format, (stack, parameters) in exact.items():
        coordinates = coordinates_of(stack)
        curve = curves_of(coordinates, 10**9)[format]
        place = best_point(curve, 1e-24 * coordinates.energy)
        assert place is not None
        assert curve.parameters[place] == parameters


@each_case
def test_coordinates_are_those_of_the_dense_layers(case):
    stack, found, known = known_errors(case)
    dense = dense_of(stack)
    energy = float(np.linalg.norm(dense) ** 2)
    assert found.shape == stack.shape
    assert found.energy == pytest.approx(energy, rel=1e-12)
    left, right = unfoldings(dense)
    k1, k2 = len(found.left_sigma), len(found.right_sigma)
    for values, unfolding in ((found.left_sigma, left), (found.right_sigma, right)):
        wanted = np.linalg.svd(unfolding, compute_uv=False)
        assert np.allclose(values, wanted[: len(values)], rtol=1e-10, atol=1e-13 * energy**0.5)
        assert np.allclose(wanted[len(values) :], 0, atol=1e-13 * energy**0.5)
    for values, size, matrix in zip(found.layer_values, found.layer_energies, dense, strict=True):
        wanted = np.linalg.svd(matrix, compute_uv=False)[: len(values)]
        assert np.allclose(values, wanted, rtol=1e-10, atol=1e-13 * energy**0.5)
        assert size == pytest.approx(np.linalg.norm(matrix) ** 2, rel=1e-10)
    assert np.allclose(found.lost, known.sum(axis=2), rtol=1e-9, atol=1e-24 * energy)
    pairs = list(itertools.product(range(0, k1 + 1, 2), range(k2 + 1)))
    rows = found.layer_lost(pairs)
    assert rows.shape == (len(pairs), len(dense))
    for (r1, r2), row in zip(pairs, rows, strict=True):
        assert (row >= 0).all()
        assert np.allclose(row, known[r1, r2], rtol=1e-9, atol=1e-15 * energy)
    s, t = (np.linalg.svd(x, compute_uv=False) for x in (left, right))
    for r1, r2 in pairs:
        bound = max(float((s[r1:] ** 2).sum()), float((t[r2:] ** 2).sum()))
        wanted = min(bound, known[r1, r2].sum())
        assert found.lower[r1, r2] == pytest.approx(wanted, rel=1e-9, abs=1e-24 * energy)


def test_layers_without_any_rank():
    found = coordinates_of(lora(0, (4, 9, 7), (0, 3, 0, 2))).take((0, 2))
    for limits in LIMITS:
        for format, curve in curves_of(found, 0, auto_forms()[1:], limits).items():
            assert (format, curve.parameters.tolist(), curve.lost.tolist()) == (format, [0], [0.0])


@pytest.mark.parametrize("layers", [(0,), (3, 1), (0, 1, 2, 3), (2, 3, 0)])
def test_some_of_the_layers(layers):
    stack = lora(5, (4, 13, 11), (2, 3, 1, 2))
    part = dense_of(stack)[list(layers)]
    found = coordinates_of(stack).take(layers)
    assert found.shape == (len(layers), 13, 11)
    k1, k2 = (size - 1 for size in found.lost.shape)
    known = hosvd_errors(part, (k1, k2))
    assert np.allclose(found.lost, known.sum(axis=2), rtol=1e-9, atol=1e-24 * found.energy)
    assert k1 == k2 == sum(stack.ranks[layer] for layer in layers)
    for values, matrix in zip(found.layer_values, part, strict=True):
        wanted = np.linalg.svd(matrix, compute_uv=False)
        assert np.allclose(values, wanted[: len(values)], rtol=1e-10)


@pytest.mark.parametrize("base", [3.0, 30.0])
def test_small_errors_keep_their_digits(base):
    """Well and badly conditioned stacks: both ways to find directions, down to 1e-9 of the norm."""
    rng = np.random.default_rng(0)
    u = np.linalg.qr(rng.standard_normal((14, 6)))[0] * base ** -np.arange(6.0)
    v = np.linalg.qr(rng.standard_normal((12, 6)))[0]
    stack = lt.LoRAStack(np.tile(u, 3), np.tile(v.T, (3, 1)), (6, 6, 6))
    lost = coordinates_of(stack).lost
    singular = np.sqrt(3) * base ** -np.arange(6.0)
    for rank in range(6):
        assert lost[rank, rank] == pytest.approx(float((singular[rank:] ** 2).sum()), rel=1e-9)
