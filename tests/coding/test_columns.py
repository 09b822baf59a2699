"""Streams of whole numbers: what goes in comes out, and nothing else does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotr_tn.coding.columns import MOST, decoded, encoded, models_of
from lotr_tn.coding.tables import LARGEST, MODELS, lengths
from lotr_tn.errors import FormatError


def model_of(column):
    models = models_of(column[None])
    return None if models is None else int(models[0])


whole = st.lists(st.integers(-9, 9) | st.integers(-LARGEST, LARGEST), min_size=1, max_size=40)


@given(st.lists(whole, max_size=6))
def test_what_goes_in_comes_out(columns):
    columns = [np.array(column) for column in columns]
    models = [model_of(column) for column in columns]
    assert None not in models
    found = decoded(encoded(columns, models), [len(column) for column in columns], models)
    for one, other in zip(found, columns, strict=True):
        assert np.array_equal(one, other)


def test_streams_never_change():
    columns = [np.arange(-3, 4), np.array([0, 0, 1, 0, -1, 0]), np.array([40, -700, 3])]
    models = [model_of(column) for column in columns]
    assert models == [20, 6, 81]
    assert encoded(columns, models).hex() == ("7288350c45a90ec4")


@pytest.mark.parametrize("scale", [0.4, 1, 7, 90])
@pytest.mark.parametrize("draw", ["standard_normal", "standard_laplace"])
def test_the_model_is_nearly_the_best_and_the_stream_nearly_ideal(scale, draw):
    rng = np.random.default_rng(0)
    draws = {"standard_normal": rng.standard_normal, "standard_laplace": rng.laplace}
    args = () if draw == "standard_normal" else (0, 2**-0.5)
    column = np.round(scale * draws[draw](*args, size=3000)).astype(int)
    counts = np.bincount(np.abs(column))
    each = [counts @ np.minimum(lengths(m)[: len(counts)], 1e9) for m in range(MODELS)]
    model = model_of(column)
    assert each[model] == min(each)
    shares = np.unique(column, return_counts=True)[1] / column.size
    entropy = -float(shares @ np.log2(shares)) * column.size
    taken = 8 * len(encoded([column], [model]))
    assert taken <= 1.01 * entropy + 64 + 8 * len(shares)


def test_larger_numbers_have_no_code():
    assert model_of(np.array([LARGEST])) is not None
    assert model_of(np.array([0, LARGEST + 1])) is None


@pytest.mark.parametrize("damage", ["cut", "longer", "odd", "model", "more", "none"])
def test_damage_is_refused(damage):
    column = np.round(5 * np.random.default_rng(1).standard_normal(400)).astype(int)
    model = model_of(column)
    stream = encoded([column], [model])
    made = {
        "cut": (stream[: len(stream) // 2 // 4 * 4], [400], [model]),
        "longer": (stream + b"\1\2\3\4" * 9, [400], [model]),
        "odd": (stream[:-1], [400], [model]),
        "model": (stream, [400], [MODELS]),
        "more": (stream, [MOST * len(stream) + MOST * 8], [model]),
        "none": (b"", [10**9], [model]),
    }
    with pytest.raises(FormatError, match="the stream of coded numbers is damaged"):
        decoded(*made[damage])


@given(st.binary(max_size=64), st.integers(0, MODELS - 1), st.integers(0, 200))
def test_any_bytes_end_in_numbers_or_in_a_sentence(data, model, size):
    try:
        (found,) = decoded(data, [size], [model])
    except FormatError:
        return
    assert found.shape == (size,)
    assert np.abs(found).max(initial=0) <= LARGEST
