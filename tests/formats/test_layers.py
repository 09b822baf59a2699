"""Stacks as lists of layers: length, layers, slices, and what they say of their storage."""

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.errors import ArgumentError, FormatError

STACK = lt.LoRAStack(
    np.arange(24.0).reshape(4, 6), np.arange(30.0).reshape(6, 5) - 9, ranks=(1, 3, 2)
)
FORMS = {
    "LoRAStack": STACK,
    "Tucker2": lt.hooi(STACK, (2, 3)),
    "Tucker1": lt.tucker1(STACK, 2),
    "LowRankTucker2": lt.decompose.low_rank_tucker2(STACK, (3, 3), terms=4),
    "Dense": lt.Dense(lt.to_dense(STACK)),
}
each_form = pytest.mark.parametrize("stack", FORMS.values(), ids=FORMS)


@each_form
@pytest.mark.parametrize(
    "part", [0, 2, -1, np.int64(1), slice(1, 3), slice(-2, None), slice(None, None, -1), slice(9)]
)
def test_a_part_holds_the_layers_that_numpy_takes(stack, part):
    found = stack[part]
    whole = lt.to_dense(stack)
    assert type(found) is type(stack)
    assert np.array_equal(
        lt.to_dense(found), whole[part] if isinstance(part, slice) else whole[[part]]
    )


@each_form
def test_a_stack_is_a_list_of_stacks_of_one(stack):
    assert len(stack) == 3
    assert [layer.shape for layer in stack] == [(1, 4, 5)] * 3
    assert lt.distance(lt.concat_layers(list(stack)), stack) <= 1e-12 * float(lt.norm(stack))


@pytest.mark.parametrize(
    ("part", "error", "said"),
    [
        (3, FormatError, r"layers must lie in 0 … 2; found 3"),
        (-4, FormatError, r"layers must lie in 0 … 2; found -4"),
        (slice(2, 2), FormatError, "at least one layer; found none"),
        (slice(7, 9), FormatError, "at least one layer; found none"),
        ("q_proj", ArgumentError, "a layer's number or a slice; this is a str"),
        (1.0, ArgumentError, "this is a float"),
        ([0, 1], ArgumentError, "this is a list: lt.take_layers takes a list of numbers"),
        ((0, 1), ArgumentError, "this is a tuple"),
        (None, ArgumentError, "this is a NoneType"),
    ],
)
def test_what_is_no_layer_is_refused(part, error, said):
    with pytest.raises(error, match=said):
        STACK[part]


@each_form
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_bytes_are_those_of_the_arrays(stack, dtype):
    stored = lt.astype(stack, dtype)
    arrays = lt.ops.arrays.arrays_of(stored).values()
    assert stored.dtype == dtype
    assert stored.nbytes == sum(array.nbytes for array in arrays)


def test_the_error_is_the_certificate_s():
    found = FORMS["Tucker2"]
    assert found.relative_error == found.certificate.relative_error
    assert abs(found.relative_error - float(lt.distance(STACK, found) / lt.norm(STACK))) < 1e-12
    assert STACK.relative_error is None
    assert FORMS["Dense"].relative_error is None


@each_form
def test_numpy_makes_no_array_of_a_stack(stack):
    for call in (np.asarray, np.array, lambda one: np.asarray(one, dtype="float32")):
        with pytest.raises(ArgumentError, match=r"is no array; lt\.to_dense\(stack\) forms"):
            call(stack)


@pytest.mark.parametrize(
    ("asked", "ranks", "error"),
    [(500, (4, 5), 0.0), ((500, 2), (4, 2), None), (0, (0, 0), 1.0), ((0, 3), (0, 3), 1.0)],
)
def test_the_ranks_that_came_out_are_told(asked, ranks, error):
    rng = np.random.default_rng(0)
    stack = lt.LoRAStack(rng.standard_normal((4, 6)), rng.standard_normal((6, 5)), (3, 3))
    found = lt.hooi(stack, asked)
    assert found.ranks == ranks
    assert (found.u.shape[1], found.v.shape[1]) == ranks
    assert error is None or abs(found.relative_error - error) < 1e-12
