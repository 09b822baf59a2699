"""The dense truth that every law is held against, and how closely it must be met."""

from collections.abc import Iterable, Mapping

import numpy as np

from lotr_tn._arrays import Array, dtype_name, to_numpy
from lotr_tn.formats import Stack
from lotr_tn.ops.arrays import arrays_of, storage_dtype
from lotr_tn.testing.formats import laws_of

ROUNDING = {"float64": 1e-13, "float32": 2e-6, "float16": 2e-2, "bfloat16": 2e-1}
"""What rounding may cost by storage dtype, relative to the magnitude of the terms."""

LARGEST_WHOLE = 2**20
"""Whole numbers whose sums of products stay below this are computed without any rounding."""


def dense_updates(stack: Stack) -> np.ndarray:
    """The updates as (L, m, n) float64 matrices, by their definition, layer by layer."""
    arrays = {name: wide(x) for name, x in arrays_of(stack).items()}
    return laws_of(type(stack)).dense(stack, arrays)


def wide(x: Array) -> np.ndarray:
    """An array in NumPy and float64."""
    return to_numpy(x).astype(np.float64)


def magnitude(stack: Stack) -> float:
    """‖·‖ of the stack with all entries made positive: nothing cancels in it.

    Rounding is relative to this, and not to ‖T‖: factors of size 1 may have an update of 1e-16.
    """
    arrays = {k: np.abs(wide(x)) for k, x in arrays_of(stack).items()}
    return norm_of(laws_of(type(stack)).dense(stack, arrays))


def norm_of(x: np.ndarray) -> float:
    """The root of the sum of squares of all entries."""
    return float(np.linalg.norm(x))


def rounding(stack: Stack) -> float:
    """Rounding to expect in the stack's storage dtype, relative to its magnitude."""
    return ROUNDING[storage_dtype(stack)]


def expect(condition: bool, message: str) -> None:
    """Raise `AssertionError` with the message unless the condition is true."""
    __tracebackhide__ = True
    if not condition:
        raise AssertionError(message)


def expect_close(found: Array | float, wanted: float, slack: float, what: str) -> None:
    """A number may be off by `slack` at most; nan is off."""
    __tracebackhide__ = True
    found = float(found)
    expect(abs(found - wanted) <= slack, f"{what} is {wanted:.12g}; found {found:.12g}")


def expect_updates(
    found: Stack | np.ndarray, wanted: np.ndarray, sources: Iterable[Stack], what: str
) -> None:
    """Updates that come from `sources` by sums and products, but for rounding."""
    # where all entries are whole numbers, nothing rounds, and nothing may be off
    dense = found if isinstance(found, np.ndarray) else dense_updates(found)
    sources = tuple(sources)
    expect_same("the shape", tuple(dense.shape), tuple(wanted.shape))
    off = norm_of(dense - wanted)
    if all(_is_whole(stack) for stack in sources) and np.abs(wanted).max(initial=0) < LARGEST_WHOLE:
        expect(off == 0, f"{what} is off by {off:.2g}, in whole numbers")
    allowed = sum(rounding(stack) * magnitude(stack) for stack in sources)
    expect(off <= allowed, f"{what} is off by {off:.2g}; rounding explains {allowed:.2g}")


def expect_same_arrays(found: Stack, wanted: Mapping[str, Array], what: str) -> None:
    """A stack's arrays are those of that name, bit for bit; else which one is not, and `what`."""
    for name, x in arrays_of(found).items():
        expect(np.array_equal(to_numpy(x), to_numpy(wanted[name])), f"{name} {what}")


def expect_same(what: str, found: object, wanted: object) -> None:
    """Two values are equal."""
    expect(found == wanted, f"{what} must be {wanted}; found {found}")


def _is_whole(stack: Stack) -> bool:
    arrays = arrays_of(stack).values()
    if any(dtype_name(x) not in ("float32", "float64") for x in arrays):
        return False
    host = [to_numpy(x) for x in arrays]
    return all(bool((x == np.rint(x)).all() and np.abs(x).max(initial=0) < 64) for x in host)
