"""Rounding and canonical factors of Tucker-2 stacks with low-rank cores."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn.errors import PrecisionWarning
from lotr_tn.testing import laws, strategies
from tests.conftest import BACKENDS, stack_on
from tests.tripwire import LargestTensor

SHAPE, SHARED, RANKS = (4, 13, 9), (6, 5), (2, 3, 1, 4)


def low_rank(seed=0, shape=SHAPE, shared=SHARED, ranks=RANKS, dtype="float64"):
    rng = np.random.default_rng(seed)
    (_, m, n), (r1, r2), total = shape, shared, sum(ranks)
    shapes = (m, r1), (r1, total), (total, r2), (n, r2)
    return lt.LowRankTucker2(*(rng.standard_normal(s).astype(dtype) for s in shapes), ranks)


def orthonormal(x):
    return np.abs(x.T @ x - np.eye(x.shape[1])).max() < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", [1, 2, lt.RelativeError(0.2), lt.Energy(0.8)])
def test_layers_get_the_ranks_that_a_lora_of_them_gets(rule, backend):
    stack = low_rank()
    cut = lt.round(stack_on(stack, backend), rule)
    best = lt.round(lt.convert(stack, lt.LoRAStack), rule)
    assert cut.ranks == best.ranks
    error = best.certificate.relative_error
    assert cut.certificate.relative_error == pytest.approx(error, rel=1e-10)
    assert cut.certificate.lower_bound == pytest.approx(error, rel=1e-10)
    assert orthonormal(np.asarray(cut.u))
    assert orthonormal(np.asarray(cut.v))
    assert cut.certificate.method == "truncated-svd"


def test_cores_carry_the_roots_of_singular_values():
    cut = lt.round(low_rank(), 2)
    for part, values in zip(cut.slices, lt.layer_singular_values(cut), strict=True):
        for x in (cut.up[:, part].T, cut.down[part, :]):
            assert np.allclose(x @ x.T, np.diag(values), atol=1e-12 * values[0])


def test_directions_that_nothing_uses_are_dropped():
    """One large term in each of two layers, and small ones elsewhere."""
    stack = low_rank()
    scaled = lt.scale(stack, [1.0, 1e-3, 1e-3, 1e-3])
    cut = lt.round(scaled, lt.RelativeError(0.05))
    assert cut.ranks == (2, 0, 0, 0)
    assert cut.shared_ranks == (2, 2)
    twice = lt.round(stack + low_rank(seed=1), lt.RelativeError(0))
    assert twice.shared_ranks == (12, 9)  # n = 9 input directions are all there are
    assert lt.round(stack + stack, lt.RelativeError(1e-12)).ranks == (2, 3, 1, 4)


@given(params=st.integers(0, 300))
def test_a_budget_buys_the_most_terms(params):
    """Against every number of terms in the global order, each counted after rounding to it."""
    stack = low_rank(shared=(3, 4), ranks=(2, 1, 0, 3))
    cut = lt.round(stack, lt.Budget(params))
    assert lt.parameter_count(cut) <= params
    values = sorted(
        (float(s), i) for i, own in enumerate(lt.layer_singular_values(stack)) for s in own
    )
    allowed = []
    for count in range(len(values) + 1):
        kept = [i for _, i in values[len(values) - count :]]
        whole = lt.convert(stack, lt.LoRAStack)
        layers = [lt.round(lt.take_layers(whole, [i]), kept.count(i)) for i in range(4)]
        w = laws.dense_updates(lt.concat_layers(layers))
        r1 = np.linalg.matrix_rank(w.transpose(1, 0, 2).reshape(13, -1), tol=1e-9)
        r2 = np.linalg.matrix_rank(w.reshape(-1, 9), tol=1e-9)
        if 13 * r1 + 9 * r2 + count * (r1 + r2) <= params:
            allowed.append(count)
    assert sum(cut.ranks) == max(allowed)


def test_a_budget_takes_every_layer_into_account():
    counts = [lt.parameter_count(lt.round(low_rank(), lt.Budget(p))) for p in range(0, 400, 20)]
    errors = [
        lt.round(low_rank(), lt.Budget(p)).certificate.relative_error for p in range(0, 400, 20)
    ]
    assert counts[0] == 0
    assert errors[0] == pytest.approx(1.0)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(errors))
    assert errors[-1] < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@given(stack=strategies.low_rank_tucker2s(degenerate=False), seed=st.integers(0, 99))
def test_canonical_factors_do_not_depend_on_the_gauge(backend, stack, seed):
    matrices = laws.gauge.random_gauge(laws.gauge_sizes(stack), seed)
    one, two = (
        lt.canonicalize(stack_on(s, backend)) for s in (stack, laws.change_gauge(stack, matrices))
    )
    assert one.ranks == two.ranks
    assert one.shared_ranks == two.shared_ranks
    truth = laws.dense_updates(stack)
    assert np.allclose(laws.dense_updates(one), truth, atol=1e-11 * np.abs(truth).max(initial=1.0))
    if all(gap > 1e-2 for gap in gaps(truth)):
        for name in ("u", "v"):  # entries of one size and both signs leave the sign open
            x, y = (np.abs(np.asarray(getattr(s, name))) for s in (one, two))
            assert np.allclose(x, y, atol=1e-7)


def gaps(truth):
    """How far the singular values of both unfoldings, and their smallest, stand apart."""
    _, m, n = truth.shape
    for x in (truth.transpose(1, 0, 2).reshape(m, -1), truth.reshape(-1, n)):
        s = np.linalg.svd(x, compute_uv=False)
        s = s[s > 1e-9 * s[0]]
        yield from (s[:-1] - s[1:]) / s[0]
        yield s[-1] / s[0]


def test_what_is_only_rounding_is_dropped():
    stack = low_rank()
    plain = lt.canonicalize(stack)
    again = lt.canonicalize(stack * 0.5 + lt.canonicalize(stack) * 0.5)
    assert (again.ranks, again.shared_ranks) == (plain.ranks, plain.shared_ranks)
    for name in ("u", "up", "down", "v"):
        assert np.allclose(getattr(again, name), getattr(plain, name), atol=1e-9)
    assert plain.certificate.relative_error < 1e-14


@pytest.mark.parametrize("shared", [(6, 5), (0, 5), (6, 0), (0, 0)])
@pytest.mark.parametrize("change", [lt.canonicalize, lambda s: lt.round(s, lt.RelativeError(0.1))])
def test_a_zero_stack_has_no_terms(change, shared):
    made = change(0 * low_rank(shared=shared))
    assert made.ranks == (0,) * 4
    assert made.shape == SHAPE
    assert lt.parameter_count(made) == 0
    assert made.certificate.relative_error == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_storage_dtype_is_measured(dtype):
    stack = low_rank()
    cut = lt.round(stack, 4, dtype=dtype)
    rounded = lt.astype(cut, "float64")
    assert cut.certificate.distance == pytest.approx(float(lt.distance(stack, rounded)), rel=1e-9)
    assert 0 < cut.certificate.relative_error < 0.02
    with pytest.warns(PrecisionWarning, match=f"storing in {dtype}"):
        lt.round(stack, lt.RelativeError(1e-12), dtype=dtype)


def test_with_a_derivative_the_shared_factors_stay():
    stack = stack_on(low_rank(), "torch")
    leaf = stack.up.requires_grad_()
    made = lt.round(lt.LowRankTucker2(stack.u, leaf, stack.down, stack.v, RANKS), 2)
    assert made.u is stack.u
    assert made.ranks == (2, 2, 1, 2)
    assert made.certificate is None
    with pytest.raises(lt.errors.DerivativeError, match="fixed ranks"):
        lt.round(lt.LowRankTucker2(stack.u, leaf, stack.down, stack.v, RANKS), lt.Budget(90))


@pytest.mark.parametrize("name", ["hosvd", "hooi", "tucker1 in", "tucker1 out", "metric", "start"])
def test_decompositions_take_it_as_the_lora_that_it_is(name):
    functions = {
        "hosvd": lambda s: lt.hosvd(s, (3, 2)),
        "hooi": lambda s: lt.hooi(s, (3, 2)),
        "tucker1 in": lambda s: lt.tucker1(s, 2, "in"),
        "tucker1 out": lambda s: lt.tucker1(s, 2, "out"),
        "metric": lambda s: lt.decompose.hooi_in_metric(s, (3, 2), np.linspace(0.1, 1, 9)),
        "start": lambda s: lt.decompose.initial_factors(s, (3, 2)).factors,
    }
    stack = low_rank()
    one, two = (functions[name](s) for s in (stack, lt.convert(stack, lt.LoRAStack)))
    error = two.certificate.relative_error
    assert one.certificate.relative_error == pytest.approx(error, rel=1e-6)
    assert float(lt.distance(one, two)) < 1e-5 * float(lt.norm(stack))


def test_a_gauge_is_refused():
    with pytest.raises(lt.errors.FormatError, match="found LowRankTucker2"):
        lt.decompose.regauge(low_rank(), "balanced")


SIZE = 60_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tripwire(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = (SIZE, 3), (3, 6), (6, 4), (SIZE, 4)
    arrays = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    stack = lt.LowRankTucker2(*arrays, (2, 1, 3))
    other = lt.round(stack, 1)
    lora, x = lt.convert(other, lt.LoRAStack), torch.ones(4, SIZE, dtype=dtype)
    with LargestTensor() as largest:
        lt.round(stack + other, lt.RelativeError(0.3)), lt.canonicalize(stack)
        lt.hosvd(stack, 2), lt.tucker1(stack, 2), lt.distance(stack, other), lt.gram([stack, lora])
        lt.distance(stack, lora), lt.inner(stack, lora), lt.layer_norms(stack, "nuclear")
        lt.apply(stack, x), lt.apply(stack, x, layer=[0, 2, 1, 1]), lt.apply_transpose(stack, x)
        lt.take_layers(stack, [1]), lt.scale(stack, [1.0, 2.0, 3.0]), lt.subtract(lora, stack)
    assert largest.entries <= 3 * x.numel() + SIZE * 10
