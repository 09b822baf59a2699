"""The command `lotr convert`."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from lotr_tn.adapters.asked import Asked, Where
from lotr_tn.cli.bank.make import Making
from lotr_tn.cli.commands import HIDDEN, typed
from lotr_tn.cli.console import REPLACE, Output, missed
from lotr_tn.cli.questions import (
    BestGroupByOption,
    CodingOption,
    DtypeOption,
    EachLayerOption,
    FormatOption,
    MaxRankOption,
    MethodOption,
    MinRankOption,
    OrEnergy,
    asked_limits,
    asked_text,
    require_error,
)
from lotr_tn.conversion.convert import Converting
from lotr_tn.doors import load_adapter, save_adapter
from lotr_tn.doors.sources import is_collection
from lotr_tn.errors import OptionError
from lotr_tn.files.dialects.lotr_peft import save_lotr_peft
from lotr_tn.files.places import located, name_of
from lotr_tn.files.weights import file_size
from lotr_tn.files.writing import refuse_existing
from lotr_tn.linalg.ranks import FixedRank
from lotr_tn.report.records import as_written, conversion_record
from lotr_tn.report.text import conversion_text

EVERY = typer.Option("--all", help="Show every group.")
PANELS = {
    "How much": "rel_error total_error max_params max_bytes rank",
    "Which form": "format",
    "Where it is written": "destination",
}


def convert(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(metavar="PATH", hidden=True, help="A PEFT LoRA folder or weights file."),
    ],
    others: Annotated[list[Path] | None, typer.Argument(hidden=True)] = None,
    *,
    how_much: OrEnergy,
    format: FormatOption = None,
    to: Annotated[
        Literal["file", "lotr-peft"],
        typer.Option(help="A LoTR file, or a folder to train on in PEFT."),
    ] = "file",
    destination: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The LoTR file; else NAME.lotr.safetensors."),
    ] = None,
    each_layer: EachLayerOption = False,
    min_rank: MinRankOption = None,
    max_rank: MaxRankOption = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Modules to keep exactly as they are, by their paths."),
    ] = None,
    method: MethodOption = "hooi",
    group_by: BestGroupByOption = "auto",
    dtype: DtypeOption = "auto",
    coding: CodingOption = "none",
    backend: Annotated[
        Literal["numpy", "torch"], typer.Option(help="The library that computes.")
    ] = "numpy",
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="A device of torch, such as cuda.")
    ] = None,
    making: Annotated[Making, HIDDEN],
    out: Annotated[Output, {"force": REPLACE, "all": EVERY}],
) -> None:
    """Convert a LoRA adapter (a PEFT folder or weights file) to LoTR.

    LoTR stores shared factors and one small core a layer. Ask for an error, an energy, a size or
    ranks. The error shown is measured on what was written. Nothing of the size of the model is ever
    formed. Several adapters of one base go into a bank: lotr bank make.
    """
    if others or making != Making() or is_collection(source):
        named = "" if destination else " -o NAME.lotr.safetensors"
        raise OptionError(
            "lotr convert takes one adapter; several are put into a bank: lotr bank make "
            f"{shlex.join(typed(context))}{named}"
        )
    source = located(source)
    rule = how_much.any_rule()
    require_error(each_layer, rule)
    asked = Asked(
        rule,
        format or _default_form(rule, to),
        method,
        group_by,
        dtype,
        asked_limits(min_rank, max_rank),
        keep,
        each_layer,
        coding,
    )
    if coding != "none" and to != "file":
        raise OptionError("--coding is for a LoTR file; a folder to train on holds numbers")
    ending = ".lotr.safetensors" if to == "file" else "-lotr-peft"
    destination = destination or Path(f"{name_of(source)}{ending}")
    refuse_existing(destination, force=out.force)
    converting = Converting.of(load_adapter(source), asked, Where(backend, device))
    with out.progress(converting.steps) as step:
        conversion = converting.run(step)
        save = save_adapter if to == "file" else save_lotr_peft
        save(conversion.adapter, destination, force=out.force)
    sizes = file_size(source), file_size(destination)
    record = conversion_record(conversion, destination, sizes, out.seconds)
    if to != "file":
        record = as_written(record, load_adapter(destination))
    ranks = rule.pair if isinstance(rule, FixedRank) else None
    out.show(
        record, lambda record: conversion_text(record, asked_text(rule), ranks, show_all=out.all)
    )
    if not conversion.met:
        missed(
            f"{record['dtype']} cannot hold the error asked for ({asked_text(rule)}); the file has "
            f"{record['relative_error']:.2g}: use --dtype auto or a wider dtype"
        )


def _default_form(rule: object, to: str) -> str:
    """The smallest of all; LoTR where ranks are told, or where it is to be trained."""
    return "lotr" if isinstance(rule, FixedRank) or to != "file" else "auto"
