"""Chains of matrices are multiplied in the cheapest order, and low-rank cores are applied by it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn.ops.chain import chain_product, cheapest_splits
from lotr_tn.testing import laws
from tests.conftest import BACKENDS, on_backend, stack_on


def least(sizes):
    """The fewest multiply-adds, by trying every last product."""
    if len(sizes) <= 2:
        return 0
    return min(
        least(sizes[: i + 1]) + least(sizes[i:]) + sizes[0] * sizes[i] * sizes[-1]
        for i in range(1, len(sizes) - 1)
    )


def cost_of(splits, sizes, first, last):
    """The multiply-adds that these splits take."""
    if first == last:
        return 0
    middle = splits[first, last]
    own = sizes[first] * sizes[middle + 1] * sizes[last + 1]
    return own + cost_of(splits, sizes, first, middle) + cost_of(splits, sizes, middle + 1, last)


@given(st.lists(st.integers(0, 300), min_size=2, max_size=7))
def test_no_order_is_cheaper(sizes):
    count, splits = cheapest_splits(sizes)
    assert count == least(sizes) == cost_of(splits, sizes, 0, len(sizes) - 2)


@pytest.mark.parametrize("backend", BACKENDS)
@given(sizes=st.lists(st.integers(0, 9), min_size=2, max_size=6), axes=st.integers(0, 2))
def test_the_product_is_that_of_the_matrices(backend, sizes, axes):
    rng = np.random.default_rng(0)
    first = rng.standard_normal((2,) * axes + (3, sizes[0]))
    chain = [first, *(rng.standard_normal(pair) for pair in itertools.pairwise(sizes))]
    wanted = first
    for x in chain[1:]:
        wanted = wanted @ x
    found = chain_product([on_backend(x, backend) for x in chain])
    assert np.allclose(np.asarray(found), wanted, atol=1e-10)


def low_rank(m, n, shared, ranks):
    rng = np.random.default_rng(0)
    (r1, r2), total = shared, sum(ranks)
    shapes = (m, r1), (r1, total), (total, r2), (n, r2)
    return lt.LowRankTucker2(*(rng.standard_normal(shape) for shape in shapes), ranks)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 40, 3000])
@pytest.mark.parametrize("shared", [(4, 3), (30, 25), (2, 20)])
@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 0, 3), (9, 9, 9), (0, 0, 0)])
def test_every_order_gives_the_same_numbers(ranks, shared, rows, backend):
    """Few rows and many, thin and wide shared factors, cores of one rank and ragged ones."""
    stack = low_rank(11, 7, shared, ranks)
    dense = laws.dense_updates(stack)
    x = np.random.default_rng(1).standard_normal((rows, 7))
    layers = np.arange(rows) % 3
    there, put = stack_on(stack, backend), on_backend(x, backend)
    wanted = x @ dense.swapaxes(1, 2)
    size = np.abs(wanted).max(initial=1.0)
    assert np.allclose(np.asarray(lt.apply(there, put)), wanted, atol=1e-12 * size)
    assert np.allclose(np.asarray(lt.apply(there, put, layer=1)), wanted[1], atol=1e-12 * size)
    each = np.asarray(lt.apply(there, put, layer=[int(i) for i in layers]))
    assert np.allclose(each, wanted[layers, np.arange(rows)], atol=1e-12 * size)
