"""Randomised and blocked routes: close to the exact one, with bounds that hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn._arrays import to_numpy
from lotr_tn.decompose import tucker as implementation
from lotr_tn.decompose.core_space import core_space
from lotr_tn.decompose.sketch import blocked_space, randomised_space, range_finder
from lotr_tn.errors import OptionError
from lotr_tn.testing import laws
from tests.conftest import BACKENDS, stack_on

ROUTES = ["randomised", "blocked"]
each_route = pytest.mark.parametrize("route", ROUTES)


def decaying(seed=0, shape=(12, 90, 70), rank=6, dtype="float64"):
    """Layers near common subspaces whose directions matter less and less."""
    rng = np.random.default_rng(seed)
    layers, m, n = shape
    size = min(m, n, 40)
    scale = 0.85 ** np.arange(size)
    u = np.linalg.qr(rng.standard_normal((m, size)))[0] * scale
    v = np.linalg.qr(rng.standard_normal((n, size)))[0] * scale
    up = u @ rng.standard_normal((size, layers * rank))
    down = rng.standard_normal((layers * rank, size)) @ v.T
    return lt.LoRAStack(up.astype(dtype), down.astype(dtype), (rank,) * layers)


@each_route
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decompose", [lt.hosvd, lt.st_hosvd, lt.hooi])
def test_as_good_as_exact_and_honest(backend, decompose, route):
    stack = stack_on(decaying(), backend)
    found = decompose(stack, (5, 7), method=route)
    exact = decompose(stack, (5, 7), method="exact")
    certificate = found.certificate
    assert certificate.method.startswith(f"{route} ")
    assert certificate.relative_error <= 1.01 * exact.certificate.relative_error
    truth = laws.dense_updates(stack)
    error = np.linalg.norm(truth - laws.dense_updates(found)) / np.linalg.norm(truth)
    assert certificate.relative_error == pytest.approx(error, rel=1e-10)
    assert certificate.lower_bound <= exact.certificate.relative_error
    assert certificate.lower_bound <= exact.certificate.lower_bound * (1 + 1e-9)
    assert certificate.upper_bound >= error


@each_route
@given(seed=st.integers(0, 99), r1=st.integers(1, 9), r2=st.integers(1, 9))
def test_bounds_bracket_on_any_stack(route, seed, r1, r2):
    rng = np.random.default_rng(seed)
    stack = lt.LoRAStack(rng.standard_normal((60, 36)), rng.standard_normal((36, 50)), (6,) * 6)
    found = lt.hooi(stack, (r1, r2), method=route).certificate
    best = lt.hooi(stack, (r1, r2), method="exact", tolerance=0, max_sweeps=20).certificate
    assert found.lower_bound <= best.relative_error * (1 + 1e-12)
    assert found.relative_error <= found.upper_bound


@each_route
@pytest.mark.parametrize("epsilon", [0.5, 0.1, 0.01, 1e-9])
def test_an_error_asked_for_is_met(route, epsilon):
    stack = decaying()
    found = lt.hooi(stack, lt.RelativeError(epsilon), method=route)
    assert found.certificate.relative_error <= epsilon
    exact = lt.hooi(stack, lt.RelativeError(epsilon), method="exact")
    assert lt.parameter_count(found) <= 1.1 * lt.parameter_count(exact)


def test_a_sketch_of_full_size_loses_nothing():
    stack = decaying(shape=(3, 40, 30), rank=4)
    whole = core_space(stack)
    for space in (
        blocked_space(stack, 12),
        randomised_space(stack, 12, power_iterations=0, seed=0),
    ):
        for side, other in ((space.left, whole.left), (space.right, whole.right)):
            assert np.allclose(side.sigma, other.sigma, rtol=1e-10)
        assert max(map(float, space.missed)) < 1e-13 * float(whole.norm)


def test_the_range_finder_is_within_its_expected_error():
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((n, 40)))[0] for n in (80, 60))
    s = 1.0 / np.arange(1, 41)
    matrix = (u * s) @ v.T
    xp = np
    r, k = 5, 12
    tail = float((s[r:] ** 2).sum())
    lost = {0: [], 2: []}
    for power, found in lost.items():
        for _ in range(40):
            start = matrix @ rng.standard_normal((60, k))
            q = range_finder(start, lambda q: matrix @ (matrix.T @ q), power, xp=xp)
            found.append(np.linalg.norm(matrix - q @ (q.T @ matrix)) ** 2)
    assert np.mean(lost[0]) <= (1 + r / (k - r - 1)) * tail
    assert np.mean(lost[2]) < np.mean(lost[0])
    assert np.mean(lost[2]) <= 1.1 * float((s[k:] ** 2).sum())


def test_the_same_seed_gives_the_same_bits_and_torch_agrees():
    one, two = (lt.hooi(decaying(), 5, method="randomised", seed=3) for _ in range(2))
    assert np.array_equal(one.core, two.core)
    other = lt.hooi(stack_on(decaying(), "torch"), 5, method="randomised", seed=3)
    assert np.allclose(to_numpy(other.core), one.core, atol=1e-9)
    assert not np.array_equal(one.core, lt.hooi(decaying(), 5, method="randomised", seed=4).core)


def test_auto_takes_a_sketch_only_of_large_core_spaces(monkeypatch):
    stack = decaying(rank=10)
    assert lt.hooi(stack, 5).certificate.method == "hooi"
    monkeypatch.setattr(implementation, "EXACT_UP_TO", 64)
    assert lt.hooi(stack, 2).certificate.method == "randomised hooi"
    assert lt.hooi(stack, 20).certificate.method == "hooi"
    met = lt.hooi(stack, lt.RelativeError(0.2))
    assert met.certificate.method == "randomised hooi"
    assert lt.hooi(stack, lt.RelativeError(1e-6)).certificate.method == "hooi"


def test_the_blocked_pass_holds_one_layer_beside_the_basis():
    """No float64 copy of all factors, nor R x R numbers: 48 layers of rank 16, R = 768."""
    import tracemalloc

    rng = np.random.default_rng(0)
    layers, m, n, rank = 48, 1500, 1000, 16
    up = rng.standard_normal((m, layers * rank), dtype=np.float32)
    down = rng.standard_normal((layers * rank, n), dtype=np.float32)
    stack = lt.LoRAStack(up, down, (rank,) * layers)
    blocked_space(stack, 8)
    tracemalloc.start()
    try:
        space = blocked_space(stack, 8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    basis = 8 * (m + n) * 8
    one_layer = 8 * (m + n) * (8 + rank)
    coordinates = 8 * 2 * 8 * layers * rank
    assert peak < 4 * (basis + one_layer + coordinates) + 2**22
    assert peak < (up.nbytes + down.nbytes) / 1.2
    assert space.left.basis.shape == (m, 8)


def test_refusals():
    with pytest.raises(OptionError, match="auto, exact, randomised or blocked; found 'fast'"):
        lt.hooi(decaying(), 3, method="fast")
