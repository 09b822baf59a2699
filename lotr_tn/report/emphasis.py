"""Colour that means something: what is smaller, what is larger, and the worst error of a table."""

import re
from typing import Any

from rich.table import Table
from rich.text import Text

SMALLER, LARGER, WORST = "green", "red", "bold"
RATIO = re.compile(r"(?<![\w.])(\d+\.\d\d)x(?!\w)")
OWNERS = ("Group", "Adapter", "Module")  # tables of parts of one result: one of them is the worst
ERRORS = ("Error", "Worst")


def emphasised(text: str) -> Text:
    """Text whose ratios are green below 1 and red above: 0.35x, 1.20x."""
    found = Text(text)
    for match in RATIO.finditer(text):
        ratio = float(match[1])
        if ratio != 1:
            found.stylize(SMALLER if ratio < 1 else LARGER, *match.span())
    return found


class FigureTable(Table):
    """A table of figures beside names: ratios have colours, and the worst error is bold."""

    def add_row(self, *cells: Any, **how: Any) -> None:
        """Add a row; texts after the first are figures."""
        name, *figures = cells
        shown = [emphasised(cell) if isinstance(cell, str) else cell for cell in figures]
        super().add_row(name, *shown, **how)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        if self.columns[0].header in OWNERS:
            for column in self.columns[1:]:
                if column.header in ERRORS:
                    _mark_worst([cell for cell in column.cells if isinstance(cell, Text)])
        yield from super().__rich_console__(console, options)


def _mark_worst(cells: list[Text]) -> None:
    values = {at: float(cell.plain) for at, cell in enumerate(cells) if cell.plain[:1].isdigit()}
    if len(set(values.values())) > 1:
        cells[max(values, key=values.__getitem__)].stylize(WORST)
