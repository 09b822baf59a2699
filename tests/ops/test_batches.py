"""Layers taken together are those taken one by one: each once, and each its own columns."""

import array_api_compat
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lotr_tn._arrays import BLOCK_ELEMENTS, to_numpy
from lotr_tn.ops.batches import batches, row_norms, side_by_side
from tests.conftest import on_backend

WIDTHS = (2, 3, 2, 2, 0, 3, 2)
ENDS = np.cumsum(WIDTHS)
PARTS = [slice(int(end) - width, int(end)) for end, width in zip(ENDS, WIDTHS, strict=True)]


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.sampled_from([0, 1, BLOCK_ELEMENTS // 3, BLOCK_ELEMENTS, 4 * BLOCK_ELEMENTS]),
)
def test_each_place_is_taken_once_beside_its_like(sizes, entries):
    made = list(batches(sizes, entries))
    assert sorted(place for places in made for place in places) == list(range(len(sizes)))
    for places in made:
        assert places == sorted(places)
        assert len({sizes[place] for place in places}) == 1
        assert len(places) == 1 or len(places) * entries <= BLOCK_ELEMENTS


def test_as_many_as_fit_are_taken_at_once():
    assert list(batches("abaab", BLOCK_ELEMENTS // 2)) == [[0, 2], [3], [1, 4]]
    assert list(batches("abaab", 0)) == [[0, 2, 3], [1, 4]]
    assert list(batches([], 1)) == []


@pytest.mark.parametrize(
    "places", [[0], [2, 3], [0, 2, 3, 6], [6, 3, 0], [3, 2], [1, 5], [2, 6], [4], [0, 0]]
)
def test_columns_are_those_of_each_part(backend, places):
    values = np.random.default_rng(0).standard_normal((5, int(ENDS[-1])))
    x = on_backend(values, backend)
    found = side_by_side(x, PARTS, places, array_api_compat.array_namespace(x))
    assert to_numpy(found).dtype == values.dtype
    assert np.array_equal(to_numpy(found), np.stack([values[:, PARTS[place]] for place in places]))


def test_norms_of_rows_neither_overflow_nor_vanish(backend):
    values = np.zeros((4, 2, 3))
    values[0], values[1], values[2, 1, 2] = 1e300, 1e-300, -3.0
    x = on_backend(values, backend)
    xp = array_api_compat.array_namespace(x)
    root = np.sqrt(6)
    assert np.allclose(
        to_numpy(row_norms(x, xp=xp)), [root * 1e300, root * 1e-300, 3, 0], rtol=1e-14, atol=0
    )
    assert to_numpy(row_norms(x[:, :0, :], xp=xp)).tolist() == [0.0] * 4
