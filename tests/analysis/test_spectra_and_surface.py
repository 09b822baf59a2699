"""Spectra, the error surface and the break-even, against dense computations."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn.errors import DerivativeError, OptionError, RankError
from lotr_tn.testing import laws, strategies
from tests.conftest import LAW_BACKENDS, stack_on

each_backend = pytest.mark.parametrize("backend", LAW_BACKENDS)


def unfoldings(dense):
    _, m, n = dense.shape
    return dense.transpose(1, 0, 2).reshape(m, -1), dense.transpose(2, 0, 1).reshape(n, -1)


@functools.cache
def dense_surface(base):
    """Relative errors of the truncated HOSVD for all ranks, and both mode tails, pair by pair."""
    dense = laws.dense_updates(decaying(0, base))
    (left, right), norm = unfoldings(dense), np.linalg.norm(dense)
    u, s, _ = np.linalg.svd(left, full_matrices=False)
    v, t, _ = np.linalg.svd(right, full_matrices=False)
    errors = np.empty((len(s) + 1, len(t) + 1))
    lower = np.empty_like(errors)
    for r1, r2 in itertools.product(range(len(s) + 1), range(len(t) + 1)):
        p, q = u[:, :r1] @ u[:, :r1].T, v[:, :r2] @ v[:, :r2].T
        errors[r1, r2] = np.linalg.norm(dense - p @ dense @ q) / norm
        lower[r1, r2] = max(np.linalg.norm(s[r1:]), np.linalg.norm(t[r2:])) / norm
    return errors, lower


def decaying(seed, base):
    """Directions down to about 1e-10 of the first."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.standard_normal((9, 7)))[0] * base ** -np.arange(7.0)
    v = np.linalg.qr(rng.standard_normal((8, 7)))[0] * base ** -np.arange(7.0)
    core = rng.standard_normal((3, 7, 7))
    return lt.Tucker2(u, core, v)


@each_backend
@pytest.mark.parametrize("base", [1.5, 10.0, 40.0])
def test_the_surface_is_the_dense_one_entry_by_entry(backend, base):
    stack = decaying(0, base)
    surface = lt.analysis.error_surface(stack_on(stack, backend))
    errors, lower = dense_surface(base)
    rows, columns = surface.errors.shape
    known = errors[:rows, :columns]
    assert np.allclose(surface.errors, known, rtol=1e-10, atol=4e-15)
    assert np.allclose(
        surface.lower, np.minimum(lower[:rows, :columns], known), rtol=1e-10, atol=4e-15
    )
    assert surface.errors[0, 0] == 1
    small = known[(known < 1e-5) & (known > 1e-10)]
    assert base == 1.5 or small.size


@given(stack=strategies.stacks())
def test_any_stack(stack):
    surface = lt.analysis.error_surface(stack)
    layers, m, n = stack.shape
    norm = float(lt.norm(stack))
    assert (surface.lower <= surface.errors).all()
    assert (np.diff(surface.errors, axis=0) <= 0).all()
    assert (np.diff(surface.errors, axis=1) <= 0).all()
    assert surface.errors[0, 0] == pytest.approx(1.0 if norm else 0.0, rel=1e-14)
    assert surface.errors[-1, -1] < 1e-14
    front = surface.front()
    assert front[0].parameters == 0
    pairs = list(itertools.pairwise(front))
    assert all(a.parameters < b.parameters for a, b in pairs)
    assert all(a.relative_error > b.relative_error for a, b in pairs)
    for point in front:
        assert point.parameters == m * point.r1 + n * point.r2 + layers * point.r1 * point.r2


@given(seed=st.integers(0, 99), error=st.floats(0.01, 0.9))
def test_the_front_holds_every_answer(seed, error):
    rng = np.random.default_rng(seed)
    stack = lt.LoRAStack(rng.standard_normal((9, 6)), rng.standard_normal((6, 7)), (2, 3, 1))
    surface = lt.analysis.error_surface(stack)
    cheapest = surface.cheapest(error)
    assert cheapest == next(p for p in surface.front() if p.relative_error <= error)
    best = surface.best(cheapest.parameters)
    assert best.relative_error <= cheapest.relative_error
    found = lt.hosvd(stack, (cheapest.r1, cheapest.r2))
    assert found.certificate.relative_error == pytest.approx(cheapest.relative_error, rel=1e-10)
    assert lt.hooi(stack, (best.r1, best.r2)).certificate.relative_error >= best.lower_bound - 1e-12


@pytest.mark.parametrize("name", ["distilgpt2-niket", "gpt2-cls-deepbio"])
def test_real_adapters(data, name):
    adapter = lt.load_adapter(data / name)
    group = min(
        lt.group_modules(adapter).values(), key=lambda g: g.stack.shape[0] * g.stack.shape[1]
    )
    two = lt.take_layers(group.stack, [0, 1])  # and so much of them as is dense in no time
    corner = lt.LoRAStack(two.up[:192], two.down[:, :256], two.ranks)
    stack = lt.astype(corner, "float64")
    surface = lt.analysis.error_surface(stack)
    dense = laws.dense_updates(stack)
    norm = np.linalg.norm(dense)
    (left, right) = unfoldings(dense)
    u, v = (np.linalg.svd(x, full_matrices=False)[0] for x in (left, right))
    rng = np.random.default_rng(0)
    for r1, r2 in rng.integers(0, np.array(surface.errors.shape), (12, 2)):
        kept = u[:, :r1] @ ((u[:, :r1].T @ dense @ v[:, :r2]) @ v[:, :r2].T)
        truth = np.linalg.norm(dense - kept) / norm
        assert surface.errors[r1, r2] == pytest.approx(truth, rel=1e-10, abs=1e-14)


@each_backend
@given(stack=strategies.lora_stacks())
def test_spectra_are_those_of_the_unfoldings(backend, stack):
    found = lt.analysis.mode_spectra(stack_on(stack, backend))
    dense = laws.dense_updates(stack)
    size = np.linalg.norm(dense)
    for values, unfolding in zip((found.left, found.right), unfoldings(dense), strict=True):
        wanted = np.linalg.svd(unfolding, compute_uv=False)
        count = min(len(values), len(wanted))
        assert np.allclose(values[:count], wanted[:count], rtol=1e-10, atol=1e-13 * size)
        assert np.allclose(values[count:], 0, atol=1e-13 * size)
    assert found.norm == pytest.approx(size, rel=1e-12)
    for values, matrix in zip(found.layers, dense, strict=True):
        wanted = np.linalg.svd(matrix, compute_uv=False)[: len(values)]
        assert np.allclose(values, wanted, rtol=1e-10, atol=1e-13 * size)


@pytest.mark.parametrize("seed", range(3))
def test_small_singular_values_keep_their_digits(seed):
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((size, 12)))[0] for size in (40, 30))
    sizes, mix = np.geomspace(1, 1.5e-5, 12), rng.standard_normal((12, 12))
    stack = lt.LoRAStack(u * sizes @ mix, np.linalg.solve(mix, v.T), (12,))
    found = lt.analysis.mode_spectra(stack)
    for values in (found.left, found.right):
        assert np.allclose(values, sizes, rtol=0, atol=2e-14)


def test_ranks_of_a_planted_stack():
    found = lt.analysis.mode_spectra(decaying(0, 10.0))
    assert found.numerical_ranks == (7, 7)
    assert all(1 <= rank < 2 for rank in found.stable_ranks)
    least = found.ranks_for(1e-3)
    surface = lt.analysis.error_surface(decaying(0, 10.0))
    for r1, r2 in itertools.product(range(8), range(8)):
        if surface.errors[r1, r2] <= 1e-3:
            assert r1 >= least[0]
            assert r2 >= least[1]
    zero = lt.analysis.mode_spectra(0.0 * decaying(0, 10.0))
    assert zero.stable_ranks == (0, 0)
    assert zero.numerical_ranks == (0, 0)
    assert zero.ranks_for(0.1) == (0, 0)


@given(m=st.integers(1, 99), n=st.integers(1, 99), rank=st.integers(1, 9), r=st.integers(1, 30))
def test_break_even_is_the_first_layer_that_pays(m, n, rank, r):
    def saves(layers):
        return m * r + n * (r + 1) + layers * r * (r + 1) < layers * rank * (m + n)

    found = lt.analysis.break_even_layers(m, n, rank, r, r + 1)
    if found is None:
        assert not saves(10**9)
    else:
        assert saves(found)
        assert found == 1 or not saves(found - 1)


def test_refusals():
    surface = lt.analysis.error_surface(decaying(0, 2.0))
    with pytest.raises(RankError, match=r"0 … 7 and 0 … 7; found \(8, 1\)"):
        surface.at(8, 1)
    with pytest.raises(RankError, match="no ranks lose as little"):
        surface.cheapest(-1.0)
    with pytest.raises(OptionError, match="rank must be at least 1; found 0"):
        lt.analysis.break_even_layers(3, 3, 0, 1)
    torch = pytest.importorskip("torch")
    with pytest.raises(DerivativeError, match="error_surface has no derivative"):
        lt.analysis.error_surface(lt.Dense(torch.ones(1, 2, 2, requires_grad=True)))
