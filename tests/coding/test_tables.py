"""Tables of frequencies: the same for ever, and those of the shapes that they stand for."""

import hashlib
import math

import numpy as np
import pytest

from lotr_tn.coding.tables import BITS, LARGEST, MODELS, TOTAL, exponential, frequencies, lengths


@pytest.mark.parametrize("x", [0.0, 1e-9, 0.3, 1.0, 7.25, 60.0])
def test_the_exponential_is_that(x):
    found = exponential(int(x * 2**BITS)) / 2**BITS
    assert found == pytest.approx(math.exp(-x), rel=1e-12, abs=2.0**-80)


def test_tables_never_change():
    """Files of every version are read by them."""
    each = b"".join(frequencies(model).astype("<i8").tobytes() for model in range(MODELS))
    assert hashlib.sha256(each).hexdigest() == (
        "f9b3c24fc0fbe30584baa1e3f571c4de76e22241b1fa4609cd5f982bde5ac686"
    )


@pytest.mark.parametrize("model", range(MODELS))
def test_each_table_is_one_of_frequencies(model):
    table = frequencies(model)
    assert table[0] + 2 * table[1:].sum() == TOTAL
    assert (table >= 1).all()
    assert (np.diff(table) <= 0).all()
    assert len(table) <= LARGEST + 1
    level, heavy = divmod(model, 2)
    scale, k = 2.0 ** ((level - 6) / 4), np.arange(1, min(len(table), 40))
    fall = math.sqrt(2) * k / scale if heavy else k**2 / (2 * scale**2)
    seen = table[k] > 1000
    ratios = np.log((table[k][seen] - 1) / (table[1] - 1))
    assert ratios == pytest.approx(fall[0] - fall[seen], abs=3e-3)
    assert np.log(table[1] / table[0]) == pytest.approx(-fall[0], abs=0.01)  # 0 takes what is left


def test_lengths_are_those_of_the_frequencies():
    bits = lengths(20)
    table = frequencies(20)
    assert 2.0 ** -bits[: len(table)] * TOTAL == pytest.approx(table)
    assert np.isinf(bits[len(table) :]).all()
