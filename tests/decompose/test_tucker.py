"""HOSVD, ST-HOSVD and HOOI: laws, oracles, bounds and degenerate input."""

import warnings
from types import FunctionType

import numpy as np
import pytest
import tensorly as tl
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorly.decomposition import partial_tucker

import lotr_tn as lt
from lotr_tn._arrays import to_numpy
from lotr_tn.decompose import tucker as implementation
from lotr_tn.decompose.core_space import core_space
from lotr_tn.errors import OptionError, PrecisionWarning, RankError
from lotr_tn.testing import laws
from lotr_tn.testing.strategies import distinct_sizes, lora_stacks, ranks
from tests.conftest import BACKENDS, on_backend, stack_on
from tests.testing.budget import examples

METHODS = {"hosvd": lt.hosvd, "st-hosvd": lt.st_hosvd, "hooi": lt.hooi}
each_method = pytest.mark.parametrize("method", METHODS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)
LAWS = [
    laws.reported_error_is_true,
    laws.bounds_bracket_the_error,
    laws.factors_are_orthonormal,
    laws.scaling_scales_the_result,
    laws.layers_may_be_reordered,
]


@each_backend
@each_method
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_laws(backend, method, law):
    if law is laws.layers_may_be_reordered and method == "hooi":
        return  # sweeps may stop one apart; the error's own law is below

    @examples(backend)
    @given(stack=lora_stacks(), pair=ranks())
    def hold(stack, pair):
        law(METHODS[method], stack_on(stack, backend), pair)

    hold()


@each_method
@given(stack=lora_stacks(dtype="float32"), pair=ranks())
def test_laws_in_float32(method, stack, pair):
    for law in LAWS[:3]:
        law(METHODS[method], stack, pair)


@each_method
@given(stack=lora_stacks(), pair=ranks())
def test_more_rank_never_hurts(method, stack, pair):
    laws.larger_ranks_never_lose_more(METHODS[method], stack, pair) if method == "hosvd" else None
    laws.exact_at_full_rank(METHODS[method], stack)


@each_method
@given(stack=lora_stacks(degenerate=False), pair=ranks(), seed=st.integers(0, 99))
def test_gauge_invariance(method, stack, pair, seed):
    laws.gauge_invariance(METHODS[method], stack, pair, seed)


@given(stack=lora_stacks(), pair=ranks())
def test_methods_in_order_of_error(stack, pair):
    errors = [lt.layer_distances(stack, f(stack, pair)) for f in (lt.hooi, lt.st_hosvd, lt.hosvd)]
    hooi, st_hosvd, hosvd = (float(np.linalg.norm(e)) for e in errors)
    slack = 1e-12 * float(lt.norm(stack))
    assert hooi <= st_hosvd + slack
    assert st_hosvd <= hosvd + slack


def planted(seed, sizes, dtype="float64"):
    """A LoRA stack that is exactly Tucker-2 of ranks (r1, r2), and the ranks."""
    layers, m, n, r1, r2 = sizes
    rng = np.random.default_rng(seed)
    u, v = rng.standard_normal((m, r1)), rng.standard_normal((n, r2))
    each = min(r1, r2)
    up = [u @ rng.standard_normal((r1, each)) for _ in range(layers)]
    down = [rng.standard_normal((each, r2)) @ v.T for _ in range(layers)]
    stack = lt.LoRAStack(
        np.concatenate(up, axis=1).astype(dtype),
        np.concatenate(down).astype(dtype),
        (each,) * layers,
    )
    return stack, (r1, r2)


@each_method
@given(sizes=distinct_sizes(5), seed=st.integers(0, 99))
def test_planted_tensors_come_back(method, sizes, seed):
    layers, a, b, c, d = sizes
    (r1, m), (r2, n) = sorted((a, b)), sorted((c, d))
    stack, pair = planted(seed, (layers, m, n, r1, r2))
    result = METHODS[method](stack, pair)
    assert result.certificate.relative_error < 1e-12
    assert float(lt.distance(stack, result)) < 1e-12 * float(lt.norm(stack))


def dense_of(stack):
    return laws.dense_updates(stack)


def tensorly_start(stack, pair):
    """The ST-HOSVD of the dense tensor: U from its unfolding, V from the stack projected on U."""
    dense = dense_of(stack)
    _, m, n = dense.shape
    u = np.linalg.svd(dense.transpose(1, 0, 2).reshape(m, -1), full_matrices=False)[0][:, : pair[0]]
    projected = np.einsum("mr,lmn->nlr", u, dense).reshape(n, -1)
    v = np.linalg.svd(projected, full_matrices=False)[0][:, : pair[1]]
    return u, v


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@given(
    seed=st.integers(0, 999),
    sizes=distinct_sizes(3, largest=9),
    data=st.data(),
    sweeps=st.integers(1, 4),
)
def test_hooi_is_tensorlys_sweep_for_sweep(backend, seed, sizes, data, sweeps):
    layers, m, n = sizes
    rng = np.random.default_rng(seed)
    stack = lt.LoRAStack(
        rng.standard_normal((m, 2 * layers)), rng.standard_normal((2 * layers, n)), (2,) * layers
    )
    pair = data.draw(st.tuples(st.integers(1, m), st.integers(1, n)))
    pair = min(pair[0], 2 * layers, layers * pair[1]), min(pair[1], 2 * layers, layers * pair[0])
    ours = lt.hooi(stack_on(stack, backend), pair, tolerance=0, max_sweeps=sweeps)
    dense = dense_of(stack)
    u, v = tensorly_start(stack, pair)
    start = np.einsum("mp,lmn,nq->lpq", u, dense, v)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (core, factors), _ = partial_tucker(
            dense, list(ours.ranks), modes=[1, 2], init=(start, [u, v]), n_iter_max=sweeps, tol=0
        )
    theirs = tl.tucker_to_tensor((core, [np.eye(layers), *factors]))
    wanted = np.linalg.norm(dense - theirs) / np.linalg.norm(dense)
    assert ours.certificate.sweeps == sweeps
    assert abs(ours.certificate.relative_error - wanted) < 1e-8


@given(stack=lora_stacks(degenerate=False), pair=ranks(largest=3))
def test_dense_input_gives_the_same(stack, pair):
    dense = lt.Dense(dense_of(stack))
    for name, method in METHODS.items():
        one, two = method(stack, pair).certificate, method(dense, pair).certificate
        assert abs(one.relative_error - two.relative_error) < (1e-10 if name != "hooi" else 1e-3)


@each_method
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 1e-6, 0.0])
@given(stack=lora_stacks())
def test_relative_error_is_met(method, share, stack):
    result = METHODS[method](stack, lt.RelativeError(share))
    assert result.certificate.relative_error <= max(share, 1e-13)


@given(stack=lora_stacks(degenerate=False), share=st.floats(0.05, 0.9))
def test_hosvd_takes_the_cheapest_pair_that_meets_the_error(stack, share):
    """Against brute force over all pairs, each measured densely."""
    found = lt.hosvd(stack, lt.RelativeError(share))
    cost = lt.parameter_count(found)
    space = core_space(stack)
    for r1 in range(space.left.sigma.shape[0] + 1):
        for r2 in range(space.right.sigma.shape[0] + 1):
            other = lt.hosvd(stack, (r1, r2))
            if lt.parameter_count(other) < cost:
                error = np.linalg.norm(dense_of(stack) - dense_of(other)) / np.linalg.norm(
                    dense_of(stack)
                )
                assert error > share * (1 - 1e-9)


@given(stack=lora_stacks(degenerate=False), share=st.floats(0.05, 0.9))
def test_hooi_never_costs_more_than_hosvd(stack, share):
    rule = lt.RelativeError(share)
    assert lt.parameter_count(lt.hooi(stack, rule)) <= lt.parameter_count(lt.hosvd(stack, rule))


def test_hooi_lowers_ranks_where_sweeps_gain():
    """A flat random stack: sweeps gain several percent, enough for a smaller pair of ranks."""
    rng = np.random.default_rng(0)
    stack = lt.LoRAStack(rng.standard_normal((40, 48)), rng.standard_normal((48, 30)), (4,) * 12)
    rule = lt.RelativeError(0.6)
    assert lt.parameter_count(lt.hooi(stack, rule)) < lt.parameter_count(lt.hosvd(stack, rule))
    assert lt.hooi(stack, rule).certificate.relative_error <= 0.6


@given(stack=lora_stacks(), share=st.floats(0.5, 1.0))
def test_energy_is_kept(stack, share):
    result = lt.hooi(stack, lt.Energy(share))
    assert 1 - result.certificate.relative_error**2 >= share - 1e-12


@each_method
def test_zero_updates(method):
    stack = lt.LoRAStack(np.zeros((5, 3)), np.ones((3, 4)), (1, 2))
    result = METHODS[method](stack, lt.RelativeError(0.1))
    assert result.ranks == (0, 0)
    assert result.certificate.relative_error == 0
    assert dense_of(result).shape == (2, 5, 4)
    assert METHODS[method](stack, (2, 2)).certificate.relative_error == 0


@each_method
@pytest.mark.parametrize("pair", [(0, 0), (0, 2), (2, 0), (100, 100), (1, 100)])
def test_ranks_at_both_ends(method, pair):
    rng = np.random.default_rng(0)
    stack = lt.LoRAStack(rng.standard_normal((5, 6)), rng.standard_normal((6, 4)), (1, 2, 3))
    result = METHODS[method](stack, pair)
    assert result.ranks[0] <= min(pair[0], 5)
    assert result.ranks[1] <= min(pair[1], 4)
    laws.reported_error_is_true(METHODS[method], stack, pair)


@each_method
def test_one_layer_and_rank_zero_layers(method):
    rng = np.random.default_rng(0)
    one = lt.LoRAStack(rng.standard_normal((7, 2)), rng.standard_normal((2, 5)), (2,))
    assert METHODS[method](one, (2, 2)).certificate.relative_error < 1e-14
    none = lt.LoRAStack(np.zeros((7, 0)), np.zeros((0, 5)), (0, 0))
    assert METHODS[method](none, lt.RelativeError(0.1)).ranks == (0, 0)


@each_method
@pytest.mark.parametrize("pair", [(2, 2), (3, 1)])
def test_repeated_singular_values(method, pair):
    eye = np.eye(6)[:, :4]
    stack = lt.LoRAStack(np.concatenate([eye, eye], axis=1), np.concatenate([eye.T, eye.T]), (4, 4))
    laws.reported_error_is_true(METHODS[method], stack, pair)
    laws.bounds_bracket_the_error(METHODS[method], stack, pair)


@each_method
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_storage_dtype_is_inside_the_measured_error(method, dtype):
    stack, pair = planted(0, (6, 30, 25, 3, 4))
    result = METHODS[method](stack, pair, dtype=dtype)
    assert result.u.dtype.name == dtype
    truth = dense_of(stack)
    wanted = np.linalg.norm(truth - dense_of(result)) / np.linalg.norm(truth)
    assert np.isclose(result.certificate.relative_error, wanted, rtol=1e-9, atol=1e-13)
    assert result.certificate.upper_bound >= wanted


def test_rounding_is_taken_out_of_the_error_asked_for():
    rng = np.random.default_rng(0)
    stack = lt.LoRAStack(rng.standard_normal((60, 40)), rng.standard_normal((40, 50)), (4,) * 10)
    for share in (0.3, 0.1, 0.02):
        result = lt.hooi(stack, lt.RelativeError(share), dtype="bfloat16")
        assert result.certificate.relative_error <= share


def test_a_dtype_too_coarse_for_the_error_is_said():
    stack, _ = planted(0, (6, 30, 25, 3, 4))
    with pytest.warns(PrecisionWarning, match="bfloat16 leaves"):
        lt.hosvd(stack, lt.RelativeError(1e-6), dtype="bfloat16")


def test_refusals():
    stack, _ = planted(0, (6, 30, 25, 3, 4))
    with pytest.raises(OptionError, match="float8"):
        lt.hosvd(stack, 2, dtype="float8")
    with pytest.raises(RankError, match="ranks must be"):
        lt.hosvd(stack, "2")  # pyright: ignore


@each_method
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_backends_agree(method, dtype):
    rng = np.random.default_rng(3)
    up, down = (
        rng.standard_normal((50, 12)).astype(dtype),
        rng.standard_normal((12, 40)).astype(dtype),
    )
    results = [
        METHODS[method](lt.LoRAStack(on_backend(up, b), on_backend(down, b), (2, 3, 7)), (5, 4))
        for b in BACKENDS
    ]
    first = results[0]
    tolerance = 1e-11 if dtype == "float64" else 1e-6
    for other in results[1:]:
        for name in ("u", "core", "v"):
            ours, theirs = to_numpy(getattr(first, name)), to_numpy(getattr(other, name))
            assert theirs.dtype == ours.dtype
            assert np.abs(ours - theirs).max() < tolerance * np.abs(ours).max()
        gap = abs(first.certificate.relative_error - other.certificate.relative_error)
        assert gap < tolerance


def test_twice_the_same_is_bit_for_bit_the_same():
    stack, _ = planted(0, (6, 30, 25, 3, 4), "float32")
    one, two = lt.hooi(stack, (2, 2)), lt.hooi(stack, (2, 2))
    assert all(np.array_equal(getattr(one, k), getattr(two, k)) for k in ("u", "core", "v"))


def test_signs_are_fixed():
    stack, pair = planted(0, (6, 30, 25, 3, 4))
    u = lt.hosvd(stack, pair).u
    assert (u.max(axis=0) >= -u.min(axis=0)).all()


def test_read_only_input_is_left_alone():
    stack, pair = planted(0, (6, 30, 25, 3, 4))
    before = stack.up.copy()
    lt.hooi(stack, pair)
    assert np.array_equal(before, stack.up)


def test_torch_stays_torch():
    stack, pair = planted(0, (6, 30, 25, 3, 4), "float32")
    result = lt.hooi(stack_on(stack, "torch"), pair)
    assert all(isinstance(x, torch.Tensor) for x in (result.u, result.core, result.v))


def test_float32_input_is_refined_in_float64():
    """1e-7 data error, and no more: the Gram route loses nothing beside it."""
    stack, pair = planted(1, (8, 200, 150, 5, 6), "float32")
    for method in METHODS.values():
        assert method(stack, pair).certificate.relative_error < 3e-7


def test_methods_are_all_tried():
    assert set(METHODS) == {"hosvd", "st-hosvd", "hooi"}
    own = [f for f in vars(implementation).values() if isinstance(f, FunctionType)]
    public = {f for f in own if f.__module__ == implementation.__name__ and f.__name__[0] != "_"}
    assert set(METHODS.values()) == public
