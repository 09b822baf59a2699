"""The command `lotr convert`."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from lotr_tn.adapters import LoRAAdapter, group_modules
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
from lotr_tn.cli.convert_many import convert_many
from lotr_tn.cli.questions import (
    DtypeOption,
    FormatOption,
    MaxBytesOption,
    MaxParamsOption,
    MaxRankOption,
    MinRankOption,
    TotalErrorOption,
    asked_limits,
    asked_rule,
    asked_text,
)
from lotr_tn.conversion import convert_adapter
from lotr_tn.doors import load_adapter, save_adapter
from lotr_tn.doors.sources import is_collection, named_adapters
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.files.dialects.lotr_peft import save_lotr_peft
from lotr_tn.files.writing import refuse_existing
from lotr_tn.linalg.ranks import Budget, Energy, FixedRank, RankRule, TotalError
from lotr_tn.report.records import conversion_record
from lotr_tn.report.text import conversion_text

__all__ = ["convert"]

BANKS = "Of several adapters: a bank"


def convert(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="A PEFT LoRA folder or weights file. Several, a folder of them, or a bank become "
            "one bank.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The LoTR file; to be named for a bank.  [default: NAME.lotr.safetensors]",
        ),
    ] = None,
    rank: Annotated[
        str | None, typer.Option(metavar="R | R1,R2", help="These ranks for every group.")
    ] = None,
    rel_error: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="The least size within this relative error, in each group; in a bank, of each "
            "adapter.",
        ),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(metavar="E", help="The least size that keeps this share of squared norm."),
    ] = None,
    total_error: TotalErrorOption = None,
    max_params: MaxParamsOption = None,
    max_bytes: MaxBytesOption = None,
    format: FormatOption = None,
    to: Annotated[
        Literal["file", "lotr-peft"],
        typer.Option(help="One LoTR file, or a folder that PEFT trains on with lotr_tn.peft."),
    ] = "file",
    min_rank: MinRankOption = None,
    max_rank: MaxRankOption = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Modules to keep exactly as they are, by their paths."),
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
    each: Annotated[
        bool | None,
        typer.Option(
            "--each/--total",
            help="Whether each adapter keeps to the error, or all together.  [default: each]",
            rich_help_panel=BANKS,
        ),
    ] = None,
    stack: Annotated[
        Literal["auto", "adapters", "layers", "all"] | None,
        typer.Option(
            metavar="WAY",
            help="What shares factors: a module over the adapters (adapters), over layers too "
            "(layers), or a shape (all).  [default: auto, the smallest]",
            rich_help_panel=BANKS,
        ),
    ] = None,
    cluster: Annotated[
        bool | None,
        typer.Option(
            "--cluster/--no-cluster",
            help="Whether adapters that share little get bases of their own.  [default: where it "
            "is smaller]",
            rich_help_panel=BANKS,
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name for each adapter, in order; repeated.  [default: as its folder or file]",
            rich_help_panel=BANKS,
        ),
    ] = None,
    any_base: Annotated[
        bool,
        typer.Option(
            "--any-base",
            help="Let adapters differ in what they call their base model.",
            rich_help_panel=BANKS,
        ),
    ] = False,
    route: Annotated[
        Literal["auto", "whole", "updated", "sketch", "apart"] | None,
        typer.Option(
            metavar="ROUTE",
            help="How large stacks are made small: auto, whole, updated, sketch or apart.",
            rich_help_panel=BANKS,
        ),
    ] = None,
    sketch: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="The directions that the route sketch keeps.",
            rich_help_panel=BANKS,
        ),
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="Show every adapter.", rich_help_panel=BANKS)
    ] = False,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Convert a LoRA adapter to LoTR: shared factors and one small core a layer.

    Ask for an error, an energy, a size or ranks. With `--format auto` every group gets the form
    that is smallest. The error shown is measured on what was written. Nothing of the size of the
    model is ever formed.

    Several adapters of one base become a bank: one file, from which `lotr export` takes any one.
    """
    rule = _rule(rank, rel_error, energy, total_error, max_params, max_bytes)
    if len(sources) == 1 and stack is None and not is_collection(sources[0]):
        _refuse(
            "is for several adapters; name more of them, or ask for a bank of one with --stack "
            "adapters",
            {
                "--each" if each else "--total": each is not None,
                "--cluster" if cluster else "--no-cluster": cluster is not None,
                "--name": name,
                "--any-base": any_base,
                "--route": route,
                "--sketch": sketch is not None,
                "--all": show_all,
            },
        )
        _convert_one(
            sources[0],
            output,
            rule,
            format=format or "lotr",
            to=to,
            min_rank=min_rank,
            max_rank=max_rank,
            keep=keep,
            method=method,
            group_by=group_by,
            dtype=dtype,
            backend=backend,
            device=device,
            force=force,
            as_json=as_json,
            quiet=quiet,
        )
        return
    _refuse(
        "is for one adapter, and these become a bank: leave it out",
        {
            "--energy": energy is not None,
            "--to lotr-peft": to != "file",
            "--min-rank": min_rank,
            "--max-rank": max_rank,
            "--keep": keep is not None,
            "--backend torch": backend != "numpy",
            "--device": device is not None,
        },
    )
    assert not isinstance(rule, Energy)
    convert_many(
        named_adapters(sources, name or None),
        output,
        rule,
        each=each,
        stack=stack or "auto",
        format=format or "auto",
        method=method,
        group_by=group_by,
        cluster=cluster is not False,
        dtype=dtype,
        route=route or "auto",
        sketch=sketch,
        any_base=any_base,
        force=force,
        show_all=show_all,
        as_json=as_json,
        quiet=quiet,
    )


def _refuse(why: str, given: Mapping[str, object]) -> None:
    """Refuse the first option that was given and has no meaning here."""
    for option, value in given.items():
        if value:
            raise OptionError(f"{option} {why}")


def _convert_one(
    source: Path,
    output: Path | None,
    rule: RankRule | TotalError,
    *,
    format: Literal["lotr", "auto", "truncated", "shared-in", "shared-out", "lotr-low-rank"],
    to: Literal["file", "lotr-peft"],
    min_rank: list[str] | None,
    max_rank: list[str] | None,
    keep: str | None,
    method: Literal["hooi", "st-hosvd", "hosvd"],
    group_by: str,
    dtype: str,
    backend: str,
    device: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    begun = time.perf_counter()
    ending = ".lotr.safetensors" if to == "file" else "-lotr-peft"
    destination = output or Path(f"{_plain_name(source)}{ending}")
    refuse_existing(destination, force=force)
    adapter = load_adapter(source)
    if not isinstance(adapter, LoRAAdapter):
        raise CheckpointError(
            f"{source} is a LoTR file already; export it to a LoRA first to convert it anew"
        )
    groups = group_modules(adapter, group_by)
    limits = asked_limits(min_rank, max_rank, groups)
    steps = len(groups)
    steps *= 2 if isinstance(rule, Budget | TotalError) else 1  # once to divide, once to make
    with progress(steps, quiet=quiet or as_json) as step:
        conversion = convert_adapter(
            adapter,
            rule,
            format=format,
            method=method,
            group_by=group_by,
            dtype=dtype,
            limits=limits,
            keep=keep,
            backend=backend,
            device=device,
            progress=step,
        )
        save = save_adapter if to == "file" else save_lotr_peft
        save(conversion.adapter, destination, force=force)
    sizes = file_size(source), file_size(destination)
    record = conversion_record(conversion, destination, sizes, time.perf_counter() - begun)
    show(record, lambda: conversion_text(record, asked_text(rule)), as_json=as_json, quiet=quiet)
    if not conversion.met:
        typer.echo(
            f"lotr: {record['dtype']} cannot hold the error asked for ({asked_text(rule)}); the "
            f"file has {record['relative_error']:.2g}: use --dtype auto or a wider dtype",
            err=True,
        )
        raise typer.Exit(NOT_MET)


def _plain_name(source: Path) -> str:
    """A folder's name, or a weights file's without its ending."""
    return source.stem if source.is_file() else source.resolve().name


def _rule(
    rank: str | None,
    rel_error: float | None,
    energy: float | None,
    total_error: float | None,
    max_params: int | None,
    max_bytes: str | None,
) -> RankRule | TotalError:
    """The one rule that was asked for."""
    given = [
        x for x in (rank, rel_error, energy, total_error, max_params, max_bytes) if x is not None
    ]
    if len(given) != 1:
        raise typer.BadParameter(
            "give exactly one of --rel-error, --total-error, --max-params, --max-bytes, --energy "
            "and --rank, such as --rel-error 0.05"
        )
    if energy is not None:
        return Energy(energy)
    if rank is None:
        return asked_rule(
            rel_error=rel_error,
            total_error=total_error,
            max_params=max_params,
            max_bytes=max_bytes,
        )
    parts = rank.split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise typer.BadParameter(f"--rank takes R or R1,R2, such as 32 or 32,48; found {rank!r}")
    return FixedRank(*(int(part) for part in parts))
