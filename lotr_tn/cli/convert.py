"""The command `lotr convert`."""

import time
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from lotr_tn.checkpoints import (
    LoRAAdapter,
    convert_adapter,
    group_modules,
    load_adapter,
    save_adapter,
)
from lotr_tn.checkpoints.writing import refuse_existing
from lotr_tn.cli.console import (
    NOT_MET,
    DebugFlag,
    ForceFlag,
    JsonFlag,
    QuietFlag,
    file_size,
    progress,
    show,
)
from lotr_tn.errors import CheckpointError
from lotr_tn.linalg.ranks import Energy, FixedRank, RankRule, RelativeError
from lotr_tn.report.records import conversion_record
from lotr_tn.report.text import conversion_text

__all__ = ["convert"]

DtypeOption: TypeAlias = Annotated[
    Literal["auto", "bfloat16", "float16", "float32", "float64"],
    typer.Option(
        metavar="TYPE",
        help="Storage: auto (what the error needs), bfloat16, float16, float32 or float64.",
    ),
]


def convert(
    source: Annotated[Path, typer.Argument(help="A PEFT LoRA folder or weights file.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The LoTR file.  [default: NAME.lotr.safetensors]"),
    ] = None,
    rank: Annotated[
        str | None, typer.Option(metavar="R | R1,R2", help="These ranks for every group.")
    ] = None,
    rel_error: Annotated[
        float | None,
        typer.Option(metavar="E", help="The cheapest ranks within this relative error."),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(metavar="E", help="The cheapest ranks that keep this share of squared norm."),
    ] = None,
    method: Annotated[
        Literal["hooi", "st-hosvd", "hosvd"], typer.Option(help="The decomposition.")
    ] = "hooi",
    group_by: Annotated[
        str, typer.Option(metavar="RULE", help="kind, shape, or a regular expression.")
    ] = "kind",
    dtype: DtypeOption = "auto",
    backend: Annotated[
        Literal["numpy", "torch"], typer.Option(help="The library that computes.")
    ] = "numpy",
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="A device of torch, such as cuda.")
    ] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Convert a LoRA adapter to LoTR: shared factors and one small core a layer.

    Ask for an error, an energy or ranks. The error shown is measured on what was written. Nothing
    of the size of the model is ever formed.
    """
    rule, asked = _rule(rank, rel_error, energy)
    begun = time.perf_counter()
    destination = output or Path(f"{_plain_name(source)}.lotr.safetensors")
    refuse_existing(destination, force=force)
    adapter = load_adapter(source)
    if not isinstance(adapter, LoRAAdapter):
        raise CheckpointError(
            f"{source} is a LoTR file already; export it to a LoRA first to convert it anew"
        )
    with progress(len(group_modules(adapter, group_by)), quiet=quiet or as_json) as step:
        conversion = convert_adapter(
            adapter,
            rule,
            method=method,
            group_by=group_by,
            dtype=dtype,
            backend=backend,
            device=device,
            progress=step,
        )
        save_adapter(conversion.adapter, destination, force=force)
    sizes = file_size(source), file_size(destination)
    record = conversion_record(conversion, destination, sizes, time.perf_counter() - begun)
    show(record, lambda: conversion_text(record, asked), as_json=as_json, quiet=quiet)
    if not conversion.met:
        typer.echo(
            f"lotr: {record['dtype']} cannot hold the error asked for ({asked}); the file has "
            f"{record['relative_error']:.2g}: use --dtype auto or a wider dtype",
            err=True,
        )
        raise typer.Exit(NOT_MET)


def _plain_name(source: Path) -> str:
    """A folder's name, or a weights file's without its ending."""
    return source.stem if source.is_file() else source.resolve().name


def _rule(rank: str | None, rel_error: float | None, energy: float | None) -> tuple[RankRule, str]:
    """The one rule that was asked for, and its wording."""
    given = [x for x in (rank, rel_error, energy) if x is not None]
    if len(given) != 1:
        raise typer.BadParameter(
            "give exactly one of --rel-error, --energy and --rank, such as --rel-error 0.05"
        )
    if rel_error is not None:
        asked = f"at most {rel_error:g}" if rel_error else "exact, but for rounding"
        return RelativeError(rel_error), asked
    if energy is not None:
        return Energy(energy), f"at least {energy:g} of the energy"
    assert rank is not None
    parts = rank.split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise typer.BadParameter(f"--rank takes R or R1,R2, such as 32 or 32,48; found {rank!r}")
    return FixedRank(*(int(part) for part in parts)), f"ranks {rank}"
