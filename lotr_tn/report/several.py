"""What `lotr inspect` says of a folder of adapters: a line for each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from lotr_tn.report.numbers import byte_size, count, counted
from lotr_tn.report.screen import most_rows
from lotr_tn.report.text import more_text, plain_table

HEAD = 3  # rows beside the table


def folder_record(source: Path, adapters: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What `lotr inspect --json` prints of a folder: the record of each adapter, with its name."""
    return {
        "source": str(source),
        "format": "folder",
        "bytes": sum(record["bytes"] for record in adapters.values()),
        "adapters": [{"name": name, **record} for name, record in adapters.items()],
    }


def folder_text(record: dict[str, Any], *, show_all: bool) -> RenderableType:
    """The outcome of `lotr inspect` of a folder of adapters."""
    adapters: Sequence[dict[str, Any]] = record["adapters"]
    shown = adapters if show_all else adapters[: most_rows(HEAD)]
    head = f"{record['source']}\nHolds           {counted(len(adapters), 'adapter')}, "
    table = plain_table("Adapter", "Format", "Modules", "Parameters", "Dtype", "Size")
    for one in shown:
        table.add_row(
            Text(one["name"]),
            one["format"],
            str(sum(len(group["modules"]) for group in one["groups"])),
            count(one["params"]),
            one["dtype"],
            byte_size(one["bytes"]),
        )
    more = more_text(shown, adapters, "first adapters")
    return Group(Text(head + byte_size(record["bytes"])), table, *more)
