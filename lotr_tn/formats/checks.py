"""Checks that every format makes when it is built."""

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
