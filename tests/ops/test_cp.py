"""CP in the algebra: exact bridges, own rules, sides made of parts, and faults that laws catch."""

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn import ops
from lotr_tn.errors import FormatError, OptionError
from lotr_tn.ops.primitives import primitives_of
from lotr_tn.testing import laws
from tests.conftest import on_backend

RNG = np.random.default_rng(0)
BACKENDS = ("numpy", "torch")


def drawn(shape=(4, 7, 5), rank=3, backend="numpy"):
    layers, m, n = shape
    parts = (RNG.standard_normal((size, rank)) for size in (m, layers, n))
    return lt.CP(*(on_backend(x, backend) for x in parts))


STACK, OTHER, LONE = drawn(), drawn(), drawn(rank=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_it_is_a_tucker2_with_diagonal_cores_exactly(rank, backend):
    stack = drawn(rank=rank, backend=backend)
    hub = lt.convert(stack, lt.Tucker2)
    cores = laws.dense_updates(lt.Dense(hub.core))
    assert np.array_equal(cores, cores * np.eye(rank))
    assert hub.u is stack.a
    assert hub.v is stack.b
    truth = laws.dense_updates(stack)
    assert np.linalg.norm(laws.dense_updates(hub) - truth) <= 1e-13 * np.linalg.norm(truth)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ranks", [(2, 0, 3), (1, 1, 1), (0, 0, 0)])
def test_a_lora_is_a_cp_of_as_many_terms_exactly(ranks, backend):
    total = sum(ranks)
    up, down = RNG.standard_normal((7, total)), RNG.standard_normal((total, 5))
    lora = lt.LoRAStack(on_backend(up, backend), on_backend(down, backend), ranks)
    found = lt.convert(lora, lt.CP)
    assert found.rank == total
    own = np.repeat(np.eye(len(ranks)), ranks, axis=1)
    assert np.array_equal(laws.dense_updates(lt.Dense(found.weights[None, ...]))[0], own)
    truth = laws.dense_updates(lora)
    for back in (found, lt.convert(found, lt.LoRAStack)):
        assert np.linalg.norm(laws.dense_updates(back) - truth) <= 1e-13 * np.linalg.norm(truth)


def test_sums_stay_and_factors_that_are_shared_stay_one():
    for made in (STACK + OTHER, STACK - OTHER, 2 * STACK, STACK.T, STACK[1:], -STACK):
        assert type(made) is lt.CP
    assert (STACK + OTHER).rank == 6
    same = STACK + STACK
    assert (same.a, same.rank) == (STACK.a, 3)
    assert type(lt.concat_layers([STACK, OTHER])) is lt.CP
    assert lt.concat_layers([STACK[:2], STACK[2:]]).rank == 3
    assert type(lt.merge(STACK, [1.0, -2.0, 0.5, 1.0])) is lt.CP


def test_terms_that_cancel_are_left_to_the_hub():
    nearly = lt.CP(STACK.a, STACK.weights * (1 + 1e-9), STACK.b)
    apart = lt.CP(np.array(nearly.a), nearly.weights, np.array(nearly.b))
    off = apart - STACK  # ranks add: every term stands there twice
    assert off.rank == 6
    truth = np.linalg.norm(STACK.weights) * 0 + 1e-9 * float(lt.norm(STACK))
    assert float(lt.norm(off)) == pytest.approx(truth, rel=1e-5)
    far = lt.CP(STACK.a * 1e-140, STACK.weights * 1e-60, STACK.b)  # whose squares underflow
    assert float(lt.norm(far)) == pytest.approx(1e-200 * float(lt.norm(STACK)), rel=1e-12)


def test_the_cheap_product_is_that_of_the_matrices_and_merges_where_that_takes_less():
    stack = drawn((2, 3, 4), rank=9)
    truth, x = laws.dense_updates(stack), RNG.standard_normal((60, 4))
    assert np.allclose(lt.apply(stack, x, layer=1), x @ truth[1].T, rtol=1e-12)
    assert np.allclose(lt.apply(stack, x[:1], layer=-1), x[:1] @ truth[1].T, rtol=1e-12)
    half = lt.astype(stack, "float16")
    assert lt.apply(half, x.astype("float16")).dtype == np.float16
    with pytest.raises(FormatError, match="one row for each of 2 layer indices"):
        lt.apply(stack, x, layer=[0, 1])
    with pytest.raises(FormatError, match="layer must lie in 0 … 1; found 2"):
        lt.apply(stack, x, layer=2)


def test_derivatives_flow_through_its_rules():
    torch = pytest.importorskip("torch")
    parts = [on_backend(x, "torch").requires_grad_() for x in (STACK.a, STACK.weights, STACK.b)]
    stack = lt.CP(*parts)
    x = torch.ones(2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, w, b: lt.apply(lt.CP(a, w, b), x), parts)
    assert torch.autograd.gradcheck(lambda a, w, b: lt.inner(lt.CP(a, w, b), lt.CP(a, w, b)), parts)
    lt.norm(stack).backward()
    assert all(torch.isfinite(p.grad).all() for p in parts)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (((5, 2), (7, 3), (4, 2)), "axis R must have one size; found 2 in a and 3 in weights"),
        (((5, 2), (7, 2), (4, 3)), "axis R must have one size; found 2 in a and 3 in b"),
        (((5, 2), (0, 2), (4, 2)), "weights must hold at least one layer; found L = 0"),
        (((5,), (7, 2), (4, 2)), r"a must have 2 axes \(m, R\); found shape \(5,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, message):
    with pytest.raises(FormatError, match=message):
        lt.CP(*map(np.ones, arrays))


# LoRTA: five factors, heads on either side.

D, HEADS, KINDS, LAYERS, R = 12, 3, 4, 5, 2
PARTS = {
    "model": RNG.standard_normal((D, R)),
    "head": RNG.standard_normal((D // HEADS, R)),
    "heads": RNG.standard_normal((HEADS, R)),
    "layers": RNG.standard_normal((LAYERS, R)),
    "kinds": RNG.standard_normal((KINDS, R)),
}


def published(x, layer, kind, *, transposed):
    """y of LoRTA's codes: dW assembled head by head, applied as x dW, or as x dWᵀ."""
    blocks = [
        PARTS["model"]
        @ np.diag(PARTS["heads"][h] * PARTS["kinds"][kind] * PARTS["layers"][layer])
        @ PARTS["head"].T
        for h in range(HEADS)
    ]
    dense = np.concatenate(blocks, axis=1)
    return x @ dense.T if transposed else x @ dense


@pytest.mark.parametrize(("side", "transposed"), [("out", False), ("in", True)])
def test_both_orientations_of_lorta_are_those_of_its_codes(side, transposed):
    stack = ops.lorta(**PARTS, heads_on=side, scale=0.5)
    assert stack.shape == (LAYERS * KINDS, D, D)
    x = RNG.standard_normal((3, D))
    for layer, kind in ((0, 0), (2, 3), (4, 1)):
        wanted = 0.5 * published(x, layer, kind, transposed=transposed)
        found = lt.apply(stack, x, layer=layer * KINDS + kind)
        assert np.allclose(found, wanted, rtol=1e-12)


def test_the_tensor_of_lorta_is_a_cp_of_five_legs():
    tensor = np.einsum("ir,hr,jr,lr,kr->lkihj", *(PARTS[k] for k in ("model", "heads", "head")),
                       PARTS["layers"], PARTS["kinds"])  # fmt: skip
    dense = laws.dense_updates(ops.lorta(**PARTS, heads_on="in"))
    assert np.allclose(dense, tensor.reshape(dense.shape), rtol=1e-12)


@pytest.mark.parametrize(
    ("d", "heads", "layers", "per_rank"),
    [(768, 12, 12, 860), (1024, 16, 24, 1132), (4096, 32, 32, 4292), (5120, 40, 40, 5332)],
)
def test_published_counts_from_live_arrays(d, heads, layers, per_rank):
    sizes = {"model": d, "head": d // heads, "heads": heads, "layers": layers, "kinds": 4}
    for rank in (1, 4, 8):
        parts = {name: np.ones((size, rank), np.float32) for name, size in sizes.items()}
        assert sum(x.size for x in parts.values()) == rank * per_rank
        assert ops.lorta(**parts).shape == (4 * layers, d, d)


def test_a_zero_factor_starts_at_the_base_model():
    start = ops.lorta(**PARTS | {"head": np.zeros_like(PARTS["head"])})
    assert float(lt.norm(start)) == 0.0


def test_one_axis_for_layers_and_kinds_and_a_tensor_of_whole_matrices():
    both = RNG.standard_normal((LAYERS * KINDS, R))
    attention = {k: PARTS[k] for k in ("model", "head", "heads")}
    assert ops.lorta(**attention, layers=both).shape == (LAYERS * KINDS, D, D)
    mlp = lt.CP(PARTS["model"], both, PARTS["model"])  # blocks of d x d, as a wide layer is cut
    assert mlp.shape == (LAYERS * KINDS, D, D)


def test_one_head_and_one_kind_is_tucker2_with_diagonal_cores():
    ones = np.ones((1, R))
    plain = ops.lorta(D * PARTS["model"], PARTS["model"], ones, PARTS["layers"], ones)
    cores = np.stack([np.diag(w) for w in PARTS["layers"]])
    tucker = lt.Tucker2(PARTS["model"], cores, D * PARTS["model"])
    assert float(lt.distance(plain, tucker)) <= 1e-13 * float(lt.norm(tucker))


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(OptionError, match='heads_on must be "out" or "in"; found \'both\''):
        ops.lorta(**PARTS, heads_on="both")
    with pytest.raises(FormatError, match="found 2 in part 0 and 3 in part 1"):
        lt.khatri_rao(np.ones((4, 2)), np.ones((4, 3)))
    with pytest.raises(FormatError, match="at least one matrix"):
        lt.khatri_rao()
    assert lt.khatri_rao(PARTS["model"]).shape == (D, R)


# Each law is broken by a fault of this format.

CP_PRIMITIVES = primitives_of(lt.CP)


def joined_without_zeros(stacks):
    a, b = (np.concatenate([getattr(s, k) for s in stacks], axis=1) for k in ("a", "b"))
    rows = [np.tile(s.weights, (1, len(stacks))) for s in stacks]
    return lt.CP(a, np.concatenate(rows), b)


FAULTS = {
    "apply without weights": lambda: laws.apply_is_the_matrix_product(
        lambda s, x: lt.apply(lt.CP(s.a, np.ones_like(s.weights), s.b), x), STACK, np.ones((2, 5))
    ),
    "weights of another layer": lambda: laws.one_layer_is_applied_alone(
        lambda s, x, layer=None: lt.apply(s, x, layer=0 if layer else None),
        STACK,
        np.ones((2, 5)),
        1,
    ),
    "norm as if terms were orthogonal": lambda: laws.layer_norms_are_those_of_the_matrices(
        lambda s, kind: np.sqrt(
            ((s.weights * np.linalg.norm(s.a, axis=0) * np.linalg.norm(s.b, axis=0)) ** 2).sum(1)
        ),
        STACK,
        "frobenius",
    ),
    "inner without the input side": lambda: laws.inner_is_the_sum_of_products(
        lambda s, t: ((s.a.T @ t.a) * (s.weights.T @ t.weights)).sum(), STACK, OTHER
    ),
    "transposed weights alone": lambda: laws.transposing_twice_changes_nothing(
        lambda s: lt.CP(s.b, s.weights[::-1], s.a), STACK
    ),
    "sides swapped in the hub": lambda: laws.conversion_is_exact(
        lambda s, to: CP_PRIMITIVES.lower(s.T, xp=np), STACK, lt.Tucker2
    ),
    "every layer has the terms of all": lambda: laws.concatenated_layers_stand_in_order(
        joined_without_zeros, [STACK, OTHER]
    ),
    "a LoRA with weights of 1 everywhere": lambda: laws.conversion_is_exact(
        lambda s, to: lt.CP(s.up, np.ones((len(s.ranks), s.up.shape[1])), s.down.T),
        lt.convert(STACK, lt.LoRAStack),
        lt.CP,
    ),
    "scaled twice": lambda: laws.scaling_is_exact(
        lambda s, f: lt.CP(s.a * f, s.weights * f, s.b), STACK, 3.0
    ),
    "gauge": lambda: laws.measure_is_gauge_invariant(
        lambda s: float(np.linalg.norm(s.weights)), [STACK], 1
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault):
    with pytest.raises(AssertionError):
        FAULTS[fault]()


def test_the_network_is_the_stack_and_its_order_is_the_cheap_one():
    x = RNG.standard_normal((3, 5))
    plan = ops.plan_of(STACK, rows=3)
    assert np.allclose(plan(x, STACK.a, STACK.weights, STACK.b), lt.apply(STACK, x), rtol=1e-12)
    whole = ops.plan_of(STACK, rows=None)(STACK.a, STACK.weights, STACK.b)
    assert np.allclose(whole, laws.dense_updates(STACK), rtol=1e-12)
    (layers, m, n), r = STACK.shape, STACK.rank
    assert plan.flops <= 2 * 3 * r * (n + layers * m) + 3 * layers * r
    lora = lt.LoRAStack(np.ones((7, 4)), np.ones((4, 5)), (1, 3))
    with pytest.raises(FormatError, match="layers of ranks 1 to 3 are no one network"):
        ops.plan_of(lora)
    with pytest.raises(OptionError, match="rows must be at least 1"):
        ops.plan_of(STACK, rows=0)


@pytest.mark.parametrize("kind", [lt.Tucker2, lt.Tucker1, lt.LowRankTucker2, lt.Dense])
def test_the_network_of_every_format_is_its_stack(kind):
    stack = lt.convert(STACK, kind)
    arrays = {
        lt.LowRankTucker2: lambda s: (
            s.u, np.stack(np.split(s.up, 4, axis=1)), s.down.reshape(4, -1, s.v.shape[1]), s.v
        ),
        lt.Tucker2: lambda s: (s.u, s.core, s.v),
        lt.Tucker1: lambda s: (s.own, s.shared),
        lt.Dense: lambda s: (s.w,),
    }[kind](stack)  # fmt: skip
    made = ops.plan_of(stack, rows=None)(*arrays)
    assert np.allclose(made, laws.dense_updates(STACK), rtol=1e-12)
