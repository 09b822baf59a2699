"""SciPy's solvers on updates that could never be dense."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh, lsmr, svds

import lotr_tn as lt
from lotr_tn.errors import FormatError
from lotr_tn.testing import laws
from tests.conftest import stack_on


def stack(dtype="float64"):
    rng = np.random.default_rng(0)
    shapes = (9, 3), (4, 3, 2), (7, 2)
    return lt.Tucker2(*(rng.standard_normal(shape).astype(dtype) for shape in shapes))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@given(seed=st.integers(0, 99))
def test_products_are_those_of_the_matrix(backend, seed):
    dense = laws.dense_updates(stack())
    rng = np.random.default_rng(seed)
    one = lt.as_linear_operator(stack_on(stack(), backend), 2)
    whole = lt.as_linear_operator(stack_on(stack(), backend))
    for operator, matrix in ((one, dense[2]), (whole, dense.reshape(36, 7))):
        assert operator.shape == matrix.shape
        x, y = rng.standard_normal((7, 3)), rng.standard_normal((matrix.shape[0], 3))
        assert np.allclose(operator @ x, matrix @ x)
        assert np.allclose(operator @ x[:, 0], matrix @ x[:, 0])
        assert np.allclose(operator.T @ y, matrix.T @ y)
        assert np.allclose(operator.rmatvec(y[:, 0]), matrix.T @ y[:, 0])


def test_solvers_work():
    dense = laws.dense_updates(stack())
    operator = lt.as_linear_operator(stack(), 0)
    found = svds(operator, k=2, return_singular_vectors=False)
    assert np.allclose(np.sort(found), np.linalg.svd(dense[0], compute_uv=False)[:2][::-1])
    whole = lt.as_linear_operator(stack())
    wanted = np.linalg.svd(dense.reshape(36, 7), compute_uv=False)[0]
    assert eigsh(whole.T @ whole, k=1, return_eigenvectors=False)[0] == pytest.approx(wanted**2)
    right = np.ones(9)
    assert np.allclose(
        operator @ lsmr(operator, right)[0], dense[0] @ np.linalg.pinv(dense[0]) @ right, atol=1e-5
    )


def test_half_precision_is_widened_once():
    operator = lt.as_linear_operator(stack("float16"), 1)
    assert operator.dtype == np.float32
    assert np.allclose(
        operator @ np.ones(7), laws.dense_updates(stack("float16"))[1].sum(1), rtol=1e-5
    )


def test_a_matrix_of_ten_thousand_million_numbers():
    """m = n = 100 000 in under 200 MB, factors included."""
    tracemalloc.start()
    try:
        rng = np.random.default_rng(0)
        up, down = rng.standard_normal((100_000, 8)), rng.standard_normal((8, 100_000))
        large = lt.LoRAStack(up, down, (4, 4))
        found = svds(lt.as_linear_operator(large, 1), k=3, return_singular_vectors=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200e6
    assert np.allclose(np.sort(found)[::-1], lt.layer_singular_values(large)[1][:3])


def test_refusals():
    with pytest.raises(FormatError, match="found 4"):
        lt.as_linear_operator(stack(), 4)
