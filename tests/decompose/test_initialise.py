"""Initialisation: factors, gauges and residuals, from updates, from weights, and at random."""

import gc
import itertools
import math
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn._arrays import dtype_name, to_numpy
from lotr_tn.decompose.gauges import first_step_gain, random_factors, regauge
from lotr_tn.decompose.initialise import initial_factors
from lotr_tn.decompose.initialise_weights import WeightInitialisation, initial_factors_of_weights
from lotr_tn.errors import BackendError, DerivativeError, FormatError, OptionError, RankError
from lotr_tn.testing.laws.truth import dense_updates
from lotr_tn.testing.strategies import lora_stacks, stacks, tucker2s
from tests.conftest import BACKENDS, on_backend, stack_on

GAUGES = ("orthonormal", "balanced", "equalised")
RANDOM_GAUGES = (*GAUGES, "normal")
METHODS = ("svd", "hosvd", "hooi")
each_gauge = pytest.mark.parametrize("gauge", GAUGES)
each_random_gauge = pytest.mark.parametrize("gauge", RANDOM_GAUGES)
each_method = pytest.mark.parametrize("method", METHODS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def wide(x):
    return to_numpy(x).astype(np.float64)


def updates(stack):
    """(L, m, n) in float64, written out again here so that it shares nothing with the package."""
    if isinstance(stack, lt.LoRAStack):
        up, down = wide(stack.up), wide(stack.down)
        ends = np.cumsum((0, *stack.ranks))
        return np.stack([up[:, a:b] @ down[a:b] for a, b in itertools.pairwise(ends)])
    if isinstance(stack, lt.Tucker2):
        return np.einsum("mp,lpq,nq->lmn", wide(stack.u), wide(stack.core), wide(stack.v))
    if isinstance(stack, lt.LowRankTucker2):
        cores = updates(lt.LoRAStack(stack.up, stack.down, stack.ranks))
        return np.einsum("mp,lpq,nq->lmn", wide(stack.u), cores, wide(stack.v))
    if isinstance(stack, lt.Tucker1):
        own, shared = wide(stack.own), wide(stack.shared)
        formula = "lmr,nr->lmn" if stack.side == "in" else "lnr,mr->lmn"
        return np.einsum(formula, own, shared)
    if isinstance(stack, lt.Dense):
        return wide(stack.w)
    return dense_updates(stack)


def off(found, wanted):
    """The relative distance of two arrays."""
    return float(np.linalg.norm(found - wanted)) / max(float(np.linalg.norm(wanted)), 1e-300)


def unfoldings(dense):
    """(m, L n) and (n, L m)."""
    _, m, n = dense.shape
    return dense.transpose(1, 0, 2).reshape(m, -1), dense.transpose(2, 0, 1).reshape(n, -1)


def made_up(seed=0, shape=(4, 9, 7), ranks=(2, 3, 1, 2), dtype="float64"):
    rng = np.random.default_rng(seed)
    up = rng.standard_normal((shape[1], sum(ranks)))
    down = rng.standard_normal((sum(ranks), shape[2]))
    return lt.LoRAStack(up.astype(dtype), down.astype(dtype), ranks)


def made_up_tucker2(seed=0, shape=(5, 9, 7), ranks=(4, 3), dtype="float64"):
    rng = np.random.default_rng(seed)
    (layers, m, n), (r1, r2) = shape, ranks
    arrays = (
        rng.standard_normal((m, r1)) * np.geomspace(1, 100, r1),
        rng.standard_normal((layers, r1, r2)),
        rng.standard_normal((n, r2)),
    )
    return lt.Tucker2(*(x.astype(dtype) for x in arrays))


# gauges


def assert_same_updates(found, stack, tolerance=1e-12):
    truth = updates(stack)
    scale = np.linalg.norm(truth)
    assert np.linalg.norm(updates(found) - truth) <= tolerance * scale + 1e-300


@each_backend
@each_gauge
@given(stack=st.one_of(lora_stacks(), tucker2s()))
def test_a_gauge_keeps_the_updates(backend, gauge, stack):
    before = [x.copy() for x in vars(stack).values() if isinstance(x, np.ndarray)]
    found = regauge(stack_on(stack, backend), gauge)
    assert type(found) is type(stack)
    assert found.shape == stack.shape
    # factors that cancel are as accurate as their own sizes allow
    sizes = [np.linalg.norm(x) for x in before]
    truth = updates(stack)
    assert np.linalg.norm(updates(found) - truth) <= 1e-13 * math.prod(sizes)
    after = [x for x in vars(stack).values() if isinstance(x, np.ndarray)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@each_gauge
@given(stack=st.one_of(lora_stacks(dtype="float32"), tucker2s(dtype="float32")))
def test_a_gauge_keeps_the_updates_in_float32(gauge, stack):
    found = regauge(stack, gauge)
    sizes = [np.linalg.norm(wide(x)) for x in vars(stack).values() if isinstance(x, np.ndarray)]
    assert np.linalg.norm(updates(found) - updates(stack)) <= 1e-6 * math.prod(sizes)
    assert all(dtype_name(x) == "float32" for x in vars(found).values() if hasattr(x, "dtype"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@each_gauge
def test_half_precision(gauge, dtype):
    for stack in (made_up(), made_up_tucker2()):
        found = regauge(lt.astype(stack, dtype), gauge)
        assert off(updates(found), updates(lt.astype(stack, dtype))) < 0.02
        arrays = [x for x in vars(found).values() if hasattr(x, "dtype")]
        assert all(dtype_name(x) == dtype for x in arrays)


def test_orthonormal_gauges_are_orthonormal_and_ordered():
    tucker = regauge(made_up_tucker2(), "orthonormal")
    for factor in (tucker.u, tucker.v):
        assert np.abs(factor.T @ factor - np.eye(factor.shape[1])).max() < 1e-14
        assert (factor.max(axis=0) >= -factor.min(axis=0)).all()
    for rows in unfoldings(tucker.core):
        gram = rows @ rows.T
        assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-12 * gram.max()
        assert (np.diff(np.diag(gram)) <= 0).all()
    lora = regauge(made_up(), "orthonormal")
    for part in lora.slices:
        up, down = lora.up[:, part], lora.down[part]
        assert np.abs(up.T @ up - np.eye(up.shape[1])).max() < 1e-14
        gram = down @ down.T
        assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-12 * gram.max()


def test_balanced_tucker2_has_roots_of_the_unfoldings_singular_values():
    stack = made_up_tucker2()
    found = regauge(stack, "balanced")
    flat = regauge(stack, "orthonormal")
    for factor, bare, matrix in zip(
        (found.u, found.v), (flat.u, flat.v), unfoldings(updates(stack)), strict=True
    ):
        s = np.linalg.svd(matrix, compute_uv=False)[: factor.shape[1]]
        assert off(factor, bare * np.sqrt(s)) < 1e-12
    # and so each slice of the core is as long as the root of its own value allows
    sigma = np.linalg.norm(found.u, axis=0) ** 2
    tau = np.linalg.norm(found.v, axis=0) ** 2
    assert off(found.core * np.sqrt(np.outer(sigma, tau)), flat.core) < 1e-12


def test_balanced_lora_has_roots_of_each_layers_singular_values():
    stack = made_up()
    found = regauge(stack, "balanced")
    for part, truth in zip(found.slices, updates(stack), strict=True):
        s = np.linalg.svd(truth, compute_uv=False)[: part.stop - part.start]
        assert np.allclose(np.linalg.norm(found.up[:, part], axis=0) ** 2, s, rtol=1e-12)
        assert np.allclose(np.linalg.norm(found.down[part], axis=1) ** 2, s, rtol=1e-12)


@given(stack=st.one_of(lora_stacks(degenerate=False), tucker2s(degenerate=False)))
def test_equalised_factors_have_one_norm(stack):
    found = regauge(stack, "equalised")
    if isinstance(found, lt.Tucker2):
        groups = [(found.u, found.core, found.v)]
    else:
        groups = [(found.up[:, part], found.down[part]) for part in found.slices]
    for group in groups:
        norms = [np.linalg.norm(x) for x in group]
        assert np.allclose(norms, norms[0], rtol=1e-12)


@each_backend
@each_gauge
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_zero_update_keeps_directions_to_train(backend, gauge, dtype):
    """Nothing is divided by zero, and no column dies: its gradient would be zero for ever."""
    zeros = (
        lt.Tucker2(np.ones((6, 3)), np.zeros((2, 3, 4)), np.zeros((5, 4))),
        lt.LoRAStack(np.zeros((6, 5)), np.ones((5, 4)), (2, 0, 3)),
    )
    for stack in zeros:
        found = regauge(stack_on(lt.astype(stack, dtype), backend), gauge)
        assert not updates(found).any()
        factors = (found.u, found.v) if isinstance(found, lt.Tucker2) else (found.up,)
        for factor in factors:
            assert np.allclose(np.linalg.norm(wide(factor), axis=0), 1, rtol=1e-6)


@each_gauge
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rank_deficient_factors_keep_their_ranks(gauge, dtype):
    rng = np.random.default_rng(0)
    u = rng.standard_normal((8, 2)) @ rng.standard_normal((2, 4))  # rank 2 in 4 columns
    tucker = lt.Tucker2(u, rng.standard_normal((3, 4, 3)), rng.standard_normal((7, 3)))
    up = np.concatenate([u, u[:, :1], u[:, :1]], axis=1)
    lora = lt.LoRAStack(up, rng.standard_normal((6, 7)), (4, 2))
    for stack in (lt.astype(tucker, dtype), lt.astype(lora, dtype)):
        found = regauge(stack, gauge)
        assert found.ranks == stack.ranks
        assert_same_updates(found, stack, 1e-13 if dtype == "float64" else 1e-6)
        factors = (found.u, found.v) if isinstance(found, lt.Tucker2) else (found.up,)
        for factor in factors:
            lengths = np.linalg.norm(wide(factor), axis=0)
            assert lengths.min() > 0.05 * lengths.max()


@each_gauge
def test_ranks_above_the_matrices_come_down(gauge):
    tucker = made_up_tucker2(shape=(2, 3, 4), ranks=(6, 7))
    assert regauge(tucker, gauge).ranks == (3, 4)
    assert_same_updates(regauge(tucker, gauge), tucker)
    lora = made_up(shape=(2, 3, 5), ranks=(6, 1))
    assert regauge(lora, gauge).ranks == (3, 1)
    assert_same_updates(regauge(lora, gauge), lora)
    few = made_up_tucker2(shape=(1, 9, 7), ranks=(5, 2))  # one layer: the core has rank 2
    assert regauge(few, gauge).ranks == (5, 2)
    assert_same_updates(regauge(few, gauge), few)


@each_gauge
def test_rank_zero(gauge):
    tucker = lt.Tucker2(np.ones((4, 0)), np.ones((2, 0, 3)), np.ones((5, 3)))
    assert regauge(tucker, gauge).ranks == (0, 3)
    lora = lt.LoRAStack(np.ones((4, 0)), np.ones((0, 3)), (0, 0))
    assert regauge(lora, gauge).ranks == (0, 0)


@each_gauge
@pytest.mark.parametrize("size", [1e-150, 1e-3, 1e150])
def test_extreme_sizes(gauge, size):
    for stack in (made_up(), made_up_tucker2()):
        large = lt.scale(stack, size)
        assert_same_updates(regauge(large, gauge), large)


@each_gauge
def test_gauges_do_not_depend_on_the_gauge_they_come_from(gauge):
    stack = made_up_tucker2()
    for other in GAUGES:
        one, two = regauge(stack, gauge), regauge(regauge(stack, other), gauge)
        for name in ("u", "core", "v"):
            assert off(getattr(two, name), getattr(one, name)) < 1e-11


def test_regauge_refuses():
    with pytest.raises(OptionError, match=r"gauge must be .* found 'even'"):
        regauge(made_up(), "even")
    with pytest.raises(OptionError, match="found 'normal'"):
        regauge(made_up(), "normal")
    with pytest.raises(FormatError, match="takes a Tucker2 or a LoRAStack; found Dense"):
        regauge(lt.Dense(np.ones((1, 2, 3))), "balanced")
    up = torch.ones(4, 2, requires_grad=True)
    with pytest.raises(DerivativeError, match="regauge has no derivative"):
        regauge(lt.LoRAStack(up, torch.ones(2, 3), (2,)), "balanced")


# factors of updates


@each_backend
@each_method
@each_gauge
def test_factors_and_residual_are_the_stack(backend, method, gauge):
    stack = stack_on(made_up(), backend)
    start = initial_factors(stack, 2, method=method, gauge=gauge)
    assert isinstance(start.factors, lt.LoRAStack if method == "svd" else lt.Tucker2)
    truth = updates(stack)
    assert off(updates(start.factors) + updates(start.residual), truth) < 1e-14
    assert off(updates(lt.add(start.factors, start.residual)), truth) < 1e-14
    rest = truth - updates(start.factors)
    assert abs(start.relative_error - np.linalg.norm(rest) / np.linalg.norm(truth)) < 1e-13
    assert 0.05 < start.relative_error < 0.9


def test_the_residual_holds_both_bit_for_bit():
    stack = made_up(dtype="float32")
    start = initial_factors(stack, (2, 3))
    rank = stack.up.shape[1]
    assert start.residual.ranks == (rank + 2, rank + 3)
    assert np.array_equal(start.residual.u, np.concatenate([stack.up, start.factors.u], axis=1))
    assert np.array_equal(start.residual.core[:, rank:, rank:], -start.factors.core)
    start = initial_factors(stack, 1, method="svd")
    assert start.residual.ranks == (3, 4, 2, 3)
    for part, own, theirs in zip(
        start.residual.slices, stack.slices, start.factors.slices, strict=True
    ):
        both = [stack.down[own], start.factors.down[theirs]]
        assert np.array_equal(start.residual.down[part], np.concatenate(both))
        both = [stack.up[:, own], -start.factors.up[:, theirs]]
        assert np.array_equal(start.residual.up[:, part], np.concatenate(both, axis=1))


@each_method
@each_gauge
@given(stack=stacks(), rank=st.integers(1, 3))
def test_any_stack(method, gauge, stack, rank):
    _, m, n = stack.shape
    rank = min(rank, m, n)
    start = initial_factors(stack, rank, method=method, gauge=gauge)
    scale = np.linalg.norm(updates(stack)) + np.linalg.norm(updates(start.factors))
    gap = updates(stack) - updates(start.factors) - updates(start.residual)
    assert np.linalg.norm(gap) <= 1e-12 * scale
    found = start.factors.ranks
    assert set(found) == {rank}
    certificate = start.factors.certificate
    assert certificate.lower <= certificate.distance * (1 + 1e-12) + 1e-300
    assert certificate.distance <= certificate.upper * (1 + 1e-12)


def test_each_method_is_as_good_as_it_promises():
    stack = made_up(shape=(6, 20, 15), ranks=(4,) * 6)
    errors = [initial_factors(stack, (5, 6), method=m).relative_error for m in ("hooi", "hosvd")]
    wanted = [f(stack, (5, 6)).certificate.relative_error for f in (lt.hooi, lt.hosvd)]
    assert np.allclose(errors, wanted, rtol=1e-10)
    error = initial_factors(stack, 2, method="svd").relative_error
    s = np.linalg.svd(updates(stack), compute_uv=False)
    assert abs(error - np.linalg.norm(s[:, 2:]) / np.linalg.norm(s)) < 1e-12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each_method
@each_gauge
def test_narrow_dtypes_stay(dtype, method, gauge):
    stack = lt.astype(made_up(), dtype)
    start = initial_factors(stack, 2, method=method, gauge=gauge)
    for part in (start.factors, start.residual):
        arrays = [x for x in vars(part).values() if hasattr(x, "dtype")]
        assert all(dtype_name(x) == dtype for x in arrays)
    truth = updates(stack)
    error = np.linalg.norm(truth - updates(start.factors)) / np.linalg.norm(truth)
    assert abs(start.relative_error - error) < 1e-9
    whole = updates(start.factors) + updates(start.residual)
    assert off(whole, truth) < 1e-14  # exact: no array of the residual is rounded


def test_rules_and_more_ranks_than_directions():
    stack = made_up(shape=(2, 9, 7), ranks=(2, 1))
    start = initial_factors(stack, lt.RelativeError(1e-9))
    assert start.relative_error < 1e-9
    assert start.factors.ranks == (3, 3)
    start = initial_factors(stack, (5, 6))  # three directions a side, and others to train
    assert start.factors.ranks == (5, 6)
    assert start.relative_error < 1e-14
    for factor in (start.factors.u, start.factors.v):
        assert np.linalg.matrix_rank(factor, rtol=1e-6) == factor.shape[1]
    start = initial_factors(stack, 4, method="svd")
    assert start.factors.ranks == (4, 4)
    assert all(np.linalg.matrix_rank(start.factors.up[:, p]) == 4 for p in start.factors.slices)
    start = initial_factors(stack, lt.Budget(3 * (9 + 7)), method="svd")
    assert start.factors.ranks == (2, 1)


def test_zero_updates_begin_at_zero():
    zero = lt.LoRAStack(np.zeros((6, 4)), np.ones((4, 5)), (2, 2))
    for method in METHODS:
        start = initial_factors(zero, 2, method=method)
        assert start.relative_error == 0
        assert not updates(start.factors).any()
        assert start.factors.ranks == (2, 2)


def test_initial_factors_refuses():
    stack = made_up()
    with pytest.raises(OptionError, match="method must be svd, hosvd or hooi; found 'tucker'"):
        initial_factors(stack, 2, method="tucker")
    with pytest.raises(OptionError, match=r"gauge must be orthonormal, balanced or equalised"):
        initial_factors(stack, 2, gauge="normal")
    with pytest.raises(RankError, match=r"r1 must lie in 1 … m = 9; found 10"):
        initial_factors(stack, (10, 2))
    with pytest.raises(RankError, match=r"r2 must lie in 1 … n = 7; found 0"):
        initial_factors(stack, (3, 0))
    with pytest.raises(RankError, match=r"one rank for all layers; found the pair \(3, 2\)"):
        initial_factors(stack, (3, 2), method="svd")
    with pytest.raises(RankError, match=r"1 … min\(m, n\) = 7; found 8"):
        initial_factors(stack, 8, method="svd")
    grad = lt.LoRAStack(torch.ones(4, 2, requires_grad=True), torch.ones(2, 3), (2,))
    with pytest.raises(DerivativeError, match="initial_factors has no derivative"):
        initial_factors(grad, 1)


# factors of weights


def decaying(seed=0, shape=(6, 40, 30), power=1.0, dtype="float64"):
    """Weights whose unfoldings have singular values that fall like k^(−power)."""
    _, m, n = shape
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((size, size)))[0] for size in (m, n))
    core = rng.standard_normal(shape)
    core *= np.arange(1, m + 1)[:, None] ** -power * np.arange(1, n + 1) ** -power
    return (u @ core @ v.T).astype(dtype)


def tails(dense, ranks):
    """The norms of the singular values beyond both ranks."""
    return [
        float(np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:]))
        for matrix, rank in zip(unfoldings(dense), ranks, strict=True)
    ]


@each_backend
@each_gauge
@pytest.mark.parametrize("shape", [(4, 6, 5), (5, 4, 7), (1, 3, 8), (2, 9, 3)])
def test_full_ranks_give_the_weights_back(backend, gauge, shape):
    dense = np.random.default_rng(0).standard_normal(shape)
    weights = [on_backend(w, backend) for w in dense]
    start = initial_factors_of_weights(weights, shape[1:], gauge=gauge)
    assert start.factors.ranks == shape[1:]
    assert off(updates(start.factors), dense) < 1e-13
    assert start.relative_error < 1e-13
    assert np.linalg.norm(wide(start.residual(0))) < 1e-12
    # as a layer computes: y = x Wᵀ = ((x V) Gᵀ) Uᵀ
    x = np.random.default_rng(1).standard_normal((2, shape[2]))
    y = ((x @ wide(start.factors.v)) @ wide(start.factors.core[0, ...]).T) @ wide(start.factors.u).T
    assert off(y, x @ dense[0].T) < 1e-13


def test_a_transposed_core_would_be_seen():
    """Weights of exact ranks come back; with each core transposed they would not."""
    rng = np.random.default_rng(0)
    planted = lt.Tucker2(
        rng.standard_normal((12, 3)), rng.standard_normal((5, 3, 3)), rng.standard_normal((8, 3))
    )
    dense = updates(planted)
    for gauge in GAUGES:
        found = initial_factors_of_weights(list(dense), 3, gauge=gauge).factors
        assert off(updates(found), dense) < 1e-13
        wrong = lt.Tucker2(found.u, found.core.transpose(0, 2, 1).copy(), found.v)
        assert off(updates(wrong), dense) > 0.3
    other = lt.Tucker2(
        planted.u, rng.standard_normal((5, 3, 2)), rng.standard_normal((8, 2))
    )  # r1 ≠ r2: a transposed core would not even fit
    found = initial_factors_of_weights(list(updates(other)), (3, 2)).factors
    assert found.core.shape == (5, 3, 2)
    assert off(updates(found), updates(other)) < 1e-13


@each_backend
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    ranks=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
def test_what_is_reported_is_true(backend, sizes, ranks, seed):
    _, m, n = sizes
    ranks = min(ranks[0], m), min(ranks[1], n)
    dense = np.random.default_rng(seed).standard_normal(sizes)
    start = initial_factors_of_weights([on_backend(w, backend) for w in dense], ranks)
    assert start.factors.ranks == ranks
    rest = dense - updates(start.factors)
    error = np.linalg.norm(rest) / np.linalg.norm(dense)
    assert abs(start.relative_error - error) < 1e-12
    certificate = start.factors.certificate
    own = np.linalg.norm(rest, axis=(1, 2))
    scale = np.linalg.norm(dense)
    assert np.abs(wide(certificate.distances) - own).max() < 1e-12 * scale
    assert np.allclose(wide(certificate.norms), np.linalg.norm(dense, axis=(1, 2)), rtol=1e-12)
    assert max(tails(dense, ranks)) <= np.linalg.norm(rest) + 1e-12 * scale
    assert float(certificate.lower) <= np.linalg.norm(rest) * (1 + 1e-12) + 1e-12 * scale
    for layer in range(sizes[0]):
        assert np.linalg.norm(wide(start.residual(layer)) - rest[layer]) < 1e-12 * scale


def test_the_lower_bound_holds_and_is_close():
    dense = decaying()
    certificate = initial_factors_of_weights(list(dense), (6, 5)).factors.certificate
    best = max(tails(dense, (6, 5)))
    assert 0.8 * best < float(certificate.lower) <= best * (1 + 1e-12)
    assert certificate.method == "randomised hooi"


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_error_is_near_the_exact_one(power):
    """With two power iterations within two percent of the HOOI of the dense stack."""
    dense, ranks = decaying(power=power), (6, 5)
    exact = lt.hooi(lt.Dense(dense), ranks).certificate.relative_error
    plain = lt.hosvd(lt.Dense(dense), ranks).certificate.relative_error
    for seed in range(5):
        found = initial_factors_of_weights(list(dense), ranks, seed=seed).relative_error
        assert found < 1.02 * exact
        assert found < 1.02 * plain
        assert found > 0.98 * exact


@pytest.mark.parametrize("power", [0.25, 1.0])
@pytest.mark.parametrize("oversampling", [2, 5])
def test_mean_error_is_within_the_bound(power, oversampling):
    """Theorem 10.5 of Halko, Martinsson and Tropp (2011) for both sides, without power iterations.

    The mean of 30 seeds is 10% or more below the bound in all of these, so chance does not decide.
    """
    dense, (r1, r2) = decaying(power=power), (6, 5)
    one, two = tails(dense, (r1, r2))
    bound = (2 + r1 / (oversampling - 1)) * one**2 + (2 + r2 / (oversampling - 1)) * two**2
    squares = []
    for seed in range(30):
        start = initial_factors_of_weights(
            list(dense), (r1, r2), oversampling=oversampling, power_iterations=0, seed=seed
        )
        squares.append(start.factors.certificate.distance**2)
    assert np.mean(squares) < 0.9 * bound


def test_layers_that_cancel_are_seen():
    """W and −W: their sum is zero, so each layer must meet random numbers of its own."""
    one = updates(made_up_tucker2(shape=(1, 12, 9), ranks=(3, 2)))[0]
    start = initial_factors_of_weights([one, -one], (3, 2), power_iterations=0, oversampling=0)
    assert start.relative_error < 1e-12


def test_power_iterations_bring_it_closer():
    dense = decaying(power=0.5)
    errors = [
        np.mean(
            [
                initial_factors_of_weights(
                    list(dense), 4, oversampling=2, power_iterations=power, seed=seed
                ).relative_error
                for seed in range(5)
            ]
        )
        for power in (0, 1, 3)
    ]
    assert errors[0] > 1.01 * errors[1] > errors[2]


class Reader:
    """Weights made when they are asked for, as from a file; counts readings, and what is alive."""

    def __init__(self, shape, seed=0, dtype="float64", library="numpy"):
        self.shape, self.seed, self.dtype, self.library = shape, seed, dtype, library
        self.readings = [0] * shape[0]
        self.alive = []
        self.most = 0

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        assert isinstance(index, int)
        assert 0 <= index < len(self)
        living = [ref for ref in self.alive if ref() is not None]
        rng = np.random.default_rng((self.seed, index))
        weight = rng.standard_normal(self.shape[1:]).astype(self.dtype)
        if self.library == "torch":
            weight = torch.from_numpy(weight)
        self.alive = [*living, weakref.ref(weight)]
        self.most = max(self.most, len(self.alive))
        self.readings[index] += 1
        return weight


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("power_iterations", [0, 1, 2])
def test_each_weight_is_read_a_known_number_of_times_and_let_go(library, power_iterations):
    reader = Reader((5, 9, 8), library=library)
    gc.disable()  # so that no cycle may keep a weight alive unseen
    try:
        start = initial_factors_of_weights(reader, (3, 2), power_iterations=power_iterations)
        assert reader.readings == [power_iterations + 3] * 5
        assert reader.most == 1
        start.residual(4)
        start.residual(-1)
        assert reader.readings == [power_iterations + 3] * 4 + [power_iterations + 5]
        assert reader.most == 1
        assert all(ref() is None for ref in reader.alive)
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_memory_is_that_of_one_weight_and_thin_bases(dtype):
    shape, rank = (16, 900, 700), 4
    reader = Reader(shape, dtype=dtype)
    one = 900 * 700 * np.dtype(dtype).itemsize
    initial_factors_of_weights(Reader((1, 9, 8), dtype=dtype), 2)  # imports and caches
    tracemalloc.start()
    try:
        initial_factors_of_weights(reader, rank)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # making one weight takes 8 bytes an entry before it is cast, beside nothing else
    block, thin = 8 * 2**18 * 4, 8 * (900 + 700) * (rank + 10) * 8
    assert peak < 8 * 900 * 700 + one * (dtype == "float32") + block + thin
    assert peak < 16 * one / 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@each_gauge
def test_narrow_weights(dtype, gauge):
    wide_weights = lt.Dense(decaying())
    weights = lt.astype(wide_weights, dtype)
    start = initial_factors_of_weights(weights, (6, 5), gauge=gauge)
    assert storage(start.factors) == {dtype}
    truth = updates(weights)
    rest = truth - updates(start.factors)
    assert abs(start.relative_error - np.linalg.norm(rest) / np.linalg.norm(truth)) < 1e-9
    exact = lt.hooi(weights, (6, 5), dtype="float64").certificate.relative_error
    assert start.relative_error < 1.05 * exact
    assert dtype_name(start.residual(2)) == dtype
    roundoff = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    whole = wide(start.residual(2)) + updates(start.factors)[2]
    assert np.abs(whole - truth[2]).max() <= roundoff * np.abs(rest[2]).max() + 1e-15
    wider = initial_factors_of_weights(weights, (6, 5), gauge=gauge, dtype="float64")
    assert storage(wider.factors) == {"float64"}
    assert dtype_name(wider.residual(0)) == dtype


def storage(stack):
    return {dtype_name(x) for x in vars(stack).values() if hasattr(x, "dtype")}


def test_small_errors_of_float32_are_seen():
    """A rest of 1e-6 of the weights is measured to three digits: nothing cancels."""
    rng = np.random.default_rng(0)
    planted = updates(made_up_tucker2(shape=(3, 30, 20), ranks=(3, 2)))
    rest = rng.standard_normal(planted.shape)
    rest *= 1e-4 * np.linalg.norm(planted) / np.linalg.norm(rest)
    weights = (planted + rest).astype("float32")
    start = initial_factors_of_weights(list(weights), (3, 2), dtype="float64")
    truth = np.linalg.norm(weights.astype(float) - updates(start.factors))
    assert abs(start.factors.certificate.distance / truth - 1) < 1e-9


def test_gauges_of_weights():
    dense = decaying()
    flat, balanced, equal = (
        initial_factors_of_weights(list(dense), (6, 5), gauge=gauge).factors for gauge in GAUGES
    )
    for factor in (flat.u, flat.v):
        assert np.abs(factor.T @ factor - np.eye(factor.shape[1])).max() < 1e-13
    assert np.allclose(
        np.linalg.norm(balanced.u, axis=0) ** 2, np.linalg.norm(flat.core, axis=(0, 2)), rtol=1e-10
    )
    assert np.allclose(
        np.linalg.norm(balanced.v, axis=0) ** 2, np.linalg.norm(flat.core, axis=(0, 1)), rtol=1e-10
    )
    norms = [np.linalg.norm(x) for x in (equal.u, equal.core, equal.v)]
    assert np.allclose(norms, norms[0], rtol=1e-10)
    for other in (balanced, equal):
        assert off(updates(other), updates(flat)) < 1e-12


def test_seeds_and_libraries():
    dense = decaying(shape=(3, 20, 15))
    one = initial_factors_of_weights(list(dense), (4, 3), seed=5)
    again = initial_factors_of_weights(lt.Dense(dense), (4, 3), seed=5)
    other = initial_factors_of_weights(list(dense), (4, 3), seed=6, power_iterations=0)
    moved = initial_factors_of_weights([torch.from_numpy(w) for w in dense], (4, 3), seed=5)
    assert isinstance(moved.factors.u, torch.Tensor)
    assert isinstance(one, WeightInitialisation)
    for name in ("u", "core", "v"):
        assert np.array_equal(getattr(one.factors, name), getattr(again.factors, name))
        assert off(wide(getattr(moved.factors, name)), getattr(one.factors, name)) < 1e-8
    assert abs(moved.relative_error - one.relative_error) < 1e-12
    assert off(other.factors.u, one.factors.u) > 1e-6


def test_zero_and_rank_deficient_weights():
    start = initial_factors_of_weights([np.zeros((6, 5))] * 2, (3, 2))
    assert start.relative_error == 0
    assert start.factors.ranks == (3, 2)
    assert np.allclose(np.linalg.norm(start.factors.u, axis=0), 1)
    rng = np.random.default_rng(0)
    flat = np.outer(rng.standard_normal(6), rng.standard_normal(5))
    for gauge in GAUGES:
        start = initial_factors_of_weights([flat, 2 * flat, 0 * flat], (3, 2), gauge=gauge)
        assert start.factors.ranks == (3, 2)
        assert start.relative_error < 1e-14
        assert np.isfinite(start.factors.core).all()


def test_half_of_the_weights_are_kept_frozen():
    """As one uses it: the frozen rest and the factors compute what the weights did."""
    rng = np.random.default_rng(0)
    weights = [torch.from_numpy(rng.standard_normal((7, 6))).float() for _ in range(3)]
    start = initial_factors_of_weights(weights, (4, 3))
    x = torch.ones(2, 6)
    for layer, weight in enumerate(weights):
        y = x @ start.residual(layer).T + lt.apply(start.factors, x, layer=layer)
        assert torch.allclose(y, x @ weight.T, atol=1e-5)


def test_weights_refuse():
    def call(weights, ranks=(2, 2), **options):
        return initial_factors_of_weights(weights, ranks, **options)

    good = np.ones((4, 3))
    with pytest.raises(FormatError, match=r"\(4, 3\) before and \(3, 4\) in layer 2"):
        call([good, good, good.T])
    with pytest.raises(FormatError, match="at least one matrix; found none"):
        call([])
    with pytest.raises(FormatError, match="sequence of matrices; found generator"):
        call(w for w in [good])
    with pytest.raises(FormatError, match=r"layer 1 must be a matrix \(m, n\); found shape \(4,\)"):
        call([good, good[:, 0]])
    for bad in (np.nan, np.inf):
        broken = good.copy()
        broken[2, 1] = bad
        with pytest.raises(FormatError, match="layer 1 has nan or infinite entries"):
            call([good, broken])
    with pytest.raises(BackendError, match=r"float64, cpu before and .*float32, cpu in layer 1"):
        call([good, good.astype("float32")])
    with pytest.raises(BackendError, match="in layer 1"):
        call([good, torch.ones(4, 3, dtype=torch.float64)])
    with pytest.raises(BackendError, match="layer 0"):
        call([[[1.0, 2.0], [3.0, 4.0]]])
    with pytest.raises(BackendError, match="int64"):
        call([np.ones((4, 3), dtype=np.int64)])
    with pytest.raises(OptionError, match="dtype must be one of"):
        call([good], dtype="int8")
    with pytest.raises(RankError, match=r"r1 must lie in 1 … m = 4; found 5"):
        call([good], (5, 2))
    with pytest.raises(RankError, match=r"r2 must lie in 1 … n = 3; found 0"):
        call([good], (2, 0))
    with pytest.raises(RankError, match=r"as numbers; found RelativeError"):
        call([good], lt.RelativeError(0.1))
    with pytest.raises(OptionError, match="gauge must be"):
        call([good], gauge="normal")
    for name in ("oversampling", "power_iterations", "seed"):
        with pytest.raises(OptionError, match=f"{name} must be a whole number"):
            call([good], **{name: -1})
        for value in (1.5, True):
            with pytest.raises(OptionError, match=f"takes a whole number as {name}; this is"):
                call([good], **{name: value})
    with pytest.raises(DerivativeError, match=r"layer 0 requires one; detach the weights first"):
        call([torch.nn.Parameter(torch.ones(4, 3))])
    with torch.no_grad():
        call([torch.nn.Parameter(torch.ones(4, 3))])
    with pytest.raises(FormatError, match=r"layer must lie in 0 … 0; found 1"):
        call([good]).residual(1)


# random factors


@each_random_gauge
def test_random_factors_begin_at_zero(gauge):
    stack = random_factors((5, 40, 30), (4, 3), gauge=gauge)
    assert stack.shape == (5, 40, 30)
    assert stack.ranks == (4, 3)
    assert not stack.core.any()
    assert storage(stack) == {"float32"}
    assert not updates(stack).any()
    assert np.linalg.matrix_rank(stack.u) == 4
    x = np.ones((2, 30), dtype="float32")
    assert not lt.apply(stack, x).any()


def test_random_gauges_are_what_they_say():
    (m, n), (r1, r2) = (40, 30), (4, 3)
    u, v, norms = {}, {}, {}
    for gauge in RANDOM_GAUGES:
        stack = random_factors((2, m, n), (r1, r2), gauge=gauge, dtype="float64")
        u[gauge], v[gauge] = stack.u, stack.v
        norms[gauge] = np.linalg.norm(stack.u), np.linalg.norm(stack.v)
    for gauge in GAUGES:
        for x in (u[gauge], v[gauge]):
            gram = x.T @ x
            assert np.abs(gram / gram[0, 0] - np.eye(x.shape[1])).max() < 1e-14
    assert np.allclose(norms["orthonormal"], (2, math.sqrt(3)))
    assert np.allclose(norms["balanced"], (2 * 10**0.25, math.sqrt(3) * 10**0.25))
    assert np.allclose(norms["equalised"], (m * n * r1 * r2) ** 0.125)
    rows = np.linalg.svd(u["normal"].T @ u["orthonormal"], compute_uv=False)
    assert rows.min() > 3  # one subspace, other columns
    many = random_factors((1, 4000, 3000), (4, 3), gauge="normal", dtype="float64")
    for x in (many.u, many.v):
        assert abs(x.mean()) < 0.03
        assert abs(x.std() - 1) < 0.03


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@each_random_gauge
def test_random_numbers_are_the_same_in_every_library(gauge, dtype):
    options = {"gauge": gauge, "seed": 3, "dtype": dtype}
    here = random_factors((2, 9, 8), (4, 3), **options)
    there = random_factors((2, 9, 8), (4, 3), backend="torch", device="cpu", **options)
    other = random_factors((2, 9, 8), (4, 3), **{**options, "seed": 4})
    assert isinstance(there.u, torch.Tensor)
    assert there.u.is_contiguous()
    for name in ("u", "core", "v"):
        assert np.array_equal(wide(getattr(here, name)), wide(getattr(there, name)))
        assert dtype_name(getattr(there, name)) == dtype
    assert off(wide(other.u), wide(here.u)) > 0.1


@each_random_gauge
@pytest.mark.parametrize(
    ("shape", "ranks"), [((3, 17, 11), (4, 3)), ((2, 6, 13), (6, 1)), ((1, 5, 4), (2, 4))]
)
def test_first_step_gain_by_monte_carlo(gauge, shape, ranks):
    """E‖U Uᵀ D V Vᵀ‖² over 1500 seeds, for two gradients: a flat one and one of rank 1.

    The mean of the squares has a standard deviation of at most 3.3%: the margin is three of them.
    """
    _, m, n = shape
    gradients = np.random.default_rng(0).standard_normal((m, n)), np.zeros((m, n))
    gradients[1][m // 2, 0] = 1.0
    squares = np.zeros(2)
    count = 1500
    for seed in range(count):
        stack = random_factors(shape, ranks, gauge=gauge, seed=seed, dtype="float64")
        for index, gradient in enumerate(gradients):
            step = stack.u @ (stack.u.T @ gradient @ stack.v) @ stack.v.T
            squares[index] += np.linalg.norm(step) ** 2 / np.linalg.norm(gradient) ** 2 / count
    assert np.allclose(squares, first_step_gain(shape, ranks, gauge) ** 2, rtol=0.1)


def test_first_step_gain_is_that_of_a_real_step():
    """One SGD step in torch: only the cores have a gradient, and the update has that size."""
    shape, ranks, eta = (3, 12, 10), (5, 4), 0.1
    rng = np.random.default_rng(0)
    targets = torch.from_numpy(rng.standard_normal(shape))
    squares = []
    for seed in range(300):
        start = random_factors(shape, ranks, seed=seed, dtype="float64", backend="torch")
        parts = [x.clone().requires_grad_() for x in (start.u, start.core, start.v)]
        loss = ((lt.to_dense(lt.Tucker2(*parts)) - targets) ** 2).sum() / 2
        loss.backward()
        assert not parts[0].grad.any()
        assert not parts[2].grad.any()
        with torch.no_grad():
            stepped = lt.Tucker2(start.u, start.core - eta * parts[1].grad, start.v)
        squares.append(float(lt.norm(stepped) / (eta * torch.linalg.vector_norm(targets))) ** 2)
    assert abs(np.mean(squares) - first_step_gain(shape, ranks, "balanced") ** 2) < 0.1


def test_gains_by_formula():
    assert first_step_gain((9, 40, 30), (4, 3), "orthonormal") == pytest.approx(0.1)
    for gauge in ("balanced", "equalised"):
        assert first_step_gain((9, 40, 30), (4, 3), gauge) == pytest.approx(1)
    normal = math.sqrt(4 * 45 * 3 * 34)
    assert first_step_gain((9, 40, 30), (4, 3), "normal") == pytest.approx(normal)
    for gauge in GAUGES:
        assert first_step_gain((1, 6, 5), (6, 5), gauge) == pytest.approx(1)


@pytest.mark.parametrize("function", [random_factors, first_step_gain])
def test_random_factors_refuse(function):
    with pytest.raises(OptionError, match=r"balanced, equalised or normal; found 'gauss'"):
        function((2, 4, 3), (2, 2), gauge="gauss")
    with pytest.raises(RankError, match=r"r1 must lie in 1 … m = 4; found 5"):
        function((2, 4, 3), (5, 2))
    with pytest.raises(RankError, match=r"r2 must lie in 1 … n = 3; found 0"):
        function((2, 4, 3), (2, 0))
    with pytest.raises(RankError, match=r"ranks must be \(r1, r2\); found 2"):
        function((2, 4, 3), 2)
    with pytest.raises(OptionError, match=r"L must be a whole number of at least 1; found 0"):
        function((0, 4, 3), (2, 2))
    with pytest.raises(OptionError, match=r"shape must be \(L, m, n\)"):
        function((4, 3), (2, 2))


def test_random_factors_refuse_their_own_options():
    with pytest.raises(OptionError, match="seed must be a whole number of at least 0; found -1"):
        random_factors((2, 4, 3), (2, 2), seed=-1)
    with pytest.raises(OptionError, match="dtype must be one of"):
        random_factors((2, 4, 3), (2, 2), dtype="int8")
    with pytest.raises(BackendError, match="unknown backend 'jax'"):
        random_factors((2, 4, 3), (2, 2), backend="jax")
    with pytest.raises(BackendError, match="NumPy computes on the cpu"):
        random_factors((2, 4, 3), (2, 2), device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_everything_stays_on_a_cuda_device():
    dense = decaying(shape=(3, 20, 15))
    start = initial_factors_of_weights([torch.from_numpy(w).cuda() for w in dense], (4, 3))
    assert start.factors.u.device.type == start.residual(0).device.type == "cuda"
    assert start.factors.certificate.distances.device.type == "cuda"
    moved = random_factors((2, 9, 8), (4, 3), backend="torch", device="cuda")
    assert moved.u.device.type == "cuda"
    stack = lt.to_device(stack_on(made_up(), "torch"), "cuda")
    for method in METHODS:
        assert initial_factors(stack, 2, method=method).residual.shape == stack.shape
