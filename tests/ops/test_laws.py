"""Every operation against plain dense matrices, on every format and backend."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn.errors import BackendError, FormatError, PerformanceWarning
from lotr_tn.testing import laws
from lotr_tn.testing.strategies import lora_stacks, tucker_stacks
from tests.conftest import BACKENDS, on_backend, stack_on

any_stack = st.one_of(lora_stacks(), tucker_stacks())
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def sibling(stack, seed, closeness=1.0):
    """A stack of the same shape: close to the first, in a form of its own."""
    rng = np.random.default_rng(seed)
    layers, m, n = stack.shape
    dense = laws.dense_updates(stack)
    size = np.abs(dense).max() * closeness
    form = seed % 3
    if form == 0:
        return lt.Dense(dense + size * rng.standard_normal(dense.shape))
    if form == 1:
        core = dense + size * rng.standard_normal(dense.shape)
        return lt.Tucker2(np.eye(m), core, np.eye(n))
    up = np.concatenate(list(dense + size * rng.standard_normal(dense.shape)), axis=1)
    return lt.LoRAStack(up, np.concatenate([np.eye(n)] * layers, axis=0), (n,) * layers)


@each_backend
@given(stack=any_stack)
def test_norm(backend, stack):
    laws.norm_is_the_root_of_squares(lt.norm, stack_on(stack, backend))


@each_backend
@given(stack=any_stack, seed=st.integers(0, 99))
def test_inner(backend, stack, seed):
    other = stack_on(sibling(stack, seed), backend)
    laws.inner_is_the_sum_of_products(lt.inner, stack_on(stack, backend), other)


@each_backend
@given(stack=any_stack, seed=st.integers(0, 99), exponent=st.integers(-11, 0))
def test_distance(backend, stack, seed, exponent):
    a, b = stack_on(stack, backend), stack_on(sibling(stack, seed, 10.0**exponent), backend)
    laws.distance_is_the_norm_of_the_difference(lt.distance, a, b)
    forth, back = float(lt.distance(a, b)), float(lt.distance(b, a))
    assert np.isclose(forth, back, rtol=1e-6, atol=1e-13 * float(lt.norm(a)))


@each_backend
@given(stack=any_stack, seed=st.integers(0, 99))
def test_subtract(backend, stack, seed):
    a, b = stack_on(stack, backend), stack_on(sibling(stack, seed), backend)
    laws.difference_is_exact(lt.subtract, a, b)
    laws.difference_is_exact(lt.subtract, b, a)


@each_backend
@given(stack=any_stack, seed=st.integers(0, 99))
def test_apply(backend, stack, seed):
    x = np.random.default_rng(seed).standard_normal((3, 2, stack.shape[2]))
    moved = stack_on(stack, backend)
    laws.apply_is_the_matrix_product(lt.apply, moved, on_backend(x, backend))
    one = lt.apply(moved, on_backend(x, backend), layer=-1)
    assert np.allclose(np.asarray(one), x @ laws.dense_updates(stack)[-1].T, rtol=1e-12)


@each_backend
@given(stack=any_stack)
def test_to_dense_and_take_layers(backend, stack):
    moved, truth = stack_on(stack, backend), laws.dense_updates(stack)
    size = np.abs(truth).max(initial=1e-300)
    assert np.abs(np.asarray(lt.to_dense(moved)) - truth).max() <= 1e-13 * size * 100
    chosen = [stack.shape[0] - 1, 0, -1]
    part = lt.take_layers(moved, chosen)
    assert type(part) is type(stack)
    assert np.array_equal(laws.dense_updates(part), truth[chosen])


@given(a=any_stack, seed=st.integers(0, 99))
def test_cosine_is_scale_free_and_bounded(a, seed):
    b = sibling(a, seed)
    truth = laws.dense_updates(a).ravel(), laws.dense_updates(b).ravel()
    sizes = [np.linalg.norm(x) for x in truth]
    wanted = truth[0] @ truth[1] / (sizes[0] * sizes[1]) if all(sizes) else 0.0
    assert np.isclose(float(lt.cosine(a, b)), wanted, atol=1e-12)
    assert -1 <= float(lt.cosine(a, a)) <= 1


def test_distance_does_not_cancel_in_float32():
    """Cores apart by 1e-3 (style of the classic trap): the Gram formula gives 0 here."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((k, 4)))[0].astype(np.float32) for k in (50, 40))
    core = rng.standard_normal((3, 4, 4)).astype(np.float32)
    a = lt.Tucker2(u, core, v)
    b = lt.Tucker2(u, (core * np.float32(1 + 1e-6)), v)
    laws.distance_is_the_norm_of_the_difference(lt.distance, a, b)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_narrow_dtypes_are_measured_in_float64(dtype):
    rng = np.random.default_rng(0)
    a = lt.LoRAStack(
        rng.standard_normal((30, 6)).astype(dtype),
        rng.standard_normal((6, 20)).astype(dtype),
        (2, 4),
    )
    assert np.isclose(float(lt.norm(a)), np.linalg.norm(laws.dense_updates(a)), rtol=1e-9)
    assert lt.apply(a, np.ones((1, 20), dtype)).dtype == dtype
    assert lt.to_dense(a).dtype == dtype


@pytest.mark.parametrize(
    ("count", "stack"),
    [
        (7 * (5 + 4), lt.LoRAStack(np.ones((5, 7)), np.ones((7, 4)), (3, 4))),
        (
            5 * 2 + 4 * 3 + 6 * 2 * 3,
            lt.Tucker2(np.ones((5, 2)), np.ones((6, 2, 3)), np.ones((4, 3))),
        ),
        (2 * 3 * 4, lt.Dense(np.ones((2, 3, 4)))),
    ],
)
def test_parameter_count(count, stack):
    assert lt.parameter_count(stack) == count


@pytest.mark.parametrize(
    ("rank", "count"), [(1, 1560), (2, 3168), (4, 6528), (8, 13824), (16, 30720), (32, 73728)]
)
def test_published_counts_of_roberta_base(rank, count):
    u, core = np.ones((768, rank)), np.ones((24, rank, rank))
    assert lt.parameter_count(lt.Tucker2(u, core, u)) == count


def test_refusals():
    a = lt.Dense(np.ones((2, 3, 4)))
    with pytest.raises(FormatError, match=r"\(2, 3, 4\) and \(2, 4, 3\)"):
        lt.distance(a, lt.Dense(np.ones((2, 4, 3))))
    with pytest.raises(BackendError, match="one dtype"):
        lt.inner(a, lt.Dense(np.ones((2, 3, 4), np.float32)))
    with pytest.raises(FormatError, match="n = 4"):
        lt.apply(a, np.ones((5, 3)))
    with pytest.raises(FormatError, match=r"0 … 1; found 2"):
        lt.apply(a, np.ones((5, 4)), layer=2)
    with pytest.raises(FormatError, match="at least one layer"):
        lt.take_layers(a, [])
    with pytest.raises(FormatError, match="found -3"):
        lt.take_layers(a, [-3])


def test_to_dense_warns_before_it_is_huge(monkeypatch):
    monkeypatch.setattr("lotr_tn.ops.dense.WARN_ABOVE_ENTRIES", 10)
    with pytest.warns(PerformanceWarning, match="24 numbers"):
        lt.to_dense(lt.Dense(np.ones((2, 3, 4))))
