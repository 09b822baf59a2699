"""Weights of layers, and a metric on the inputs."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn._arrays import namespace_of, to_numpy
from lotr_tn.decompose.metric import alternate_in_metric
from lotr_tn.errors import FormatError, OptionError, RankError
from lotr_tn.testing import laws
from tests.conftest import BACKENDS, on_backend, stack_on

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def lora(seed=0, shape=(5, 14, 11), rank=3, dtype="float64"):
    rng = np.random.default_rng(seed)
    layers, m, n = shape
    up = rng.standard_normal((m, layers * rank)) * np.repeat(np.logspace(0, 2, layers), rank)
    down = rng.standard_normal((layers * rank, n))
    return lt.LoRAStack(up.astype(dtype), down.astype(dtype), (rank,) * layers)


def weighted_error(stack, found, weights):
    off = (laws.dense_updates(stack) - laws.dense_updates(found)) ** 2
    sizes = laws.dense_updates(stack) ** 2
    w = np.asarray(weights)
    return ((w * off.sum(axis=(1, 2))).sum() / (w * sizes.sum(axis=(1, 2))).sum()) ** 0.5


@each_backend
@pytest.mark.parametrize("method", [lt.hosvd, lt.st_hosvd, lt.hooi])
def test_weights_lower_the_weighted_error(backend, method):
    stack = stack_on(lora(), backend)
    weights = np.logspace(0, -4, 5)
    plain, weighed = method(stack, (4, 5)), method(stack, (4, 5), weights=weights)
    assert weighted_error(stack, weighed, weights) < 0.9 * weighted_error(stack, plain, weights)
    certificate = weighed.certificate
    truth = weighted_error(stack, weighed, weights)
    assert certificate.weighted_error == pytest.approx(truth, rel=1e-10)
    assert certificate.lower_bound <= truth <= certificate.upper_bound
    unweighted = np.linalg.norm(laws.dense_updates(stack) - laws.dense_updates(weighed))
    assert certificate.distance == pytest.approx(unweighted, rel=1e-10)


def test_unit_norm_counts_relative_errors_alike():
    stack = lora()
    found = lt.hooi(stack, (5, 5), weights="unit-norm").certificate
    assert found.weighted_error == pytest.approx(np.sqrt(np.mean(np.square(found.layer_errors))))
    met = lt.hooi(stack, lt.RelativeError(0.3), weights="unit-norm").certificate
    assert met.weighted_error <= 0.3
    one = lt.tucker1(stack, 4, weights="unit-norm").certificate
    assert one.lower_bound == pytest.approx(one.weighted_error, rel=1e-10)


def test_equal_weights_change_nothing():
    stack = lora()
    one, two = lt.hooi(stack, (4, 4)), lt.hooi(stack, (4, 4), weights=[7.0] * 5)
    assert np.allclose(one.core, two.core, atol=1e-9)


def test_zero_layers_weigh_nothing():
    stack = lora()
    stack.up[:, :3] = 0
    found = lt.hooi(stack, (4, 4), weights="unit-norm")
    assert np.isfinite(found.core).all()
    assert found.certificate.layer_errors[0] == 0
    zero = 0.0 * stack
    assert lt.hooi(zero, 2, weights="unit-norm").certificate.relative_error == 0


def jd_full(dense, rank, iterations, seed=0):
    """Joint diagonalisation as published: power steps on both sums, from random factors."""
    rng = np.random.default_rng(seed)
    units = dense / np.linalg.norm(dense, axis=(1, 2), keepdims=True)
    _, m, n = dense.shape
    u = np.linalg.qr(rng.standard_normal((m, rank)))[0]
    v = np.linalg.qr(rng.standard_normal((n, rank)))[0]
    for _ in range(iterations):
        seen = units @ v
        u = np.linalg.qr(sum(a @ (a.T @ u) for a in seen))[0]
        seen = np.swapaxes(units, 1, 2) @ u
        v = np.linalg.qr(sum(a @ (a.T @ v) for a in seen))[0]
    kept = u.T @ units @ v
    return ((units - u @ kept @ v.T) ** 2).sum()


def test_never_worse_than_joint_diagonalisation():
    """64 adapters of 256 x 192, rank 8, near a common subspace and far from one."""
    rng = np.random.default_rng(0)
    for shared in (0.0, 2.0):
        common_u, common_v = rng.standard_normal((256, 16)), rng.standard_normal((192, 16))
        up = rng.standard_normal((256, 512)) + shared * common_u @ rng.standard_normal((16, 512))
        down = (
            rng.standard_normal((512, 192)) + shared * rng.standard_normal((512, 16)) @ common_v.T
        )
        stack = lt.LoRAStack(up, down, (8,) * 64)
        dense = laws.dense_updates(stack)
        oracle = jd_full(dense, 16, 20)
        found = lt.hooi(stack, 16, weights="unit-norm").certificate
        assert 64 * found.weighted_error**2 <= oracle * (1 + 1e-3)


def metrics(seed=0, layers=5, n=11):
    rng = np.random.default_rng(seed)
    return {
        "diagonal": np.logspace(0, -5, n)[rng.permutation(n)],
        "factor": rng.standard_normal((n, 6)) * np.logspace(0, -2, 6),
        "diagonals": [np.logspace(0, -5, n)[rng.permutation(n)] for _ in range(layers)],
        "factors": [rng.standard_normal((n, 4 + i)) for i in range(layers)],
        "blind": [np.concatenate([np.zeros(8), np.ones(n - 8)]) for _ in range(layers)],
    }


def seen_by(metric, layers=5):
    """C_l^{1/2} or F_l for each layer, dense."""
    each = [metric] * layers if isinstance(metric, np.ndarray) else metric
    return [np.diag(np.sqrt(one)) if one.ndim == 1 else one for one in each]


def metric_error(stack, found, metric):
    pairs = zip(laws.dense_updates(stack), laws.dense_updates(found), seen_by(metric), strict=True)
    off = [(np.linalg.norm((a - b) @ f), np.linalg.norm(a @ f)) for a, b, f in pairs]
    return np.hypot.reduce([x for x, _ in off]) / np.hypot.reduce([y for _, y in off])


def moved(metric, backend):
    if isinstance(metric, list):
        return [on_backend(one, backend) for one in metric]
    return on_backend(metric, backend)


@each_backend
@pytest.mark.parametrize("kind", metrics())
def test_a_metric_lowers_the_error_that_the_inputs_see(backend, kind):
    stack, metric = lora(), metrics()[kind]
    found = lt.decompose.hooi_in_metric(stack_on(stack, backend), (4, 3), moved(metric, backend))
    plain = lt.hooi(stack, (4, 3))
    ours, theirs = metric_error(stack, found, metric), metric_error(stack, plain, metric)
    assert ours < (0.9 if kind != "factors" else 1.0) * theirs
    certificate = found.certificate
    assert certificate.relative_error == pytest.approx(ours, rel=1e-9)
    assert certificate.lower_bound <= ours * (1 + 1e-12)
    assert ours <= certificate.upper_bound
    distances = lt.decompose.metric_distances(
        stack_on(stack, backend), found, moved(metric, backend)
    )
    assert np.allclose(to_numpy(distances), to_numpy(certificate.distances), rtol=1e-8)


@given(seed=st.integers(0, 99))
def test_every_sweep_lowers_the_error(seed):
    stack = lora(seed)
    for kind in ("diagonals", "factors"):
        roots = [np.sqrt(f) if f.ndim == 1 else f for f in metrics(seed)[kind]]
        start = lt.hooi(stack, (4, 3)).v
        xp = namespace_of(x=stack.up)
        _, _, errors = alternate_in_metric(stack, roots, start, 4, 0.0, 30, xp=xp)
        assert len(errors) > 2
        assert all(late <= early for early, late in itertools.pairwise(errors))


def test_planted_anisotropy_is_found():
    """Inputs live in 3 of 40 directions: what they see survives at ranks that lose the rest."""
    rng = np.random.default_rng(0)
    stack = lora(1, shape=(6, 30, 40), rank=4)
    seen = np.linalg.qr(rng.standard_normal((40, 3)))[0]
    metric = np.concatenate([seen, 1e-3 * rng.standard_normal((40, 40))], axis=1)
    plain = metric_error6(stack, lt.hooi(stack, (12, 3)), metric)
    found = lt.decompose.hooi_in_metric(stack, (12, 3), metric)
    assert plain > 0.5
    assert metric_error6(stack, found, metric) < 0.3 * plain


def metric_error6(stack, found, metric):
    off = (laws.dense_updates(stack) - laws.dense_updates(found)) @ metric
    return np.linalg.norm(off) / np.linalg.norm(laws.dense_updates(stack) @ metric)


def test_weights_and_metric_together_and_narrow():
    stack = lora(dtype="float32")
    metric = metrics()["diagonals"]
    found = lt.decompose.hooi_in_metric(stack, (4, 3), metric, weights="unit-norm", dtype="float16")
    assert found.u.dtype == np.float16
    assert found.certificate.relative_error == pytest.approx(
        metric_error(stack, found, metric), rel=1e-6
    )
    assert found.certificate.weighted_error <= found.certificate.upper_bound
    assert lt.decompose.hooi_in_metric(stack, 0, metric).certificate.relative_error == 1


def test_refusals():
    stack = lora()
    with pytest.raises(RankError, match="fixed in a metric"):
        lt.decompose.hooi_in_metric(stack, lt.RelativeError(0.1), np.ones(11))
    with pytest.raises(FormatError, match=r"\(11,\) or a factor \(11, k\); found shape \(14,\)"):
        lt.decompose.hooi_in_metric(stack, 2, np.ones(14))
    with pytest.raises(FormatError, match="each of 5 layers"):
        lt.decompose.hooi_in_metric(stack, 2, [np.ones(11)])
    with pytest.raises(OptionError, match="metric of layer 1 must be finite"):
        lt.decompose.hooi_in_metric(stack, 2, [np.ones(11), -np.ones(11)] + [np.ones(11)] * 3)
    with pytest.raises(OptionError, match="each of 5 layers; found shape"):
        lt.hooi(stack, 2, weights=[1.0, 2.0])
    with pytest.raises(OptionError, match="\"unit-norm\"; found 'equal'"):
        lt.hooi(stack, 2, weights="equal")
    with pytest.raises(OptionError, match="not all 0"):
        lt.hooi(stack, 2, weights=[0.0] * 5)
