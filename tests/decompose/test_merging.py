"""Merging against dense loops in float64, and against PEFT's own functions on the same cores."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils

import lotr_tn as lt
from lotr_tn.decompose.merging import slerp_coefficients
from lotr_tn.ops.arrays import first_array
from tests.conftest import stack_on
from tests.tripwire import LargestTensor

METHODS = ("linear", "ties", "dare", "dare-ties")
FORMATS = ("lora", "tucker2", "low-rank", "tucker1-in", "tucker1-out", "dense")


def made(form, shape=(3, 11, 8), ranks=(2, 4, 1), seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    layers, m, n = shape
    total = sum(ranks)

    def draw(*sizes):
        return rng.standard_normal(sizes).astype(dtype)

    match form:
        case "lora":
            return lt.LoRAStack(draw(m, total), draw(total, n), ranks)
        case "tucker2":
            return lt.Tucker2(draw(m, 5), draw(layers, 5, 6), draw(n, 6))
        case "low-rank":
            return lt.LowRankTucker2(draw(m, 5), draw(5, total), draw(total, 6), draw(n, 6), ranks)
        case "tucker1-in":
            return lt.Tucker1(draw(n, 3), draw(layers, m, 3), "in")
        case "tucker1-out":
            return lt.Tucker1(draw(m, 4), draw(layers, n, 4), "out")
        case _:
            return lt.Dense(draw(layers, m, n))


def layers_of(stack):
    """(L, m, n) by plain loops, in float64."""
    w = [np.asarray(x, dtype=np.float64) for x in lt.to_dense(lt.astype(stack, "float64"))]
    return np.stack(w)


def weighted(stack, weights):
    return np.asarray(weights, dtype=np.float64)[:, None, None] * layers_of(stack)


def one(stack):
    assert stack.shape[0] == 1
    return layers_of(stack)[0]


def close(found, wanted, tolerance=1e-12):
    return np.linalg.norm(found - wanted) <= tolerance * np.linalg.norm(wanted)


def basis_of(dense, rank):
    """Leading left singular vectors of dense layers (L, m, n) side by side."""
    u, s, _ = np.linalg.svd(np.concatenate(list(dense), axis=1), full_matrices=False)
    assert s[rank - 1] > 1e-10 * s[0]
    return u[:, :rank]


def in_basis(dense, ranks):
    """The HOSVD of dense layers, apart from the package."""
    u, v = basis_of(dense, ranks[0]), basis_of(dense.transpose(0, 2, 1), ranks[1])
    return u, u.T @ dense @ v, v


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("weights", [(0.7, -1.3, 2.0), (1, -1, 0), (0, 0.5, 0), (0, 0, 0)])
def test_linear_is_the_dense_sum(form, weights):
    stack = made(form)
    found = lt.merge(stack, weights)
    assert type(found) is type(stack)
    assert found.shape == (1, 11, 8)
    wanted = weighted(stack, weights).sum(axis=0)
    if np.any(weights):
        assert close(one(found), wanted)
    else:
        assert not one(found).any()


@settings(max_examples=25)
@given(st.data())
def test_linear_is_the_dense_sum_for_any_shape(data):
    layers = data.draw(st.integers(1, 4))
    ranks = tuple(data.draw(st.lists(st.integers(0, 5), min_size=layers, max_size=layers)))
    m, n = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    weights = data.draw(
        st.lists(st.floats(-4, 4, allow_subnormal=False), min_size=layers, max_size=layers)
    )
    stack = made("lora", (layers, m, n), ranks, seed=data.draw(st.integers(0, 99)))
    found = lt.merge(stack, weights)
    terms = weighted(stack, weights)
    size = sum(np.linalg.norm(term) for term in terms)
    assert np.linalg.norm(one(found) - terms.sum(axis=0)) <= 1e-13 * size
    total = sum(r for r, w in zip(ranks, weights, strict=True) if w)
    assert found.ranks[0] <= min(total, m, n)


def test_ranks_are_those_of_the_sum():
    a = made("lora", ranks=(3, 2, 1))
    same = lt.concat_layers([lt.take_layers(a, [0]), lt.take_layers(a, [0])])
    assert lt.merge(same, (0.3, 0.6)).ranks == (3,)
    assert lt.merge(same, (1, -1)).ranks == (0,)
    assert lt.merge(a, (1, 1, 1)).ranks == (6,)
    assert lt.merge(made("lora", ranks=(6, 5, 7)), (1, 1, 1)).ranks == (8,), "never above m or n"
    zero = lt.scale(a, 0.0)
    assert lt.merge(zero, (1, 2, 3)).ranks == (0,)
    assert lt.merge(zero, (1, 2, 3), method="ties").ranks == (0, 0)


def test_what_cancels_leaves_the_rest():
    """(common + own) - common in float64 is own, in its own rank."""
    common, own = made("lora", (1, 11, 8), (4,)), made("lora", (1, 11, 8), (2,), seed=1)
    found = lt.merge(lt.concat_layers([lt.add(common, own), common]), (1, -1))
    assert found.ranks == (2,)
    assert close(one(found), one(own), 1e-13)


def test_shared_factors_are_returned_as_they_are():
    stack = made("tucker2")
    found = lt.merge(stack, (1, 2, 3))
    assert found.u is stack.u
    assert found.v is stack.v
    assert lt.merge(made("tucker1-in"), (1, 2, 3)).rank == 3
    assert lt.merge(made("low-rank"), (1, 2, 3)).shared_ranks == (5, 6)
    assert lt.merge(made("low-rank"), (1, 2, 3)).ranks == (5,)


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.5, 0.2, 0.3), (1, -1, 0.4)])
@pytest.mark.parametrize("density", [1.0, 0.63, 0.2])
@pytest.mark.parametrize("form", FORMATS)
def test_ties_is_pefts_on_the_same_dense_cores(form, density, weights):
    stack = made(form)
    found = lt.merge(stack, weights, method="ties", density=density)
    u, cores, v = in_basis(weighted(stack, weights), found.ranks)
    wanted = peft_merge("ties", cores, density)
    assert close(one(found), u @ wanted @ v.T, 1e-9)


def test_equal_weights_are_the_factor_lambda():
    """With one weight for all, weighing before or after the election is the same."""
    stack = made("lora")
    u, cores, v = in_basis(layers_of(stack), (7, 7))
    wanted = peft_merge("ties", cores, 0.4, weights=0.3)
    found = one(lt.merge(stack, (0.3,) * 3, method="ties", density=0.4))
    assert close(found, u @ wanted @ v.T, 1e-9)
    each = one(lt.merge(stack, (1, 1, 1), method="ties", density=0.4))
    assert close(found, 0.3 * each, 1e-12)


def peft_merge(method, cores, density, weights=1.0):
    """PEFT's own function on a list of dense cores."""
    tensors = [torch.from_numpy(core) for core in cores]
    given = torch.full((len(tensors),), weights, dtype=torch.float64)
    if density == 1.0:  # PEFT warns of a density that prunes nothing
        with pytest.warns(UserWarning, match="no pruning"):
            return getattr(merge_utils, method)(tensors, given, density).numpy()
    return getattr(merge_utils, method)(tensors, given, density).numpy()


@pytest.mark.parametrize("density", [0.8, 0.3])
@pytest.mark.parametrize(
    ("method", "theirs"), [("dare", "dare_linear"), ("dare-ties", "dare_ties")]
)
@pytest.mark.parametrize("form", ["lora", "tucker2"])
def test_dare_is_pefts_with_the_same_draw(form, method, theirs, density, monkeypatch):
    stack, weights = made(form), (0.5, -1, 0.7)
    found = lt.merge(stack, weights, method=method, density=density, seed=5)
    u, v = found.u, found.v
    cores = u.T @ weighted(stack, weights) @ v
    drawn = np.random.default_rng([5]).random(cores.shape) < density
    masks = iter(drawn)
    monkeypatch.setattr(torch, "bernoulli", lambda p: torch.from_numpy(1.0 * next(masks)))
    assert close(one(found), u @ peft_merge(theirs, cores, density) @ v.T)


def test_dare_is_linear_on_average():
    stack, weights = made("lora"), (0.5, -1, 0.7)
    wanted = weighted(stack, weights).sum(axis=0)
    seeds = 400
    draws = [lt.merge(stack, weights, method="dare", density=0.5, seed=s) for s in range(seeds)]
    mean = sum(one(draw) for draw in draws) / seeds
    spread = np.linalg.norm(weighted(stack, weights))  # of one draw at density ½
    assert np.linalg.norm(mean - wanted) < 2 * spread / seeds**0.5
    assert np.linalg.norm(one(draws[0]) - wanted) > 0.5 * spread


def known(*cores, seed=0):
    """Cores whose HOSVD basis is known: diagonal, with descending sums of squares."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((size, 2)))[0] for size in (7, 5))
    return lt.Tucker2(u, np.array(cores, dtype=np.float64), v)


@pytest.mark.parametrize(
    ("first", "second", "weights", "density", "wanted"),
    [
        ((5, 1), (3, -2), (1, 1), 1.0, (4, -2)),  # mean of both; the larger side of a conflict
        ((5, 1), (3, -2), (1, 1), 0.5, (4, -2)),  # two of four entries are zero already
        ((5, 1), (3, -2), (1, 1), 0.25, (4, 0)),  # one each
        ((5, 1), (3, -2), (1, -1), 1.0, (5, 1.5)),  # signs are those of what is weighted
        ((5, 1), (3, -2), (2, 2), 1.0, (8, -4)),  # lambda = 2
        ((5, 1), (3, -2), (1, 0.25), 1.0, (2.875, 1)),  # weights decide the election
        ((5, 1), (0, -2), (1, 1), 1.0, (5, -2)),  # a zero has no sign and is not counted
        ((5, 2), (-5, 1), (1, 1), 1.0, (0, 1.5)),  # what cancels elects no sign
        ((5, 1), (3, -2), (1, 1), 1e-3, (4, 0)),  # at least one entry stays
    ],
)
def test_ties_by_hand(first, second, weights, density, wanted):
    stack = known(np.diag(first), np.diag(second))
    found = lt.merge(stack, weights, method="ties", density=density)
    assert np.allclose(one(found), stack.u @ np.diag(wanted) @ stack.v.T, atol=1e-12)


def test_disjoint_updates_are_left_alone_by_ties():
    """Rounding where the other update is zero must not be counted as an agreeing entry."""
    rng = np.random.default_rng(3)
    q, p = (
        np.linalg.qr(rng.standard_normal((30, 6)))[0],
        np.linalg.qr(rng.standard_normal((20, 6)))[0],
    )
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-6)):
        up = np.concatenate([q[:, :2] @ rng.standard_normal((2, 2)), 3 * q[:, 2:5]], axis=1)
        down = np.concatenate([p[:, :2].T, rng.standard_normal((3, 3)) @ p[:, 2:5].T])
        stack = lt.LoRAStack(up.astype(dtype), down.astype(dtype), (2, 3))
        found = lt.merge(stack, (1, 1), method="ties")
        assert close(one(found), layers_of(stack).sum(axis=0), tolerance)


def regauged(stack, seed=9):
    """The same updates in other factors."""
    rng = np.random.default_rng(seed)

    def pair(k):
        a = rng.standard_normal((k, k)) + 2 * np.eye(k)
        return a, np.linalg.inv(a)

    match stack:
        case lt.LoRAStack():
            up, down = stack.up.copy(), stack.down.copy()
            for part, rank in zip(stack.slices, stack.ranks, strict=True):
                a, b = pair(rank)
                up[:, part], down[part] = up[:, part] @ a, b @ down[part]
            return lt.LoRAStack(up, down, stack.ranks)
        case _:
            (a, b), (c, d) = pair(stack.ranks[0]), pair(stack.ranks[1])
            return lt.Tucker2(stack.u @ a, b @ stack.core @ d.T, stack.v @ c)


@pytest.mark.parametrize("form", ["lora", "tucker2"])
def test_opposite_updates_elect_no_sign(form):
    """Rounding of what cancels must not decide an election."""
    stack = lt.take_layers(made(form), [1])
    both = lt.concat_layers([stack, lt.scale(regauged(stack), -1.0)])
    size = float(lt.norm(stack))
    assert float(lt.norm(lt.merge(both, (1, 1), method="ties"))) < 1e-9 * size
    assert float(lt.norm(lt.merge(both, (1, 0.99), method="ties"))) > 0.9 * size


@pytest.mark.parametrize("method", [*METHODS, "slerp"])
@pytest.mark.parametrize("form", ["lora", "tucker2"])
@pytest.mark.parametrize("seed", range(3))
def test_no_method_knows_the_gauge(form, method, seed):
    layers = 2 if method == "slerp" else 3
    stack = lt.take_layers(made(form, seed=seed), range(layers))
    weights = (0.6, 0.3) if method == "slerp" else (1, -0.4, 0.7)
    options = {"method": method, "density": 0.37 if method != "linear" else 1.0, "seed": 4}
    wanted = one(lt.merge(stack, weights, **options))
    assert np.linalg.norm(wanted) > 0.1
    assert close(one(lt.merge(regauged(stack), weights, **options)), wanted, 1e-9)
    for to in (lt.Tucker2, lt.LoRAStack, lt.LowRankTucker2, lt.Dense):
        assert close(one(lt.merge(lt.convert(stack, to), weights, **options)), wanted, 1e-9)


@pytest.mark.parametrize("method", [*METHODS, "slerp"])
def test_only_the_weighted_updates_count(method):
    stack = lt.take_layers(made("lora"), [0, 1])
    options = {"method": method, "density": 0.5, "seed": 2}
    weights = (0.8, 0.3)
    wanted = one(lt.merge(stack, weights, **options))
    if method != "slerp":  # there the weights say where on the way, not how large
        scaled = lt.scale(stack, weights)
        assert close(one(lt.merge(scaled, (1, 1), **options)), wanted, 1e-9)
        more = lt.concat_layers([made("lora", (1, 11, 8), (3,), seed=8), stack])
        assert close(one(lt.merge(more, (0, *weights), **options)), wanted, 1e-9)
    else:
        assert close(one(lt.merge(stack, (1.6, 0.6), **options)), wanted, 1e-12)


@pytest.mark.parametrize("method", [*METHODS, "slerp"])
def test_every_backend_gives_the_same(backend, method):
    layers, weights = (2, (0.6, 0.3)) if method == "slerp" else (3, (1, -0.4, 0.7))
    for form in ("lora", "tucker2", "low-rank"):
        stack = lt.take_layers(made(form), range(layers))
        options = {"method": method, "density": 0.5, "seed": 7}
        wanted = one(lt.merge(stack, weights, **options))
        found = lt.merge(stack_on(stack, backend), weights, **options)
        assert close(np.asarray(lt.to_dense(found))[0], wanted, 1e-9)


@pytest.mark.parametrize("method", [*METHODS, "slerp"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("bfloat16", 0.05)])
def test_storage(method, dtype, tolerance):
    layers, weights = (2, (0.6, 0.3)) if method == "slerp" else (3, (1, -0.4, 0.7))
    stack = lt.astype(lt.take_layers(made("lora"), range(layers)), dtype)
    options = {"method": method, "seed": 7}
    exact = lt.merge(stack, weights, **options, dtype="float64")
    assert first_array(exact).dtype == np.float64
    wanted = one(lt.merge(lt.astype(stack, "float64"), weights, **options))
    assert close(one(exact), wanted, 1e-6)
    found = lt.merge(stack, weights, **options)
    assert first_array(found).dtype == dtype
    assert close(one(found), wanted, tolerance)


def test_slerp_is_the_formula_on_dense_vectors():
    stack = lt.take_layers(made("lora"), [0, 1])
    a, b = layers_of(stack)
    angle = math.acos(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
    for w in ((1, 0), (3, 1), (1, 1), (0.2, 0.9), (0, 2)):
        t = w[1] / (w[0] + w[1])
        wanted = (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
        assert close(one(lt.merge(stack, w, method="slerp")), wanted, 1e-12)


def test_slerp_keeps_to_the_sphere():
    stack = lt.take_layers(made("tucker2"), [0, 1])
    stack = lt.scale(stack, 1 / lt.layer_norms(stack))
    for t in (0.1, 0.5, 0.8):
        assert abs(float(lt.norm(lt.merge(stack, (1 - t, t), method="slerp"))) - 1) < 1e-12
        assert float(lt.norm(lt.merge(stack, (1 - t, t)))) < 0.99


def test_slerp_of_parallel_opposite_and_zero_updates():
    a = lt.take_layers(made("lora"), [1])
    parallel = lt.concat_layers([a, lt.scale(a, 3.0)])
    assert close(one(lt.merge(parallel, (1, 3), method="slerp")), one(a) * 2.5, 1e-12)
    with pytest.raises(lt.errors.FormatError, match="opposite directions"):
        lt.merge(lt.concat_layers([a, lt.scale(a, -2.0)]), (1, 1), method="slerp")
    zero = lt.concat_layers([a, lt.scale(a, 0.0)])
    assert close(one(lt.merge(zero, (1, 3), method="slerp")), one(a) / 4, 1e-12)


def test_slerp_is_continuous_where_it_becomes_linear():
    near = [math.cos(1.1e-6), math.cos(0.9e-6)]
    either = [slerp_coefficients((1, 2), (1.0, 1.0), cosine) for cosine in near]
    assert np.allclose(*either, rtol=1e-11)


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ((1, 2), {}, "one for each of 3 updates; found"),
        ((1, 2, math.nan), {}, "must be finite numbers"),
        ((1, 2, math.inf), {}, "must be finite numbers"),
        ((1, 2, 1e308), {}, r"at most 1e\+30 in size; found 1e\+308"),
        ((1, -1e200, 0), {}, r"at most 1e\+30 in size; found -1e\+200"),
        ((1, 2, "much"), {}, "must be finite numbers"),
        (3, {}, "must be finite numbers"),
        ((1, 1, 1), {"method": "average"}, "method must be one of linear, ties, dare"),
        ((1, 1, 1), {"density": 0}, "density must be above 0 and at most 1; found 0"),
        ((1, 1, 1), {"density": 1.5}, "density must be above 0"),
        ((1, 1, 1), {"density": math.nan}, "density must be above 0"),
        ((1, 1, 1), {"seed": -1}, "seed must be a whole number"),
        ((1, 1, 1), {"seed": 0.5}, "takes a whole number as seed; this is 0.5"),
        ((1, 1, 1), {"method": "slerp"}, "takes two; found 3"),
        ((1, 1, 1), {"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_refusals(weights, options, message):
    with pytest.raises(lt.errors.OptionError, match=message):
        lt.merge(made("lora"), weights, **options)


@pytest.mark.parametrize("weights", [(1, -1), (0, 0), (-1, -2)])
def test_slerp_refuses_weights_off_the_way(weights):
    with pytest.raises(lt.errors.OptionError, match="two weights of at least 0"):
        lt.merge(lt.take_layers(made("lora"), [0, 1]), weights, method="slerp")


@pytest.mark.parametrize("method", ["linear", "ties", "dare"])
@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e30])
@pytest.mark.parametrize("form", ["lora", "tucker2"])
def test_large_and_small_weights_scale_what_one_gives(method, size, form):
    stack = lt.astype(made(form), "float64")
    many = [size] * stack.shape[0]
    found = lt.to_dense(lt.merge(stack, many, method=method, density=0.5)) / size
    wanted = lt.to_dense(lt.merge(stack, [1.0] * stack.shape[0], method=method, density=0.5))
    assert np.linalg.norm(found - wanted) <= 1e-12 * np.linalg.norm(wanted)


def test_derivatives_are_refused():
    stack = stack_on(made("lora"), "torch")
    stack.up.requires_grad_()
    with pytest.raises(lt.errors.DerivativeError, match="merge has no derivative"):
        lt.merge(stack, (1, 1, 1))


@pytest.mark.parametrize("method", [*METHODS, "slerp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tripwire(method, dtype):
    generator, size = torch.Generator().manual_seed(0), 100_000
    up = torch.randn(size, 5, generator=generator).to(dtype)
    down = torch.randn(5, size, generator=generator).to(dtype)
    stack = lt.LoRAStack(up, down, (2, 3))
    with LargestTensor() as largest:
        lt.merge(stack, (0.4, 0.6), method=method, density=0.5)
        lt.merge(lt.convert(stack, lt.Tucker2), (0.4, 0.6), method=method, density=0.5)
    assert largest.entries <= 2 * up.numel()
