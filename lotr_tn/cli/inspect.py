"""The command `lotr inspect`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lotr_tn.checkpoints import LoTRAdapter, load_adapter
from lotr_tn.cli.console import DebugFlag, JsonFlag, QuietFlag, file_size, show
from lotr_tn.report.records import inspection_record
from lotr_tn.report.text import inspection_text

__all__ = ["inspect"]


def inspect(
    source: Annotated[Path, typer.Argument(help="A PEFT LoRA folder or file, or a LoTR file.")],
    group_by: Annotated[
        str, typer.Option("--group-by", help="kind, shape, or a regular expression.")
    ] = "kind",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Show what an adapter holds: its groups of modules, ranks, scale, and other tensors."""
    adapter = load_adapter(source)
    record = inspection_record(adapter, group_by, file_size(source))
    text = adapter.config_text if isinstance(adapter, LoTRAdapter) else None
    config = json.loads(text) if text is not None else dict(adapter.config)  # pyright: ignore[reportAttributeAccessIssue]
    show(record, lambda: inspection_text(record, config), as_json=as_json, quiet=quiet)
