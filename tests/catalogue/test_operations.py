"""The table of operations and formats says what the code does."""

import itertools

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.catalogue.operations import MEANINGS, all_formats, column, sum_of
from lotr_tn.testing import laws

RNG = np.random.default_rng(0)
LORA = lt.LoRAStack(RNG.standard_normal((7, 6)), RNG.standard_normal((6, 5)), (2, 1, 3))
HALF = LORA * 0.5
STACKS = {
    "LoRAStack": LORA,
    "Tucker2": lt.Tucker2(
        RNG.standard_normal((7, 4)), RNG.standard_normal((3, 4, 2)), RNG.standard_normal((5, 2))
    ),
    "LowRankTucker2": lt.LowRankTucker2(
        RNG.standard_normal((7, 4)),
        RNG.standard_normal((4, 6)),
        RNG.standard_normal((6, 3)),
        RNG.standard_normal((5, 3)),
        (2, 1, 3),
    ),
    "Tucker1": lt.Tucker1(RNG.standard_normal((5, 4)), RNG.standard_normal((3, 7, 4)), "in"),
    "Dense": lt.Dense(RNG.standard_normal((3, 7, 5))),
    "CP": lt.CP(*(RNG.standard_normal((size, 4)) for size in (7, 3, 5))),
    "TensorTrain": lt.TensorTrain(
        (RNG.standard_normal((3, 1, 7, 1, 4)), RNG.standard_normal((3, 4, 1, 5, 1)))
    ),
}
FORMATS = {kind.__name__: kind for kind in all_formats()}
OPERATIONS = tuple(column(lt.LoRAStack))
X, Y = RNG.standard_normal((2, 5)), RNG.standard_normal((2, 7))


def dense(stack):
    return laws.dense_updates(stack)


def named(result):
    """The formats that a cell names: two where a format leaves what it cannot hold to its hub."""
    return result.split(" or ")


def as_same(stack, make):
    return make(stack), dense(stack)


TRIALS = {
    "add, subtract": [
        (lambda s: lt.add(s, lt.scale(s, 0.5)), lambda w: w + 0.5 * w),
        (lambda s: lt.subtract(s, lt.scale(s, 0.5)), lambda w: w - 0.5 * w),
    ],
    "scale": [(lambda s: lt.scale(s, [0.3, 2.0, 1.0]), lambda w: w * [[[0.3]], [[2]], [[1]]])],
    "transpose": [(lt.transpose, lambda w: w.swapaxes(1, 2))],
    "take_layers": [(lambda s: lt.take_layers(s, [2, 0]), lambda w: w[[2, 0]])],
    "concat_layers": [(lambda s: lt.concat_layers([s, s]), lambda w: np.concatenate([w, w]))],
    "astype": [(lambda s: lt.astype(s, "float32"), lambda w: w)],
    "to_device": [(lambda s: lt.to_device(s, "cpu"), lambda w: w)],
    "norm, layer_norms": [
        (lt.norm, np.linalg.norm),
        (lt.layer_norms, lambda w: np.linalg.norm(w, axis=(1, 2))),
        (lambda s: lt.layer_norms(s, "spectral"), lambda w: np.linalg.norm(w, 2, axis=(1, 2))),
        (lambda s: lt.layer_norms(s, "nuclear"), lambda w: np.linalg.norm(w, "nuc", axis=(1, 2))),
    ],
    "inner, cosine, gram": [
        (lambda s: lt.inner(s, LORA), lambda w: (w * dense(LORA)).sum()),
        (lambda s: lt.cosine(s, s), lambda w: 1.0),
        (lambda s: lt.gram([s])[0, 0], lambda w: (w**2).sum()),
    ],
    "distance": [(lambda s: lt.distance(s, HALF), lambda w: np.linalg.norm(w - dense(HALF)))],
    "apply, apply_transpose": [
        (lambda s: lt.apply(s, X), lambda w: X @ w.swapaxes(1, 2)),
        (lambda s: lt.apply_transpose(s, Y), lambda w: Y @ w),
    ],
    "to_dense": [(lt.to_dense, lambda w: w)],
    "convert to LoRAStack": [(lambda s: lt.convert(s, lt.LoRAStack), lambda w: w)],
    "convert to Tucker2": [(lambda s: lt.convert(s, lt.Tucker2), lambda w: w)],
    "convert to LowRankTucker2": [(lambda s: lt.convert(s, lt.LowRankTucker2), lambda w: w)],
    "convert to Tucker1": [
        (lambda s: lt.convert(s, lt.Tucker1), lambda w: w),
        (lambda s: lt.convert(s, lt.Tucker1, side="out"), lambda w: w),
    ],
    "convert to Dense": [(lambda s: lt.convert(s, lt.Dense), lambda w: w)],
    "convert to CP": [(lambda s: lt.convert(s, lt.CP), lambda w: w)],
    "convert to TensorTrain": [(lambda s: lt.convert(s, lt.TensorTrain), lambda w: w)],
    "canonicalize": [(lt.canonicalize, lambda w: w)],
}
LOSSY = {
    "round": lambda s: lt.round(s, 2),
    "tucker1": lambda s: lt.tucker1(s, 2),
    "hosvd": lambda s: lt.hosvd(s, (2, 1)),
    "st_hosvd, hooi": lambda s: lt.hooi(s, (2, 1)),
}
ROUNDING = {"float64": 1e-13, "exact": 0.0, "rounded": 1e-6}


def test_no_cell_is_empty_and_every_row_is_tried():
    assert set(TRIALS) | set(LOSSY) == set(OPERATIONS)
    for kind in FORMATS.values():
        cells = column(kind)
        assert tuple(cells) == OPERATIONS
        assert all(cell.result and cell.exactness in MEANINGS for cell in cells.values())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("operation", TRIALS)
def test_what_keeps_the_updates(operation, name):
    stack = STACKS[name]
    cell = column(FORMATS[name])[operation]
    for function, wanted in TRIALS[operation]:
        result = function(stack)
        truth = wanted(dense(stack))
        if {*named(cell.result)} <= FORMATS.keys():
            assert type(result).__name__ in named(cell.result)
            result = dense(result)
        off = np.abs(result - truth).max()
        if cell.exactness == "exact":
            # sums of a few products, in another order than the oracle's
            assert off <= (4e-15 if operation in SUMMED else 0.0) * np.abs(truth).max()
        else:
            assert off <= ROUNDING[cell.exactness] * np.abs(truth).max()


SUMMED = (
    "add, subtract",
    "convert to Tucker1",
    "convert to Tucker2",
    "convert to LowRankTucker2",
    "convert to CP",
    "transpose",
)
"""Where ranks change or swap, the oracle adds the same products in another order."""


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("operation", LOSSY)
def test_what_cuts_ranks(operation, name):
    stack = STACKS[name]
    cell = column(FORMATS[name])[operation]
    result = LOSSY[operation](stack)
    assert type(result).__name__ == cell.result
    error = np.linalg.norm(dense(stack) - dense(result)) / np.linalg.norm(dense(stack))
    assert result.certificate.relative_error == pytest.approx(error, rel=1e-10)
    lower = result.certificate.lower_bound
    assert lower <= error
    if cell.exactness == "best":
        assert error <= lower * (1 + 1e-12) + 1e-14
    if cell.exactness == "√2 best":
        assert error <= 2**0.5 * lower * (1 + 1e-12) + 1e-14


@pytest.mark.parametrize(("one", "two"), list(itertools.product(FORMATS, FORMATS)))
def test_formats_of_sums(one, two):
    wanted = sum_of(FORMATS[one], FORMATS[two])
    found = lt.add(STACKS[one], STACKS[two])
    assert type(found).__name__ in named(wanted)
    assert np.allclose(dense(found), dense(STACKS[one]) + dense(STACKS[two]))
    joined = lt.concat_layers([STACKS[one], STACKS[two]])
    assert type(joined).__name__ in named(wanted)
    assert np.allclose(dense(joined), np.concatenate([dense(STACKS[one]), dense(STACKS[two])]))


def test_opposite_sides_meet_in_lora():
    other = lt.transpose(lt.Tucker1(np.ones((7, 2)), np.ones((3, 5, 2)), "in"))
    found = lt.add(STACKS["Tucker1"], other)
    assert type(found) is lt.LoRAStack
    assert found.ranks == (6, 6, 6)


def test_the_table_is_aligned():
    lines = lt.catalogue.operations_table().splitlines()
    assert len(lines) == 2 * (len(OPERATIONS) + 3) + len(MEANINGS)
    assert all(len(line) <= 104 for line in lines)
    assert len(lt.catalogue.sums_table().splitlines()) == len(FORMATS) + 2
