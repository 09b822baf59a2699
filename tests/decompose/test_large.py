"""No operation makes anything near the size of a dense matrix, or leaves its device."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lotr_tn as lt
from lotr_tn.decompose import core_space
from tests.tripwire import LargestTensor

METHODS = {
    "hosvd": lt.hosvd,
    "st-hosvd": lt.st_hosvd,
    "hooi": lambda stack, ranks: lt.hooi(stack, ranks, tolerance=0, max_sweeps=2),
}


SIZE, RANKS = 6_000, (2, 1, 3)


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
            (
                lt.layer_norms(other, "nuclear"),
                lt.gram([a, other]),
                lt.apply(other, x, layer=[0, 2, 1, 1]),
            )
            lt.apply_transpose(other, x, layer=0), lt.scale(other, [1.0, 2.0, 3.0]), other.T
    assert largest.entries <= 3 * a.up.numel() + 3 * x.numel(), largest.entries


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tripwire_rounding(dtype):
    a, b = huge(dtype), huge(dtype, seed=1)
    shared = lt.hosvd(a, (2, 3)) + lt.hosvd(b, (3, 2))
    one = lt.tucker1(a, 3)
    with LargestTensor() as largest:
        lt.round(a + b, lt.RelativeError(0.3)), lt.round(shared, (2, 2)), lt.round(one + one, 2)
        lt.canonicalize(shared), lt.tucker1(a, 2, "out"), lt.hooi(one, (2, 2))
        lt.hooi(a, (1, 1), method="randomised"), lt.hooi(a, (1, 1), method="blocked")
        lt.decompose.hooi_in_metric(a, (2, 2), torch.ones(SIZE, dtype=dtype))
    assert largest.entries <= 4 * a.up.numel(), largest.entries
    assert largest.entries <= SIZE * 24


def test_the_tripwire_can_fail():
    with LargestTensor() as largest:
        lt.to_dense(lt.LoRAStack(torch.ones(500, 1), torch.ones(1, 600), (1,)))
    assert largest.entries == 300_000


def test_everything_stays_on_its_device():
    """Checks on a fake GPU, in a process of their own: registering one changes torch for good."""
    checks = Path(__file__).with_name("fake_gpu_checks.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(checks)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


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
