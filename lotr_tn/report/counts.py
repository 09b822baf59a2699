"""What `lotr count` says: records for `--json`, and tables for a terminal of 80 columns."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lotr_tn.catalogue.architecture import Architecture
from lotr_tn.catalogue.counts import CountTable
from lotr_tn.report.numbers import times
from lotr_tn.report.text import plain_table


def counts_record(table: CountTable) -> dict[str, Any]:
    """What `lotr count --json` prints."""
    return {
        "architecture": table.architecture,
        "targets": list(table.targets),
        "group_by": table.group_by,
        "modules": sum(len(group.modules) for group in table.groups),
        "params_dense": table.dense,
        "break_even_rank": table.break_even_rank,
        "heads": table.heads,
        "legs": table.legs,
        "groups": [
            {
                "name": group.name,
                "modules": list(group.modules),
                "shape": list(group.shape),
                "params_dense": group.dense,
                "ranks": [
                    {
                        "rank": row.rank,
                        "params_lora": group.lora(row.rank),
                        "params_lotr": group.lotr(row.rank),
                        "params_cores": group.cores(row.rank),
                        "params_cp": group.cp(row.rank, table.heads),
                        "params_tt": group.tt(row.rank, table.legs or "balanced"),
                    }
                    for row in table.rows
                ],
            }
            for group in table.groups
        ],
        "ranks": [
            {
                "rank": row.rank,
                "params_lora": row.lora,
                "params_lotr": row.lotr,
                "params_cores": row.cores,
                "params_cp": row.cp,
                "params_tt": row.tt,
                "ratio": row.ratio,
                "equal_size_rank": row.equal_size_rank,
            }
            for row in table.rows
        ],
    }


def counts_text(record: dict[str, Any], total: int) -> RenderableType:
    """The outcome of `lotr count`; `total` modules are in the architecture."""
    head = Text(
        f"Model     {record['architecture']}\n"
        f"Targets   {', '.join(record['targets'])}: {record['modules']} of {total} linear modules, "
        f"{record['params_dense']:,} weights\n"
        f"Grouped   by {record['group_by']}"
    )
    tables = [_ranks(record["ranks"]), *_others(record)]
    for table in tables:
        table.show_edge = False  # the table above ends with the blank line between them
    below = [Padding(table, (0, 0, 1, 1), expand=False) for table in tables]
    return Group(head, _groups(record["groups"]), *below, Text(_closing(record)))


def _groups(groups: list[dict[str, Any]]) -> Table:
    """One line a group: its polynomials in the rank."""
    table = plain_table("Group", "Layers x matrix", "LoRA", "LoTR")
    for group in groups:
        layers, m, n = group["shape"]
        table.add_row(
            group["name"],
            f"{layers} x {m}x{n}",
            f"{layers * (m + n):,} r",
            f"{m + n:,} r + {layers} r²",
        )
    return table


def _others(record: dict[str, Any]) -> list[Table]:
    """A table of the forms that were asked for beside LoTR, if any was."""
    asked = {
        f"CP, {record['heads']} heads": None if record["heads"] is None else "params_cp",
        f"TT, {record['legs']}": None if record["legs"] is None else "params_tt",
    }
    shown = {label: key for label, key in asked.items() if key is not None}
    if not shown:
        return []
    table = plain_table("Rank r", "LoRA", *shown)
    table.columns[0].justify = "right"
    for row in record["ranks"]:
        counts = (f"{row[key]:,}" for key in ("params_lora", *shown.values()))
        table.add_row(str(row["rank"]), *counts)
    return [table]


def _ranks(rows: list[dict[str, Any]]) -> Table:
    table = plain_table("Rank r", "LoRA", "LoTR", "Cores only", "Ratio", "Equal size")
    table.columns[0].justify = "right"
    for row in rows:
        table.add_row(
            str(row["rank"]),
            f"{row['params_lora']:,}",
            f"{row['params_lotr']:,}",
            f"{row['params_cores']:,}",
            times(row["params_lotr"], row["params_lora"]),
            str(row["equal_size_rank"]),
        )
    return table


def _closing(record: dict[str, Any]) -> str:
    most = math.ceil(record["break_even_rank"]) - 1
    cheaper = f"up to rank {most:,}" if most > 0 else "at no rank"
    return (
        "Equal size is the largest LoTR rank that stores no more than the LoRA of its\n"
        f"line. At equal ranks LoTR stores less {cheaper}, but then all layers\n"
        "of a group share r directions, of which a LoRA gives r to each."
    )


def models_record(models: Iterable[Architecture], types: Sequence[str]) -> dict[str, Any]:
    """What `lotr count --list --json` prints."""
    return {
        "model_types": list(types),
        "models": [
            {
                "name": model.name,
                "modules": len(model.modules),
                "params_dense": model.parameters,
                "targets": list(model.default_targets),
            }
            for model in models
        ],
    }


def models_text(record: dict[str, Any]) -> RenderableType:
    """The outcome of `lotr count --list`."""
    table = plain_table("Model", "Linear modules", "Weights", "Default targets")
    for model in record["models"]:
        table.add_row(
            model["name"],
            str(model["modules"]),
            f"{model['params_dense']:,}",
            ", ".join(model["targets"]),
        )
    types = ", ".join(record["model_types"])
    return Group(table, Text(f"--config takes the config.json of these types: {types}"))
