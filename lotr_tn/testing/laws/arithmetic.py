"""Laws of sums, multiples, transposes, conversions, and of cutting stacks into layers."""

from collections.abc import Callable, Sequence

import numpy as np

from lotr_tn._arrays import Array, dtype_name, to_numpy
from lotr_tn.formats import Stack
from lotr_tn.ops.arrays import arrays_of, storage_dtype
from lotr_tn.testing.laws.truth import (
    dense_updates,
    expect,
    expect_same,
    expect_same_arrays,
    expect_updates,
    magnitude,
    norm_of,
    rounding,
    wide,
)


def sum_is_exact(add: Callable[[Stack, Stack], Stack], a: Stack, b: Stack) -> None:
    """The sum a + b has the sums of the entries."""
    wanted = dense_updates(a) + dense_updates(b)
    expect_updates(add(a, b), wanted, (a, b), "the sum")


def difference_is_exact(subtract: Callable[[Stack, Stack], Stack], a: Stack, b: Stack) -> None:
    """The difference a − b has the differences of the entries."""
    wanted = dense_updates(a) - dense_updates(b)
    expect_updates(subtract(a, b), wanted, (a, b), "the difference")


def scaling_is_exact(
    scale: Callable[[Stack, float | Sequence[float]], Stack],
    stack: Stack,
    factor: float | Sequence[float],
) -> None:
    """Every entry is multiplied by the factor, or by that of its layer."""
    factors = np.broadcast_to(np.asarray(factor, dtype=np.float64), stack.shape[:1])
    found, wanted = dense_updates(scale(stack, factor)), dense_updates(stack)
    expect_same("the shape", found.shape, wanted.shape)
    off = norm_of(found - factors[:, None, None] * wanted)
    largest = float(np.abs(factors).max())
    allowed = rounding(stack) * magnitude(stack) * largest
    expect(off <= allowed, f"the multiple is off by {off:.2g}; rounding explains {allowed:.2g}")


def transposing_twice_changes_nothing(transpose: Callable[[Stack], Stack], stack: Stack) -> None:
    """Every layer is transposed, and twice gives the same factors bit for bit."""
    once = transpose(stack)
    expect_updates(once, np.swapaxes(dense_updates(stack), 1, 2), (stack,), "the transpose")
    expect_same_arrays(transpose(once), arrays_of(stack), "differs after transposing twice")


def dense_is_the_product(to_dense: Callable[[Stack], Array], stack: Stack) -> None:
    """The plain matrices are the products of the factors, in the stack's dtype."""
    found = to_dense(stack)
    expect_same("the dtype", dtype_name(found), storage_dtype(stack))
    expect_updates(wide(found), dense_updates(stack), (stack,), "the dense stack")


def conversion_is_exact(
    convert: Callable[[Stack, type[Stack]], Stack], stack: Stack, to: type[Stack]
) -> None:
    """The result has the format asked for, the stack's dtype, and the same updates."""
    result = convert(stack, to)
    expect_same("the format", type(result).__name__, to.__name__)
    expect_same("the dtype", storage_dtype(result), storage_dtype(stack))
    expect_updates(result, dense_updates(stack), (stack,), f"the {to.__name__}")


def storage_rounds_each_entry_once(
    astype: Callable[[Stack, str], Stack], stack: Stack, dtype: str
) -> None:
    """Each entry becomes the nearest that the dtype holds."""
    result = astype(stack, dtype)
    expect_same("the dtype", storage_dtype(result), dtype)
    found = arrays_of(result)
    for name, before in arrays_of(stack).items():
        wanted = to_numpy(before).astype(to_numpy(found[name]).dtype)
        expect(
            np.array_equal(to_numpy(found[name]), wanted),
            f"{name} is not rounded to the nearest {dtype}",
        )


def parameters_are_the_stored_entries(count: Callable[[Stack], int], stack: Stack) -> None:
    """The number of parameters is the number of entries of all arrays."""
    stored = sum(to_numpy(x).size for x in arrays_of(stack).values())
    expect_same("the number of parameters", count(stack), stored)


def taken_layers_are_those_layers(
    take_layers: Callable[[Stack, Sequence[int]], Stack], stack: Stack, layers: Sequence[int]
) -> None:
    """The layers named, in that order, in the same format; negative ones count from the end."""
    result = take_layers(stack, layers)
    expect_same("the format", type(result).__name__, type(stack).__name__)
    wanted = dense_updates(stack)[list(layers)]
    expect_updates(result, wanted, (stack,) * len(layers), "the stack of chosen layers")


def concatenated_layers_stand_in_order(
    concat_layers: Callable[[Sequence[Stack]], Stack], stacks: Sequence[Stack]
) -> None:
    """All layers of the first stack, then all of the second, and so on."""
    wanted = np.concatenate([dense_updates(stack) for stack in stacks])
    expect_updates(concat_layers(stacks), wanted, stacks, "the stack of all layers")
