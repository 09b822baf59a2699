"""What `lotr merge` reports: the record for `--json`, and its text."""

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from lotr_tn.conversion.merge import Merged
from lotr_tn.report.numbers import byte_size, error, rank_range
from lotr_tn.report.text import carried_line, plain_table

MODULE = "name", "rank", "exact_rank", "norm", "relative_error"  # what is told of each module


def merging_record(merged: Merged, destination: Path, size: int, seconds: float) -> dict[str, Any]:
    """What `lotr merge --json` prints; `size` is that of the written weights."""
    return {
        "method": merged.method,
        "weights": dict(merged.weights),
        "coefficients": dict(merged.coefficients),
        "norm": merged.norm,
        "relative_error": merged.relative_error,
        "met": merged.met,
        "rank": merged.adapter.config["r"],
        "dtype": merged.dtype,
        "params": merged.adapter.parameters,
        "bytes": size,
        "modules": [{key: getattr(module, key) for key in MODULE} for module in merged.modules],
        "untouched": list(merged.adapter.extras),
        "seconds": seconds,
        "destination": str(destination),
    }


def merging_text(record: dict[str, Any]) -> RenderableType:
    """The outcome of `lotr merge`."""
    slerp = record["method"] == "slerp"
    table = plain_table("Adapter", "Weight", *(("Multiplied by",) if slerp else ()))
    for name, weight in record["weights"].items():
        more = (f"{record['coefficients'][name]:.6g}",) if slerp else ()
        table.add_row(name, f"{weight:.6g}", *more)
    exact = [module["exact_rank"] for module in record["modules"]]
    cut = any(module["rank"] < module["exact_rank"] for module in record["modules"])
    lines = [
        f"Method          {record['method']}",
        f"Modules         {len(exact)}, rank {record['rank']} for all, {record['dtype']}",
        f"Exact rank      {rank_range(exact)}" + (", cut" if cut else ""),
        f"Norm            {record['norm']:.4g}",
        f"Relative error  {error(record['relative_error'])}, measured on what was written",
        f"Parameters      {record['params']:,}",
        f"File            {byte_size(record['bytes'])}",
        f"Written         {record['destination']} in {record['seconds']:.1f} s",
    ]
    if record["untouched"]:
        lines.insert(-1, carried_line(record))
    return Group(table, Text("\n".join(lines)))
