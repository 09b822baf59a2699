"""Distances of narrow LoRA stacks: quick by Gram matrices, careful where they are near."""

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn.testing import laws
from tests.conftest import BACKENDS, stack_on

implementation = importlib.import_module("lotr_tn.ops.distance")  # the name is a function's, too


def pair(seed, ranks, others, nearness, dtype="float32"):
    """Two stacks of which the second is the first, all but a share `nearness`."""
    rng = np.random.default_rng(seed)

    def stack(ranks):
        shapes = (23, sum(ranks)), (sum(ranks), 17)
        return lt.LoRAStack(*(rng.standard_normal(s).astype(dtype) for s in shapes), ranks)

    a = stack(ranks)
    if nearness == 1:
        return a, stack(others)
    scale = np.asarray(1 + nearness, dtype)
    return a, lt.LoRAStack(a.up * scale, a.down, a.ranks)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("ranks", "others"), [((2,) * 5, (3,) * 5), ((2, 0, 1), (1, 3, 2))])
@given(seed=st.integers(0, 99), nearness=st.sampled_from([1.0, 0.5, 1e-2, 1e-4, 1e-6]))
def test_both_ways_are_exact(backend, ranks, others, seed, nearness):
    a, b = pair(seed, ranks, others, nearness)
    truth = laws.dense_updates(a) - laws.dense_updates(b)
    found = lt.layer_distances(stack_on(a, backend), stack_on(b, backend))
    size = np.linalg.norm(laws.dense_updates(a), axis=(1, 2))
    wanted = np.linalg.norm(truth, axis=(1, 2))
    assert (np.abs(np.asarray(found) - wanted) <= 1e-10 * wanted + 1e-12 * size).all()


def test_which_way_is_taken(monkeypatch):
    def quick(*arguments):
        a, b = pair(0, *arguments)
        xp = implementation.common_namespace(a, b)
        return [x is not None for x in implementation._quick_distances(a, b, xp=xp)]

    assert quick((2,) * 4, (3,) * 4, 1) == [True] * 4
    assert quick((2, 1), (1, 1), 1) == [True] * 2
    assert quick((2,) * 4, (2,) * 4, 1e-4) == [False] * 4
    assert quick((2,) * 4, (3,) * 4, 1, "float64") == [False] * 4
    monkeypatch.setattr(implementation, "BLOCK_ELEMENTS", 512)  # several blocks
    assert quick((2,) * 4, (3,) * 4, 1) == [True] * 4


@pytest.mark.parametrize("ranks", [(0, 0), (0, 1), (1, 0)])
def test_a_narrow_stack_of_rank_zero(ranks):
    a, b = (
        lt.LoRAStack(np.ones((2, k), np.float32), np.ones((k, 3), np.float32), (k,)) for k in ranks
    )
    assert float(lt.distance(a, b)) == pytest.approx(6**0.5 * abs(ranks[0] - ranks[1]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 2e-7])
def test_narrow_factors_of_nearly_dependent_columns_lose_nothing(backend, gap):
    rng = np.random.default_rng(0)
    u, core, v = (rng.integers(-2, 3, s).astype(np.float32) for s in ((6, 2), (3, 2, 2), (5, 2)))
    u[:, 1] = u[:, 0] * np.float32(1 + gap) + np.float32(gap) * u[:, 1]
    a = stack_on(lt.Tucker2(u, core, v), backend)
    near = stack_on(lt.Tucker2(u, core, v * np.float32(1 + 1e-6)), backend)
    for other in (a, near, lt.convert(a, lt.LoRAStack)):
        laws.layer_distances_are_those_of_the_matrices(lt.layer_distances, a, other)
        laws.layer_distances_are_those_of_the_matrices(lt.layer_distances, other, a)
