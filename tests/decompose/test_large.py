"""No operation makes anything near the size of a dense matrix, or leaves its device."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import lotr_tn as lt
from lotr_tn.decompose import core_space

METHODS = {
    "hosvd": lt.hosvd,
    "st-hosvd": lt.st_hosvd,
    "hooi": lambda stack, ranks: lt.hooi(stack, ranks, tolerance=0, max_sweeps=2),
}


class LargestTensor(TorchDispatchMode):
    """Records the entries of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, torch.Tensor):
                self.entries = max(self.entries, item.numel())
        return result


SIZE, RANKS = 200_000, (2, 1, 3)


def huge(dtype, device="cpu", seed=0):
    generator = torch.Generator(device="cpu").manual_seed(seed)
    up = torch.randn(SIZE, sum(RANKS), generator=generator).to(dtype).to(device)
    down = torch.randn(sum(RANKS), SIZE, generator=generator).to(dtype).to(device)
    return lt.LoRAStack(up, down, RANKS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_tripwire_decompositions(method, dtype):
    stack = huge(dtype)
    for rule in ((2, 3), lt.RelativeError(0.5)):
        with LargestTensor() as largest:
            METHODS[method](stack, rule)
        assert largest.entries <= 2 * stack.up.numel(), largest.entries


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tripwire_operations(dtype):
    a, b = huge(dtype), huge(dtype, seed=1)
    tucker = lt.hosvd(a, (2, 3))
    x = torch.ones(4, SIZE, dtype=dtype)
    with LargestTensor() as largest:
        for other in (b, tucker):
            lt.distance(a, other), lt.distance(other, a), lt.inner(a, other), lt.cosine(a, other)
            lt.norm(other), lt.apply(other, x), lt.take_layers(other, [1]), lt.subtract(a, other)
    assert largest.entries <= 3 * a.up.numel() + 3 * x.numel(), largest.entries


def test_the_tripwire_can_fail():
    with LargestTensor() as largest:
        lt.to_dense(lt.LoRAStack(torch.ones(500, 1), torch.ones(1, 600), (1,)))
    assert largest.entries == 300_000


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
    wide = METHODS[method](lt.LoRAStack(fake((4, 6)), fake((6, 5)), RANKS), (2, 3))
    assert wide.u.device.type == "fakegpu"


def test_operations_stay_on_the_device(fake_gpu):
    a = lt.LoRAStack(fake((70, 6)), fake((6, 50)), RANKS)
    b = lt.Tucker2(fake((70, 2)), fake((3, 2, 4)), fake((50, 4)))
    d = lt.Dense(fake((3, 70, 50)))
    for x in (a, b, d):
        for y in (a, b, d):
            for operation in (lt.inner, lt.distance, lt.cosine):
                assert operation(x, y).device.type == "fakegpu"
            for part in vars(lt.subtract(x, y)).values():
                assert not isinstance(part, torch.Tensor) or part.device.type == "fakegpu"
        assert lt.norm(x).device.type == "fakegpu"
        assert lt.apply(x, fake((2, 50))).device.type == "fakegpu"
        assert lt.to_dense(x).device.type == "fakegpu"
        assert lt.parameter_count(lt.take_layers(x, [0])) > 0


def test_fake_gpu_catches_mixing(fake_gpu):
    with pytest.raises(lt.errors.BackendError, match="one device"):
        lt.LoRAStack(fake((70, 6)), torch.empty(6, 50), RANKS)
    with pytest.raises(RuntimeError):
        fake((3, 3)) + torch.empty(3, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cuda_agrees_with_cpu(dtype):
    generator = torch.Generator().manual_seed(0)
    up = torch.randn(300, 24, generator=generator, dtype=dtype)
    down = torch.randn(24, 200, generator=generator, dtype=dtype)
    here = lt.hooi(lt.LoRAStack(up, down, (8, 8, 8)), (5, 6))
    there = lt.hooi(lt.LoRAStack(up.cuda(), down.cuda(), (8, 8, 8)), (5, 6))
    assert there.u.device.type == "cuda"
    gap = abs(here.certificate.relative_error - there.certificate.relative_error)
    assert gap < (1e-10 if dtype == torch.float64 else 1e-6)


def test_numpy_peak_memory_follows_the_factors():
    """A group of 32 layers of 1024 x 1024: at most three times the factors, output included."""
    import tracemalloc

    rng = np.random.default_rng(0)
    up = rng.standard_normal((1024, 512), dtype=np.float32)
    down = rng.standard_normal((512, 1024), dtype=np.float32)
    stack = lt.LoRAStack(up, down, (16,) * 32)
    lt.hooi(stack, (64, 64))
    tracemalloc.start()
    try:
        lt.hooi(stack, (64, 64))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    small = 8 * 512 * 512  # one float64 Gram matrix of the core space
    assert peak <= 2 * (up.nbytes + down.nbytes) + 10 * small
    assert peak < 32 * 1024 * 1024 * 4 / 2
    assert core_space.core_space(stack).left.coordinates.shape == (512, 512)
