"""How records of results are shown: in few lines, and in a notebook as the terminal shows them."""

import importlib
from collections.abc import Iterable
from typing import Any

from lotr_tn.errors import printable


class Shown:
    """A record with a table, which the report room makes of it when a notebook asks."""

    def _repr_html_(self) -> str:
        return importlib.import_module("lotr_tn.report.notebook").html(self)


def lines_of(head: str, lines: Iterable[str], most: int = 12) -> str:
    """A head, and a line for each of the first few things below it."""
    lines = list(lines)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"and {len(lines) - most + 1} more"]
    return "\n".join([head, *(f"  {line:.96}" for line in lines)])


def shown(value: Any) -> Any:
    """A record whose texts can be shown as they are, names among the keys too."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {shown(key): shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown(item) for item in value]
    return value
