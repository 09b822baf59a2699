"""Products of several matrices, in the order that needs the fewest operations."""

from collections.abc import Sequence

from lotr_tn._arrays import Array


def chain_product(matrices: Sequence[Array]) -> Array:
    """The product of x (..., n_0) and matrices (n_0, n_1), (n_1, n_2), … in the cheapest order."""
    splits = cheapest_splits([rows_of(matrices[0]), *(int(x.shape[-1]) for x in matrices)])[1]

    def product(first: int, last: int) -> Array:
        if first == last:
            return matrices[first]
        middle = splits[first, last]
        return product(first, middle) @ product(middle + 1, last)

    return product(0, len(matrices) - 1)


def cheapest_splits(sizes: Sequence[int]) -> tuple[int, dict[tuple[int, int], int]]:
    """The fewest multiply-adds for matrices (n_0, n_1), (n_1, n_2), …, and where parts are split.

    Each part, by its first and last matrix, has the last one of its left half.

    Source: Godbole (1973), dynamic programming.

    Examples:
        >>> cheapest_splits([1, 100, 2, 100])
        (400, {(0, 1): 0, (1, 2): 1, (0, 2): 1})
    """
    count = len(sizes) - 1
    costs = {(i, i): 0 for i in range(count)}
    splits: dict[tuple[int, int], int] = {}
    for length in range(1, count):
        for first in range(count - length):
            last = first + length
            found = {
                middle: costs[first, middle]
                + costs[middle + 1, last]
                + sizes[first] * sizes[middle + 1] * sizes[last + 1]
                # the later of equal ones, which goes from the left
                for middle in range(last - 1, first - 1, -1)
            }
            best = min(found, key=lambda middle: found[middle])
            costs[first, last], splits[first, last] = found[best], best
    return costs[0, count - 1], splits


def rows_of(x: Array) -> int:
    """How many rows the leading axes of x (..., n) make."""
    rows = 1
    for size in x.shape[:-1]:
        rows *= size
    return rows
