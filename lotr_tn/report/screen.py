"""What fits on one screen of a terminal, with the verdict on it."""

from collections.abc import Callable, Sequence
from textwrap import wrap
from typing import Any

ROWS, COLUMNS = 24, 80
FRAME = 6  # rows about a table: its head, its margins, how many more there are, and the prompt
FEWEST = 3  # rows that a table has, whatever else is told


def rows_of(*texts: str) -> int:
    """The rows that lines of text take."""
    lines = [line for text in texts for line in text.split("\n")]
    return sum(len(wrap(line, COLUMNS)) or 1 for line in lines)


def most_rows(beside: int) -> int:
    """How many rows a table can have beside so many rows of text."""
    return max(FEWEST, ROWS - FRAME - beside)


def largest(
    items: Sequence[Any], size: Callable[[Any], float], most: int, *, show_all: bool
) -> list[Any]:
    """So many of the largest, in the order that they have; all of them where all are asked for."""
    if show_all or len(items) <= most:
        return list(items)
    first = sorted(range(len(items)), key=lambda at: -size(items[at]))[:most]
    return [items[at] for at in sorted(first)]
