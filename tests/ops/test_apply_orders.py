"""The order in which an update is applied is the cheapest there is, and where merging pays."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn.ops.apply import cheapest_order

sizes = st.integers(1, 400)


@given(rows=st.integers(1, 10_000), m=sizes, n=sizes, r1=sizes, r2=sizes)
def test_no_order_is_cheaper(rows, m, n, r1, r2):
    """Among all pairwise orders, as the contraction planner searches them."""
    shapes = (rows, n), (n, r2), (r1, r2), (m, r1)
    plan = lt.plan("bn,nq,pq,mp->bm", *shapes)
    ours = 2 * cheapest_order(rows, m, n, r1, r2)[1]
    assert ours >= plan.flops
    if all(step.method == "matmul" for step in plan.steps):  # else something has size 1
        assert ours == plan.flops


@pytest.mark.parametrize(
    ("rows", "m", "n", "r1", "r2", "order"),
    [
        (1, 50, 40, 6, 3, "chain"),
        (5000, 50, 40, 16, 3, "fold left"),
        (5000, 50, 40, 3, 16, "fold right"),
        (90_000, 50, 40, 45, 38, "merge"),
        (90_000, 40, 50, 38, 45, "merge"),
    ],
)
def test_every_order_gives_the_same_numbers(rows, m, n, r1, r2, order):
    assert cheapest_order(rows, m, n, r1, r2)[0] == order
    rng = np.random.default_rng(0)
    u, core, v = rng.standard_normal((m, r1)), rng.standard_normal((2, r1, r2)), None
    v = rng.standard_normal((n, r2))
    x = rng.standard_normal((rows, n))
    dense = u @ core[1] @ v.T
    found = lt.apply(lt.Tucker2(u, core, v), x, layer=1)
    assert np.allclose(found, x @ dense.T, atol=1e-9 * np.abs(dense).max() * n)


@given(m=sizes, n=sizes, r1=sizes, r2=sizes)
def test_merging_pays_from_the_break_even_on(m, n, r1, r2):
    rows = lt.merge_break_even(m, n, r1, r2)
    if rows is None:
        assert cheapest_order(10**9, m, n, r1, r2)[0] != "merge"
        return
    assert cheapest_order(rows, m, n, r1, r2)[0] == "merge"
    assert rows == 1 or cheapest_order(rows - 1, m, n, r1, r2)[0] != "merge"


@given(m=sizes, n=sizes, rank=sizes)
def test_merging_a_lora(m, n, rank):
    rows = lt.merge_break_even(m, n, rank)
    if rows is None:
        assert rank * (m + n) <= m * n
        return
    assert rows * m * n + m * n * rank < rows * rank * (m + n)
    assert rows == 1 or (rows - 1) * m * n + m * n * rank >= (rows - 1) * rank * (m + n)


def test_a_merged_lora_gives_the_same_numbers():
    rng = np.random.default_rng(0)
    stack = lt.LoRAStack(rng.standard_normal((6, 9)), rng.standard_normal((9, 5)), (9,))
    rows = lt.merge_break_even(6, 5, 9) + 3
    x = rng.standard_normal((rows, 5))
    assert np.allclose(lt.apply(stack, x, layer=0), x @ (stack.up @ stack.down).T)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_a_layer_a_row_of_many_axes(count):
    rng = np.random.default_rng(0)
    stack = lt.Tucker2(
        rng.standard_normal((7, 2)), rng.standard_normal((4, 2, 3)), rng.standard_normal((5, 3))
    )
    layers = rng.integers(-4, 4, count)
    x = rng.standard_normal((count, 2, 6, 5))
    dense = lt.to_dense(stack)
    wanted = np.stack([one @ dense[layer].T for one, layer in zip(x, layers, strict=True)])
    assert np.allclose(lt.apply(stack, x, layer=layers), wanted)
    assert np.allclose(lt.apply(stack, x, layer=[int(i) for i in layers]), wanted)
    lora = lt.convert(stack, lt.LoRAStack)
    assert np.allclose(lt.apply(lora, x, layer=layers), wanted)


def test_no_rows_at_all():
    stack = lt.Dense(np.ones((2, 3, 4)))
    assert lt.apply(stack, np.ones((0, 4)), layer=[]).shape == (0, 3)
    assert lt.apply(stack, np.ones((0, 4)), layer=1).shape == (0, 3)


def test_refusals():
    stack = lt.Dense(np.ones((2, 3, 4)))
    with pytest.raises(lt.errors.FormatError, match="one row for each of 3 layer indices"):
        lt.apply(stack, np.ones((2, 4)), layer=[0, 1, 1])
    with pytest.raises(lt.errors.FormatError, match=r"0 … 1; found 2"):
        lt.apply(stack, np.ones((2, 4)), layer=[0, 2])
    with pytest.raises(lt.errors.FormatError, match="whole numbers"):
        lt.apply(stack, np.ones((2, 4)), layer=np.array([0.0, 1.0]))


def test_merging_is_never_better_for_low_ranks():
    assert lt.merge_break_even(4096, 4096, 64) is None
    assert math.isfinite(lt.merge_break_even(64, 64, 40))
