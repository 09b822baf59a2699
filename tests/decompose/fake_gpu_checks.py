"""Operations on a fake GPU: nothing mixes devices, and with fixed ranks nothing waits for a value.

Not collected with the other tests: `test_large.py` runs this file in a process of its own.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import lotr_tn as lt
from tests.decompose.test_large import METHODS

RANKS = (4, 2)  # of two layers: each operation of a fake tensor takes half a millisecond

_setup_privateuseone_for_python_backend("fakegpu")  # "cuda" cannot be sliced on a CPU build


@pytest.fixture
def fake_gpu():
    with FakeTensorMode() as mode:
        yield mode


def fake(shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="fakegpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_decompositions_stay_on_the_device(fake_gpu, method, dtype):
    """With fixed ranks nothing mixes devices, and nothing waits for a value."""
    stack = lt.LoRAStack(fake((70, 6), dtype), fake((6, 50), dtype), RANKS)
    result = METHODS[method](stack, (2, 3))
    for x in (result.u, result.core, result.v, result.certificate.distances):
        assert x.device.type == "fakegpu"
    assert result.u.dtype == dtype


@pytest.mark.parametrize("method", METHODS)
def test_more_rank_terms_than_directions_stay_on_the_device(fake_gpu, method):
    wide = METHODS[method](lt.LoRAStack(fake((4, 6)), fake((6, 5)), RANKS), (2, 3))
    assert wide.u.device.type == "fakegpu"


def all_there(stack):
    tensors = [part for part in vars(stack).values() if isinstance(part, torch.Tensor)]
    return bool(tensors) and all(part.device.type == "fakegpu" for part in tensors)


def test_rounding_and_other_formats_stay_on_the_device(fake_gpu):
    a = lt.LoRAStack(fake((70, 6)), fake((6, 50)), RANKS)
    b = lt.Tucker2(fake((70, 2)), fake((2, 2, 4)), fake((50, 4)))
    t = lt.Tucker1(fake((50, 4)), fake((2, 70, 4)), "in")
    for x in (b, t):
        for method in METHODS.values():
            assert all_there(method(x, (2, 3)))
        assert all_there(lt.round(x, 2))
    assert all_there(lt.round(a, 1))
    for method in ("randomised", "blocked"):
        assert all_there(lt.hosvd(a, (1, 2), method=method))


def test_a_plan_stays_on_the_device(fake_gpu):
    plan = lt.plan("bn,nq,lpq,mp->lbm", (2, 50), (50, 4), (2, 2, 4), (70, 2))
    assert plan(*(fake(shape) for shape in plan.shapes)).device.type == "fakegpu"


def test_operations_stay_on_the_device(fake_gpu):
    a = lt.LoRAStack(fake((70, 6)), fake((6, 50)), RANKS)
    b = lt.Tucker2(fake((70, 2)), fake((2, 2, 4)), fake((50, 4)))
    d = lt.Dense(fake((2, 70, 50)))
    t = lt.Tucker1(fake((50, 4)), fake((2, 70, 4)), "in")
    o = lt.Tucker1(fake((70, 4)), fake((2, 50, 4)), "out")
    for x in (a, b, d, t, o):
        for y in (a, b, d, t, o):
            for operation in (lt.inner, lt.distance):
                assert operation(x, y).device.type == "fakegpu"
            assert all_there(lt.subtract(x, y))
        assert lt.cosine(x, a).device.type == lt.cosine(a, x).device.type == "fakegpu"
        for kind in ("frobenius", "spectral", "nuclear"):
            assert lt.layer_norms(x, kind).device.type == "fakegpu"
        assert lt.norm(x).device.type == "fakegpu"
        assert lt.gram([x, a, b]).device.type == "fakegpu"
        assert lt.apply_transpose(x, fake((2, 70)), layer=1).device.type == "fakegpu"
        for form in (lt.LoRAStack, lt.Tucker2, lt.Tucker1, lt.Dense):
            assert all_there(lt.convert(x, form))
        for made in (x + a, x - b, 2 * x, x.T, lt.scale(x, [1.0, 2.0])):
            assert all_there(made)
        assert all_there(lt.concat_layers([x, a, x]))
        assert all_there(lt.astype(x, "bfloat16"))
        assert lt.apply(x, fake((2, 50))).device.type == "fakegpu"
        assert lt.to_dense(x).device.type == "fakegpu"
        assert lt.parameter_count(lt.take_layers(x, [0])) > 0


def test_a_cp_stays_on_the_device(fake_gpu):
    a = lt.LoRAStack(fake((70, 6)), fake((6, 50)), RANKS)
    c = lt.CP(fake((70, 3)), fake((2, 3)), fake((50, 3)))
    for y in (a, c):
        for operation in (lt.inner, lt.distance):
            assert operation(c, y).device.type == "fakegpu"
        assert all_there(lt.subtract(c, y))
    assert lt.norm(c).device.type == "fakegpu"
    for layer in (None, 1, [0, 1]):
        assert lt.apply(c, fake((2, 50)), layer=layer).device.type == "fakegpu"
    for made in (
        lt.convert(a, lt.CP),
        lt.convert(c, lt.LoRAStack),
        lt.concat_layers([c, c]),
        c[1:],
    ):
        assert all_there(made)


def test_fake_gpu_catches_mixing(fake_gpu):
    with pytest.raises(lt.errors.BackendError, match="one device"):
        lt.LoRAStack(fake((70, 6)), torch.empty(6, 50), RANKS)
    with pytest.raises(RuntimeError):
        fake((3, 3)) + torch.empty(3, 3)
