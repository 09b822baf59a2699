"""Rounding, per-layer truncation, one shared side, canonical factors."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn._arrays import to_numpy
from lotr_tn.decompose.truncation import global_order
from lotr_tn.errors import OptionError, PrecisionWarning, RankError
from lotr_tn.testing import laws
from tests.conftest import BACKENDS, stack_on

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def lora(seed=0, shape=(4, 13, 9), ranks=(2, 3, 1, 4), dtype="float64"):
    rng = np.random.default_rng(seed)
    _, m, n = shape
    up, down = rng.standard_normal((m, sum(ranks))), rng.standard_normal((sum(ranks), n))
    return lt.LoRAStack(up.astype(dtype), down.astype(dtype), ranks)


def planted(values, seed=0, shape=(13, 9)):
    """A LoRA stack whose layers have exactly these singular values, to rounding."""
    rng = np.random.default_rng(seed)
    ups, downs = [], []
    for own in values:
        u = np.linalg.qr(rng.standard_normal((shape[0], len(own))))[0]
        v = np.linalg.qr(rng.standard_normal((shape[1], len(own))))[0]
        ups.append(u * np.array(own))
        downs.append(v.T)
    ranks = tuple(len(own) for own in values)
    return lt.LoRAStack(np.concatenate(ups, 1), np.concatenate(downs), ranks)


def dense_values(stack):
    return [np.linalg.svd(w, compute_uv=False) for w in laws.dense_updates(stack)]


def true_distance(a, b):
    """‖a − b‖ in exact arithmetic on the numbers as stored."""
    total = Fraction(0)
    for x, y in zip(_exact(a), _exact(b), strict=True):
        total += sum((p - q) ** 2 for p, q in zip(x, y, strict=True))
    scale = 10**60
    return float(Fraction(_root(int(total * scale**2)), scale))


def _root(n):
    import math

    return math.isqrt(n)


def _exact(stack):
    for part in stack.slices:
        up = [[Fraction(float(x)) for x in row] for row in stack.up[:, part]]
        down = [[Fraction(float(x)) for x in row] for row in stack.down[part, :].T]
        yield [
            sum((p * q for p, q in zip(a, b, strict=True)), Fraction(0)) for a in up for b in down
        ]


@pytest.mark.parametrize("exponent", [-2, -6, -9, -12])
def test_small_errors_are_those_of_exact_arithmetic(exponent):
    """Down to 1e-12 of the norm: 1e-10 relative, plus what float64 numbers of size 1 can tell."""
    tail = 10.0**exponent
    stack = planted([(1.0, tail), (0.5, 0.25, tail)], shape=(7, 5))
    cut = lt.round(stack, lt.RelativeError(1.5 * tail))
    assert cut.ranks == (1, 2)
    truth = true_distance(stack, cut)
    assert truth == pytest.approx(tail * 2**0.5, rel=1e-3)
    assert abs(cut.certificate.distance - truth) <= 1e-10 * truth + 3e-16


@each_backend
@given(seed=st.integers(0, 999), share=st.floats(0.01, 0.9))
def test_truncation_meets_the_error_at_the_least_parameters(backend, seed, share):
    stack = lora(seed)
    cut = lt.round(stack_on(stack, backend), lt.RelativeError(share))
    error = np.linalg.norm(laws.dense_updates(stack) - laws.dense_updates(cut))
    norm = np.linalg.norm(laws.dense_updates(stack))
    assert error <= share * norm * (1 + 1e-12)
    assert cut.certificate.distance == pytest.approx(error, rel=1e-10, abs=1e-14 * norm)
    values = dense_values(stack)
    cheapest = min(
        sum(kept)
        for kept in itertools.product(*(range(r + 1) for r in stack.ranks))
        if _lost(values, kept) <= (share * norm) ** 2
    )
    assert sum(cut.ranks) == cheapest


def _lost(values, kept):
    return sum(float((s[k:] ** 2).sum()) for s, k in zip(values, kept, strict=True))


@given(seed=st.integers(0, 999), params=st.integers(0, 250))
def test_no_other_ranks_of_as_many_parameters_lose_less(seed, params):
    stack = lora(seed)
    _, m, n = stack.shape
    cut = lt.round(stack, lt.Budget(params))
    assert lt.parameter_count(cut) <= params
    values = dense_values(stack)
    best = min(
        _lost(values, kept)
        for kept in itertools.product(*(range(r + 1) for r in stack.ranks))
        if sum(kept) * (m + n) <= params
    )
    assert cut.certificate.distance**2 == pytest.approx(best, rel=1e-9, abs=1e-24)


@each_backend
def test_ties_go_to_the_first_layers(backend):
    """Rounding does not choose among equal singular values."""
    for seed in range(20):
        stack = planted([(2.0, 1.0), (1.0, 1.0), (2.0, 1.0, 1.0)], seed)
        for kept, ranks in ((3, (2, 0, 1)), (4, (2, 1, 1)), (5, (2, 2, 1)), (6, (2, 2, 2))):
            _, m, n = stack.shape
            cut = lt.round(stack_on(stack, backend), lt.Budget(kept * (m + n)))
            assert cut.ranks == ranks


def test_clusters_below_rounding_are_ties():
    values = [np.array([1.0, 1.0 - 1e-16]), np.array([1.0 + 2e-16])]
    assert global_order(values).ranks(1) == (1, 0)
    assert global_order([np.array([1.0]), np.array([1.0 + 1e-9])]).ranks(1) == (0, 1)


def test_truncation_twice_gives_the_same_bits():
    stack = planted([(1.0,) * 4, (1.0,) * 3], shape=(40, 30))
    one, two = (lt.round(stack, lt.Budget(4 * 70)) for _ in range(2))
    assert np.array_equal(one.up, two.up)
    assert np.array_equal(one.down, two.down)


def test_whole_layers_keep_their_own_factors():
    stack = planted([(3.0, 2.0), (1.0, 0.1)])
    cut = lt.round(stack, lt.RelativeError(0.05))
    assert cut.ranks == (2, 1)
    assert np.array_equal(cut.up[:, :2], stack.up[:, :2])
    whole = lt.round(stack, lt.RelativeError(0))
    assert np.array_equal(whole.up, stack.up)
    assert whole.certificate.relative_error == 0 == whole.certificate.upper_bound


def test_a_fixed_rank_holds_for_every_layer():
    cut = lt.round(lora(), 2)
    assert cut.ranks == (2, 2, 1, 2)
    assert lt.round(lora(), 0).ranks == (0, 0, 0, 0)
    assert lt.round(lora(), 0).certificate.relative_error == pytest.approx(1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_narrow_storage_is_measured(dtype):
    cut = lt.round(lora(), lt.RelativeError(0.3), dtype=dtype)
    assert cut.up.dtype == dtype
    error = np.linalg.norm(laws.dense_updates(lora()) - laws.dense_updates(cut))
    assert cut.certificate.distance == pytest.approx(error, rel=1e-9)
    assert cut.certificate.lower_bound <= cut.certificate.relative_error
    assert cut.certificate.relative_error <= cut.certificate.upper_bound
    with pytest.warns(PrecisionWarning, match=dtype):
        lt.round(lora(), lt.RelativeError(1e-10), dtype=dtype)


@each_backend
@pytest.mark.parametrize("make", [lambda s: lt.hooi(s, (5, 6)), lambda s: lt.tucker1(s, 5, "out")])
@pytest.mark.parametrize("rule", [3, lt.RelativeError(0.4), lt.Energy(0.9), lt.Budget(60)])
def test_shared_factors_round_with_true_errors(backend, make, rule):
    stack = make(lora())
    double = stack_on(stack, backend) + stack_on(make(lora(1)), backend)
    cut = lt.round(double, rule)
    truth, found = laws.dense_updates(double), laws.dense_updates(cut)
    error = np.linalg.norm(truth - found) / np.linalg.norm(truth)
    assert type(cut) is type(stack)
    assert cut.certificate.relative_error == pytest.approx(error, rel=1e-10)
    if hasattr(rule, "epsilon"):
        assert error <= rule.epsilon
    if rule == lt.Budget(60):
        assert lt.parameter_count(cut) <= 60


def test_one_side_alone_can_be_cut():
    stack = lt.hooi(lora(), (6, 7))
    cut = lt.round(stack, (3, stack.ranks[1]))
    assert cut.ranks == (3, 7)
    left = np.concatenate(list(laws.dense_updates(stack)), axis=1)
    tail = np.linalg.svd(left, compute_uv=False)[3:]
    assert cut.certificate.distance == pytest.approx(np.linalg.norm(tail), rel=1e-10)


def pair_costs(stack, shape):
    """Squared error and parameters of every pair of ranks in the HOSVD basis, by dense SVDs."""
    layers, m, n = shape
    dense = laws.dense_updates(stack)
    u = np.linalg.svd(dense.transpose(1, 0, 2).reshape(m, -1))[0]
    v = np.linalg.svd(dense.transpose(2, 0, 1).reshape(n, -1))[0]
    core = np.einsum("mp,lmn,nq->lpq", u, dense, v)
    for r1, r2 in itertools.product(range(m + 1), range(n + 1)):
        kept = float((core[:, :r1, :r2] ** 2).sum())
        yield float((core**2).sum()) - kept, m * r1 + n * r2 + layers * r1 * r2


@given(seed=st.integers(0, 99), share=st.floats(0.05, 0.9), params=st.integers(0, 150))
def test_pairs_of_ranks_equal_a_brute_force_search(seed, share, params):
    stack = lora(seed)
    pairs = list(pair_costs(stack, stack.shape))
    total = float(lt.norm(stack)) ** 2
    cheapest = min(cost for lost, cost in pairs if lost <= share**2 * total)
    assert lt.parameter_count(lt.hosvd(stack, lt.RelativeError(share))) == cheapest
    best = min(lost for lost, cost in pairs if cost <= params)
    found = lt.hosvd(stack, lt.Budget(params))
    assert lt.parameter_count(found) <= params
    assert found.certificate.distance**2 == pytest.approx(best, rel=1e-9, abs=1e-10 * total)


@each_backend
@pytest.mark.parametrize("side", ["in", "out"])
@given(seed=st.integers(0, 99), rank=st.integers(0, 10))
def test_tucker1_is_the_best_of_its_rank(backend, side, seed, rank):
    stack = lora(seed)
    found = lt.tucker1(stack_on(stack, backend), rank, side)
    dense = laws.dense_updates(stack)
    unfolding = np.concatenate(list(dense), axis=0 if side == "in" else 1)
    tail = np.linalg.svd(unfolding, compute_uv=False)[rank:]
    truth = np.linalg.norm(dense - laws.dense_updates(found))
    assert truth == pytest.approx(np.linalg.norm(tail), rel=1e-9, abs=1e-13)
    assert found.certificate.distance == pytest.approx(truth, rel=1e-10, abs=1e-13)
    assert found.certificate.lower_bound <= found.certificate.relative_error + 1e-15
    gram = to_numpy(found.shared).T @ to_numpy(found.shared)
    assert np.allclose(gram, np.eye(found.rank), atol=1e-12)


def test_tucker1_is_cheaper_than_tucker2_for_two_wide_layers():
    """Two layers, an input side ten times as wide: sharing V alone stores least at equal error."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal((200, 4))
    down = np.concatenate([rng.standard_normal((4, 4)) @ v.T for _ in range(2)])
    stack = lt.LoRAStack(rng.standard_normal((20, 8)), down, (4, 4))
    rule = lt.RelativeError(1e-6)
    one, two = lt.tucker1(stack, rule), lt.hooi(stack, rule)
    assert lt.parameter_count(one) == 200 * 4 + 2 * 20 * 4
    assert lt.parameter_count(one) < lt.parameter_count(two) < lt.parameter_count(stack)
    with pytest.raises(OptionError, match="side must be"):
        lt.tucker1(stack, 3, "left")


def gauge(stack, seed):
    rng = np.random.default_rng(seed)
    p, q = (rng.standard_normal((r, r)) + 3 * np.eye(r) for r in stack.ranks)
    core = np.linalg.inv(p) @ stack.core @ np.linalg.inv(q).T
    return lt.Tucker2(stack.u @ p, core, stack.v @ q)


@each_backend
@given(seed=st.integers(0, 99))
def test_equal_stacks_get_equal_factors(backend, seed):
    stack = lt.hooi(lora(seed), (4, 5))
    padded = gauge(stack, seed) + 0.0 * stack  # ranks add, the update stays
    one = lt.canonicalize(stack_on(stack, backend))
    two = lt.canonicalize(stack_on(padded, backend))
    assert one.ranks == two.ranks == (4, 5)
    for name in ("u", "core", "v"):
        assert np.allclose(to_numpy(getattr(one, name)), to_numpy(getattr(two, name)), atol=1e-7)
    assert np.allclose(to_numpy(one.u).T @ to_numpy(one.u), np.eye(4), atol=1e-12)
    assert one.certificate.relative_error < 1e-14


def test_canonical_lora_and_tucker1():
    stack = lora()
    one, two = lt.canonicalize(stack + stack), lt.canonicalize(2 * stack)
    assert one.ranks == stack.ranks
    assert np.allclose(one.up, two.up, atol=1e-10)
    shared = lt.tucker1(stack, 4)
    again = lt.canonicalize(shared + 0.0 * lt.tucker1(lora(1), 3))
    assert again.rank == 4
    assert np.allclose(again.shared, lt.canonicalize(shared).shared, atol=1e-10)
    dense = lt.Dense(lt.to_dense(stack))
    assert lt.canonicalize(dense) is dense


def test_refusals():
    with pytest.raises(RankError, match="at least 0"):
        lt.round(lora(), -1)
    with pytest.raises(RankError, match="found 'many'"):
        lt.round(lora(), "many")
    with pytest.raises(RankError, match="budget must be a whole number"):
        lt.Budget(1.5)
    for asked in (
        lambda: lt.tucker1(lora(), 2, dtype="int8"),
        lambda: lt.round(lora(), 2, dtype="int8"),
        lambda: lt.round(lora(), lt.RelativeError(0.1), dtype="int8"),
        lambda: lt.hooi(lora(), 2, dtype="int8"),
        lambda: lt.decompose.hooi_in_metric(lora(), 2, np.ones(9), dtype="int8"),
    ):
        with pytest.raises(OptionError, match="dtype must be one of"):
            asked()
