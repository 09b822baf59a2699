"""Strategies for sizes: shapes of stacks, and ranks."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy


def either(name: str, given: Any, default: SearchStrategy) -> SearchStrategy:
    """The strategy given as the argument `name`, or the default; TypeError for a mere value."""
    if given is None:
        return default
    if not isinstance(given, SearchStrategy):
        raise TypeError(
            f"{name} must be a hypothesis strategy; found {given!r}. For this one value write "
            f"{name}=st.just({given!r})"
        )
    return given


def distinct_sizes(
    count: int, *, smallest: int = 2, largest: int = 12
) -> SearchStrategy[tuple[int, ...]]:
    """Sizes that all differ. Requires the hypothesis package.

    Args:
        count: how many.
        smallest: the smallest size.
        largest: the largest size.
    """
    return _distinct_sizes(count, smallest, largest)


@st.composite
def _distinct_sizes(draw: st.DrawFn, count: int, smallest: int, largest: int) -> tuple[int, ...]:
    sizes: list[int] = []
    for _ in range(count):
        sizes.append(_draw_other(draw, sizes, smallest, largest))
    return tuple(sizes)


def _draw_other(draw: st.DrawFn, taken: Sequence[int], smallest: int, largest: int) -> int:
    """A size that is not taken yet; it shrinks to the smallest of those."""
    free = [size for size in range(smallest, largest + 1) if size not in taken]
    return draw(st.sampled_from(free))


def shapes(
    *, most_layers: int = 5, largest: int = 8, distinct: bool = True
) -> SearchStrategy[tuple[int, int, int]]:
    """The shape (L, m, n) of a stack, from (1, 2, 3) on. Requires the hypothesis package.

    Args:
        most_layers: the largest L.
        largest: the largest m and n.
        distinct: whether L, m and n must differ; otherwise they may also be equal.
    """
    return _shapes(most_layers, largest, distinct)


@st.composite
def _shapes(
    draw: st.DrawFn, most_layers: int, largest: int, distinct: bool
) -> tuple[int, int, int]:
    layers = draw(st.integers(1, most_layers))
    m = _draw_other(draw, (layers,) if distinct else (), 1, largest)
    n = _draw_other(draw, (layers, m) if distinct else (), 1, largest)
    return layers, m, n


def ranks(*, smallest: int = 1, largest: int = 6) -> SearchStrategy[tuple[int, int]]:
    """A pair of ranks (r1, r2), equal or not. Requires the hypothesis package.

    Args:
        smallest: the smallest rank.
        largest: the largest rank.
    """
    return st.tuples(st.integers(smallest, largest), st.integers(smallest, largest))
