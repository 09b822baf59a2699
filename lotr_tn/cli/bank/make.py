"""The command `lotr bank make`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lotr_tn.banks.making.conversion import make_bank
from lotr_tn.cli.bank.opening import require_paths
from lotr_tn.cli.console import REPLACE, Output, missed
from lotr_tn.cli.questions import (
    AnyBaseOption,
    CodingOption,
    DtypeOption,
    FormatOption,
    GroupByOption,
    MapPrefixOption,
    MethodOption,
    OrRanks,
    asked_prefixes,
)
from lotr_tn.cli.values import share
from lotr_tn.doors.sources import named_adapters
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.files.weights import file_size
from lotr_tn.files.writing import refuse_existing
from lotr_tn.linalg.ranks import TotalError
from lotr_tn.report.bank import bank_conversion_record, bank_conversion_text, bank_question_text

PANELS = {
    "How much": "rel_error total_error max_params max_bytes rank",
    "Which form": "format stack",
    "Where it is written": "destination",
}
EACH = typer.Option(metavar="E", parser=share, help="Least size, each adapter within this error.")
ALL = typer.Option(metavar="E", parser=share, help="Least size, all together within this error.")
EVERYONE = typer.Option("--all", help="Show every adapter.")
EVERY = typer.Option(metavar="R | R1,R2", help="These ranks for every stack.")


@dataclass(frozen=True)
class Making:
    """How adapters are put together."""

    each: Annotated[
        bool | None,
        typer.Option(
            "--each/--total",
            help="Whether each adapter keeps to the error, or all together.  [default: each]",
        ),
    ] = None
    stack: Annotated[
        Literal["auto", "adapters", "layers", "all"] | None,
        typer.Option(
            metavar="WAY",
            help="adapters, layers, all, or auto (the smallest of them). It says what shares "
            "factors: a module over the adapters, over layers too, or a shape.",
        ),
    ] = None
    cluster: Annotated[
        bool | None,
        typer.Option(
            "--cluster/--no-cluster",
            help="Whether adapters that share little get bases of their own.  [default: where it "
            "is smaller]",
        ),
    ] = None
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name for each adapter, in order; repeated.  [default: as its folder or file]",
        ),
    ] = None
    any_base: AnyBaseOption = False
    map_prefix: MapPrefixOption = None
    route: Annotated[
        Literal["auto", "whole", "updated", "sketch", "apart"] | None,
        typer.Option(
            metavar="ROUTE",
            help="How large stacks are made small: auto, whole, updated, sketch or apart.",
        ),
    ] = None
    sketch: Annotated[
        int | None, typer.Option(metavar="K", help="The directions that the route sketch keeps.")
    ] = None


def make(
    sources: Annotated[list[Path], typer.Argument(metavar="PATH...", hidden=True)],
    *,
    asked: Annotated[OrRanks, {"rel_error": EACH, "total_error": ALL, "rank": EVERY}],
    making: Making,
    format: FormatOption = None,
    destination: Annotated[
        Path | None, typer.Option("--output", "-o", help="The bank, as NAME.lotr.safetensors.")
    ] = None,
    method: MethodOption = "hooi",
    group_by: GroupByOption = "kind",
    dtype: DtypeOption = "auto",
    coding: CodingOption = "none",
    out: Annotated[Output, {"force": REPLACE, "all": EVERYONE}],
) -> None:
    """Put adapters of one base into one file with shared factors: a bank."""
    rule = asked.rule()
    adapters = named_adapters(
        sources, making.name or None, prefixes=asked_prefixes(making.map_prefix)
    )
    if destination is None:
        raise OptionError(
            f"{len(adapters)} adapters become one file; name it, such as "
            "-o history.lotr.safetensors"
        )
    if destination.suffix != ".safetensors":
        raise CheckpointError(
            f"{destination} must end in .safetensors, such as {destination.name}.lotr.safetensors"
        )
    if making.each and isinstance(rule, TotalError):
        raise OptionError(
            "--total-error is the error of all adapters together; for the error of each, give "
            "--rel-error"
        )
    refuse_existing(destination, force=out.force)
    require_paths(adapters.files)
    before = sum(file_size(path) for path in adapters.files)
    with out.progress(len(adapters)) as step:
        conversion = make_bank(
            adapters,
            destination,
            rule,
            each=making.each is not False,
            stack=making.stack or "auto",
            format=format or "auto",
            method=method,
            group_by=group_by,
            cluster=making.cluster is not False,
            dtype=dtype,
            coding=coding,
            route=making.route or "auto",
            sketch=making.sketch,
            any_base=making.any_base,
            force=out.force,
            progress=step,
        )
    sizes = before, file_size(destination)
    record = bank_conversion_record(conversion, destination, sizes, out.seconds)
    out.show(record, lambda record: bank_conversion_text(record, show_all=out.all))
    if not conversion.met:
        _missed(record, making.sketch)


def _missed(record: dict[str, Any], sketch: int | None) -> None:
    what, instead = record["dtype"], "--dtype auto or a wider dtype"
    if sketch is not None:
        what, instead = f"a sketch of {sketch} directions", "a larger --sketch or --route auto"
    missed(
        f"{what} cannot hold the error asked for ({bank_question_text(record['asked'])}); the file "
        f"has {record['worst_error']:.2g} at worst: use {instead}"
    )
