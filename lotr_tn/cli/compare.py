"""The command `lotr compare`."""

from pathlib import Path
from typing import Annotated

import typer

from lotr_tn.checkpoints import compare_adapters, load_adapter
from lotr_tn.cli.console import NOT_MET, DebugFlag, JsonFlag, QuietFlag, show
from lotr_tn.report.records import comparison_record
from lotr_tn.report.text import comparison_text

__all__ = ["compare"]


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The reference: a LoRA or a LoTR file.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another adapter of the same modules.")],
    max_rel_error: Annotated[
        float | None,
        typer.Option(metavar="E", help="Exit with status 3 when the error is larger."),
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show every module.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Measure how far two adapters lie apart, whatever their formats and ranks."""
    comparison = compare_adapters(load_adapter(a), load_adapter(b))
    record = comparison_record(comparison)
    show(record, lambda: comparison_text(record, show_all), as_json=as_json, quiet=quiet)
    if max_rel_error is not None and comparison.relative_error > max_rel_error:
        typer.echo(
            f"lotr: relative error {comparison.relative_error:.4g} is above the {max_rel_error:g} "
            "allowed",
            err=True,
        )
        raise typer.Exit(NOT_MET)
