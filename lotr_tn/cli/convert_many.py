"""What `lotr convert` does with several adapters: a bank."""

import time
from pathlib import Path
from typing import Literal

import typer

from lotr_tn.banks.making.conversion import convert_adapters
from lotr_tn.cli.console import NOT_MET, file_size, progress, show
from lotr_tn.doors.sources import NamedAdapters
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.files.writing import refuse_existing
from lotr_tn.linalg.ranks import Budget, FixedRank, RelativeError, TotalError
from lotr_tn.report.bank import bank_conversion_record, bank_conversion_text, bank_question_text

__all__ = ["convert_many", "require_paths"]


def convert_many(
    adapters: NamedAdapters,
    output: Path | None,
    rule: RelativeError | TotalError | Budget | FixedRank,
    *,
    each: bool | None,
    stack: Literal["auto", "adapters", "layers", "all"],
    format: Literal["lotr", "auto", "truncated", "shared-in", "shared-out", "lotr-low-rank"],
    method: Literal["hooi", "st-hosvd", "hosvd"],
    group_by: str,
    cluster: bool,
    dtype: str,
    route: Literal["auto", "whole", "updated", "sketch", "apart"],
    sketch: int | None,
    any_base: bool,
    force: bool,
    show_all: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert adapters to a bank, and print what it costs and lost."""
    begun = time.perf_counter()
    if output is None:
        raise OptionError(
            f"{len(adapters)} adapters become one file; name it, such as "
            "-o history.lotr.safetensors"
        )
    if output.suffix != ".safetensors":
        raise CheckpointError(
            f"{output} must end in .safetensors, such as {output.name}.lotr.safetensors"
        )
    if each and isinstance(rule, TotalError):
        raise OptionError(
            "--total-error is the error of all adapters together; for the error of each, give "
            "--rel-error"
        )
    refuse_existing(output, force=force)
    require_paths(adapters)
    before = sum(file_size(path) for path in adapters.files)
    with progress(len(adapters), quiet=quiet or as_json) as step:
        conversion = convert_adapters(
            adapters,
            output,
            rule,
            each=each is not False,
            stack=stack,
            format=format,
            method=method,
            group_by=group_by,
            cluster=cluster,
            dtype=dtype,
            route=route,
            sketch=sketch,
            any_base=any_base,
            force=force,
            progress=step,
        )
    sizes = before, file_size(output)
    record = bank_conversion_record(conversion, output, sizes, time.perf_counter() - begun)
    show(
        record,
        lambda: bank_conversion_text(record, show_all=show_all),
        as_json=as_json,
        quiet=quiet,
    )
    if not conversion.met:
        asked, worst = bank_question_text(record["asked"]), record["worst_error"]
        if sketch is not None:
            what, instead = f"a sketch of {sketch} directions", "a larger --sketch or --route auto"
        else:
            what, instead = record["dtype"], "--dtype auto or a wider dtype"
        typer.echo(
            f"lotr: {what} cannot hold the error asked for ({asked}); the file has {worst:.2g} at "
            f"worst: use {instead}",
            err=True,
        )
        raise typer.Exit(NOT_MET)


def require_paths(adapters: NamedAdapters) -> None:
    """Refuse a path that is not there before hours are spent on others."""
    for path in adapters.files:
        if not path.exists():
            raise CheckpointError(f"{path}: no such file or folder")
