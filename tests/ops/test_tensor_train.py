"""Tensor trains in the algebra: both arrangements, shared cores, TT-LoRA's orders, and no m × n."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import lotr_tn as lt
from lotr_tn.errors import FormatError, OptionError, PerformanceWarning
from lotr_tn.formats import TensorTrain
from lotr_tn.ops import digit_reversal, plan_of, tt_lora
from lotr_tn.ops.dense import warn_of_size
from lotr_tn.testing import laws
from tests.conftest import BACKENDS, on_backend
from tests.tripwire import LargestTensor

RNG = np.random.default_rng(0)


def train(legs, bonds, layers=3, *, shared=(), **orders) -> TensorTrain:
    """A train of normal entries."""
    ends = [1, *bonds, 1]
    cores = [
        RNG.standard_normal((1 if k in shared else layers, ends[k], o, n, ends[k + 1]))
        for k, (o, n) in enumerate(legs)
    ]
    return TensorTrain(tuple(cores), **orders)


APART = ((3, 1), (4, 1), (1, 5), (1, 2))
PAIRED = ((2, 3), (3, 2), (2, 4))


def moved(stack: TensorTrain, backend: str) -> TensorTrain:
    return replace(stack, cores=tuple(on_backend(core, backend) for core in stack.cores))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("legs", [APART, PAIRED, ((4, 6),), ((1, 5), (1, 2), (3, 1), (4, 1))])
def test_it_is_the_product_of_its_cores(legs, backend):
    stack = train(legs, (2, 3, 2)[: len(legs) - 1])
    wanted = laws.dense_updates(stack)
    found = moved(stack, backend)
    assert np.allclose(np.asarray(lt.to_dense(found)), wanted, rtol=1e-13)
    assert float(lt.norm(found)) == pytest.approx(np.linalg.norm(wanted), rel=1e-13)
    assert float(lt.inner(found, found)) == pytest.approx(np.sum(wanted**2), rel=1e-13)
    x = RNG.standard_normal((2, wanted.shape[2]))
    assert np.allclose(
        np.asarray(lt.apply(found, on_backend(x, backend))), x @ wanted.mT, rtol=1e-12
    )


@pytest.mark.parametrize("legs", [APART, PAIRED])
def test_what_stays_a_train(legs):
    stack = train(legs, (2, 3, 2)[: len(legs) - 1])
    dense = laws.dense_updates(stack)
    for made, wanted in (
        (2 * stack - stack, dense),
        (stack.T, dense.mT),
        (lt.take_layers(stack, [2, 0]), dense[[2, 0]]),
        (lt.concat_layers([stack, stack[:1]]), np.concatenate([dense, dense[:1]])),
        (lt.scale(stack, [1.0, -2.0, 0.0]), dense * np.array([1.0, -2, 0])[:, None, None]),
    ):
        assert type(made) is TensorTrain
        assert np.allclose(laws.dense_updates(made), wanted, rtol=1e-13)


def test_out_then_in_is_a_lora_of_the_bond_in_the_middle():
    stack = train(APART, (3, 2, 2))
    lora = lt.convert(stack, lt.LoRAStack)
    assert lora.ranks == (2, 2, 2)
    assert np.allclose(laws.dense_updates(lora), laws.dense_updates(stack), atol=1e-13)
    back = lt.convert(lora, TensorTrain)  # the LoRA's own factors, as two cores
    assert (back.legs, back.ranks) == (((12, 1), (1, 10)), (2,))
    assert np.array_equal(back.cores[0][1, 0, :, 0, :], lora.up[:, 2:4])


def test_layers_of_lower_ranks_are_filled_up_with_zeros():
    lora = lt.LoRAStack(RNG.standard_normal((4, 3)), RNG.standard_normal((3, 5)), (1, 0, 2))
    stack = lt.convert(lora, TensorTrain)
    assert stack.ranks == (2,)
    assert not stack.cores[0][1].any()
    assert np.array_equal(laws.dense_updates(stack), laws.dense_updates(lora))


def test_trains_of_other_legs_meet_in_a_lora():
    one, other = train(APART, (3, 2, 2)), train(((12, 1), (1, 10)), (2,))
    assert type(one + other) is lt.LoRAStack
    dense = laws.dense_updates(one) + laws.dense_updates(other)
    assert np.allclose(laws.dense_updates(one + other), dense)
    assert float(lt.distance(one, other)) == pytest.approx(
        np.linalg.norm(laws.dense_updates(one) - laws.dense_updates(other)), rel=1e-12
    )


def test_a_shared_core_counts_once_and_stays_shared():
    """As of MPOBERT's central tensor; MetaTT is a train whose layers own one core without legs."""
    stack = train(PAIRED, (4, 3), layers=5, shared=(1,))
    assert lt.parameter_count(stack) == 5 * 2 * 3 * 4 + 4 * 3 * 2 * 3 + 5 * 3 * 2 * 4
    for made in (stack[1:3], 2 * stack, stack.T, lt.concat_layers([stack, stack])):
        assert made.cores[1].shape[0] == 1
    one = stack[2]
    assert np.allclose(laws.dense_updates(one), laws.dense_updates(stack)[2:3])
    meta = train(((6, 1), (1, 1), (1, 5)), (2, 3), layers=4, shared=(0, 2))
    tucker = lt.Tucker2(
        meta.cores[0][0, 0, :, 0, :], meta.cores[1][:, :, 0, 0, :], meta.cores[2][0, :, 0, :, 0].T
    )
    assert lt.parameter_count(meta) == lt.parameter_count(tucker)
    assert np.allclose(laws.dense_updates(meta), laws.dense_updates(tucker))


def test_both_orders_of_tt_lora_and_the_permutation_between_them():
    legs, bonds = (3, 2, 2, 2, 2, 3), (1, 2, 3, 4, 3, 2, 1)
    cores = [RNG.standard_normal((bonds[k], d, bonds[k + 1])) for k, d in enumerate(legs)]
    whole = np.ones(1)
    for core in cores:
        whole = np.tensordot(whole, core, 1)
    rebuilt = tt_lora([cores], (12, 12))
    assert np.allclose(lt.to_dense(rebuilt)[0], whole.reshape(12, 12))
    x = RNG.standard_normal(12)
    state = x.reshape(2, 2, 3)[None]  # the first core eats the last axis, the fastest digit
    for core in cores[:3]:
        state = np.einsum("r...m,rmp->p...", state, core)
    for core in cores[3:]:
        state = np.einsum("r...,rnp->p...n", state, core)
    contracted = tt_lora([cores], (12, 12), "contraction")
    assert np.allclose(lt.apply(contracted, x, layer=0), state.reshape(-1))
    p = digit_reversal(legs[:3])
    assert np.allclose(lt.to_dense(contracted)[0], lt.to_dense(rebuilt)[0][p, :].T)
    with pytest.raises(FormatError, match="their first legs must multiply to 7"):
        tt_lora([cores], (7, 12))
    with pytest.raises(OptionError, match="order must be one of reconstruction, contraction"):
        tt_lora([cores], (12, 12), "other")  # pyright: ignore[reportArgumentType]


def test_full_rank_is_refused_as_a_lora_above_a_size():
    small = train(PAIRED, (2, 3))
    assert lt.convert(small, lt.LoRAStack).ranks == (12,) * 3
    large = train(((200, 200),) * 2, (2,), layers=2)
    with pytest.raises(FormatError, match="a train of paired legs has full rank"):
        lt.convert(large, lt.LoRAStack)
    sizes = ((1, 1, 2**15, 1, 1), (1, 1, 1, 2**15, 1))
    wide = TensorTrain(tuple(np.broadcast_to(np.float16(1), size) for size in sizes))
    with pytest.warns(PerformanceWarning, match="to_dense forms 1 matrices of 32768 x 32768"):
        warn_of_size(wide.shape)


@pytest.mark.parametrize("legs", [((20, 20), (20, 20), (20, 20), (25, 25)), None])
def test_nothing_of_the_size_of_a_matrix_is_made(legs):
    if legs is None:
        legs = ((40, 1), (50, 1), (100, 1), (1, 100), (1, 50), (1, 40))
    stack = train(legs, (4,) * (len(legs) - 1), layers=2)
    stack = replace(stack, cores=tuple(map(torch.from_numpy, stack.cores)))
    x = torch.ones((2, 200_000), dtype=torch.float64)
    with LargestTensor() as made:
        assert torch.isfinite(lt.norm(stack))
        lt.inner(stack, 2 * stack)
        lt.distance(stack, stack + stack)
        lt.apply(stack, x)
        lt.apply(stack, x, layer=[0, 1])
        lt.round(stack + stack, 3)
        lt.canonicalize(lt.take_layers(stack.T, [1]))
    assert made.entries < 64 * 200_000


def test_derivatives_flow():
    for legs in (APART, PAIRED):
        stack = train(legs, (2, 3, 2)[: len(legs) - 1])
        cores = [torch.from_numpy(core).requires_grad_() for core in stack.cores]
        found = TensorTrain(tuple(cores))
        x = torch.ones((2, stack.shape[2]), dtype=torch.float64)
        total = lt.inner(found, found) + lt.apply(found, x).sum() + lt.norm(found)
        total.backward()
        wanted = [torch.from_numpy(core).requires_grad_() for core in stack.cores]
        dense = lt.to_dense(TensorTrain(tuple(wanted)))
        (torch.sum(dense**2) + (x @ dense.mT).sum() + torch.linalg.norm(dense)).backward()
        for one, other in zip(cores, wanted, strict=True):
            assert torch.allclose(one.grad, other.grad, rtol=1e-9)


@pytest.mark.parametrize("rows", [1, 100])
@pytest.mark.parametrize("layer", [None, 1, [1] * 100])
def test_many_rows_go_through_both_halves(rows, layer):
    stack = train(APART, (2, 3, 2))
    x = RNG.standard_normal((100 if isinstance(layer, list) else rows, 10))
    dense = laws.dense_updates(stack)
    wanted = x @ (dense if layer is None else dense[1]).mT
    assert np.allclose(lt.apply(stack, x, layer=layer), wanted)


def test_its_contraction_is_planned():
    stack = train(((8, 1), (8, 1), (1, 8), (1, 8)), (4, 2, 4), layers=1)
    made = plan_of(stack, rows=32)
    assert made.equation == "bhi,adc,acfe,aehg,agi->abdf"  # layer a, rows b, two digits a side
    assert made.flops < 0.1 * 2 * 32 * 64 * 64  # of a product with the matrix
    whole = plan_of(stack, rows=None)
    found = whole(
        *(core.reshape(size) for core, size in zip(stack.cores, whole.shapes, strict=True))
    )
    assert np.allclose(found.reshape(1, 64, 64), lt.to_dense(stack))


@pytest.mark.parametrize(
    ("cores", "said"),
    [
        ([], "cores must hold at least one core"),
        ([(1, 1, 2, 3)], r"cores.0 must have 5 axes \(L, r, out, in, r'\)"),
        ([(1, 1, 2, 1, 2), (1, 3, 1, 4, 1)], "cores.1 must have the bonds .2, 1. of its"),
        ([(2, 1, 2, 1, 2), (3, 2, 1, 4, 1)], r"one number of layers, .* found \[2, 3\]"),
        ([(1, 1, 2, 1, 2)], "cores.0 must have the bonds"),
    ],
)
def test_wrong_cores_are_refused_by_name(cores, said):
    with pytest.raises(FormatError, match=said):
        TensorTrain(tuple(map(np.ones, cores)))
    with pytest.raises(FormatError, match="in_order must name each of 2 cores once"):
        TensorTrain(train(((2, 1), (1, 3)), (2,)).cores, in_order=(0, 0))


def test_it_prints_its_cores():
    stack = train(((9, 1), (1, 7)), (5,))
    assert repr(stack).startswith("TensorTrain(cores=(<float64 (3, 1, 9, 1, 5)>, <float64 (3, 5,")
