"""What commands say of adapters that are taken out of a bank: records and their texts."""

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from lotr_tn.adapters.as_lora import Export
from lotr_tn.banks.bank import Bank
from lotr_tn.report.bank import SHOWN, grown
from lotr_tn.report.numbers import byte_size, error, file_growth
from lotr_tn.report.records import export_record
from lotr_tn.report.text import export_ranks, plain_table


def bank_export_record(
    bank: Bank, name: str, export: Export, destination: Path, size: int, seconds: float
) -> dict[str, Any]:
    """What `lotr bank export --json` prints of one; `size` is that of the written weights."""
    figures = bank.figures(name)
    return {
        "adapter": name,
        "relative_error": float(figures.relative_error),
        "bound": float(figures.bound),
        **export_record(export, destination, (figures.own_bytes, size), seconds),
    }


def bank_export_text(record: dict[str, Any], uniform: bool) -> RenderableType:
    """The outcome of `lotr bank export` of one."""
    bound = record["bound"]
    seen = grown(bound, record["relative_error"])
    more = f"; by now at most {error(bound)}" if seen else ""
    lines = [
        f"Adapter         {record['adapter']}",
        f"Relative error  {error(record['relative_error'])}, measured when it was stored{more}",
        f"Modules         {export_ranks(record, uniform)}",
        f"Parameters      {record['params']:,}",
        f"File            {byte_size(record['bytes_after'])}, of which the bank holds "
        f"{byte_size(record['bytes_before'])} beside what all share",
        f"Written         {record['destination']} in {record['seconds']:.1f} s",
    ]
    return Text("\n".join(lines))


def bank_exports_text(record: dict[str, Any]) -> RenderableType:
    """The outcome of `lotr bank export` of several."""
    table = plain_table("Adapter", "Error", "Rank", "File")
    for one in record["adapters"][:SHOWN]:
        folder = Path(one["destination"]).name
        name = one["adapter"] if folder == one["adapter"] else f"{one['adapter']} in {folder}"
        row = (error(one["relative_error"]), str(one["rank"]), byte_size(one["bytes_after"]))
        table.add_row(Text(name), *row)
    left = len(record["adapters"]) - SHOWN
    more = f"and {left} more.\n\n" if left > 0 else ""
    return Group(
        table,
        Text(
            f"{more}Files           {file_growth(record['bytes_before'], record['bytes_after'])}\n"
            f"Written         {record['destination']} in {record['seconds']:.1f} s"
        ),
    )
