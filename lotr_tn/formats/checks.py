"""Checks that every format makes when it is built."""

import itertools

from lotr_tn._arrays import Array
from lotr_tn.errors import FormatError


def require_axes(name: str, array: Array, axes: str) -> None:
    """Refuse an array whose number of axes is not that of `axes`, such as `(L, r1, r2)`."""
    wanted = axes.count(",") + 1
    if array.ndim != wanted:
        raise FormatError(
            f"{name} must have {wanted} axes {axes}; found shape {tuple(array.shape)}"
        )


def require_equal(axis: str, first: tuple[str, int], second: tuple[str, int]) -> None:
    """Refuse two fields that disagree on the size of an axis they share."""
    if first[1] != second[1]:
        raise FormatError(
            f"axis {axis} must have one size; found {first[1]} in {first[0]} and {second[1]} in "
            f"{second[0]}"
        )


def require_ranks(axis: str, up: Array, down: Array, ranks: tuple[int, ...]) -> None:
    """Refuse ranks of layers that are not those of the columns of `up` and the rows of `down`."""
    require_equal(axis, ("up", up.shape[1]), ("down", down.shape[0]))
    require_equal(axis, ("up", up.shape[1]), ("the sum of ranks", sum(ranks)))
    if not ranks or min(ranks) < 0:
        raise FormatError(f"ranks must be whole numbers, at least one; found {ranks}")


def slices_of(ranks: tuple[int, ...]) -> tuple[slice, ...]:
    """Where the terms of each layer lie on an axis of all of them."""
    ends = itertools.accumulate(ranks, initial=0)
    return tuple(slice(start, end) for start, end in itertools.pairwise(ends))
