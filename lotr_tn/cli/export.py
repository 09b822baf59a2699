"""The command `lotr export`."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from lotr_tn.adapters import LoTRAdapter, to_lora
from lotr_tn.banks.file import is_bank
from lotr_tn.cli.commands import typed
from lotr_tn.cli.console import REPLACE, Output
from lotr_tn.cli.questions import DtypeOption
from lotr_tn.doors import load_adapter
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.files.dialects.peft import save_peft
from lotr_tn.files.places import name_of
from lotr_tn.files.weights import file_size
from lotr_tn.files.writing import refuse_existing
from lotr_tn.report.records import export_record
from lotr_tn.report.text import export_text


@dataclass(frozen=True)
class Exporting:
    """How LoRAs are written."""

    ranks: Annotated[
        Literal["uniform", "minimal"],
        typer.Option(help="uniform loads everywhere; minimal is smaller and needs rank_pattern."),
    ] = "uniform"
    dtype: DtypeOption = "auto"
    extras: Annotated[
        bool, typer.Option("--extras/--no-extras", help="Write heads, biases and the like too.")
    ] = True


def export(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A LoTR file, or BANK/NAME.")],
    destination: Annotated[
        Path | None, typer.Option("--output", "-o", help="The PEFT folder.  [default: NAME-peft]")
    ] = None,
    adapter: Annotated[str | None, typer.Option(hidden=True)] = None,
    *,
    how: Exporting,
    out: Annotated[Output, {"force": REPLACE, "all": typer.Option("--all", hidden=True)}],
) -> None:
    """Write a LoTR file as a PEFT LoRA folder that every loader reads alike.

    The scale is inside the factors (lora_alpha = r), all modules have one rank, and every target is
    listed by its full path. Some servers refuse heads and biases: --no-extras leaves them out.
    """
    if adapter is not None or out.all or is_bank(source):
        words = [word for word in typed(context) if word != "--adapter"]
        name = "" if adapter is not None or out.all else " NAME"
        raise OptionError(
            "lotr export takes one adapter; out of a bank they are taken by lotr bank export "
            f"{shlex.join(words)}{name}"
        )
    destination = destination or Path(f"{name_of(source)}-peft")
    refuse_existing(destination, force=out.force)
    read = load_adapter(source)
    if not isinstance(read, LoTRAdapter):
        raise CheckpointError(f"{source} is a PEFT LoRA already; needed a LoTR file")
    exported = to_lora(read, ranks=how.ranks, dtype=how.dtype)
    save_peft(exported.adapter, destination, force=out.force, extras=how.extras)
    sizes = file_size(source), file_size(destination)
    record = export_record(exported, destination, sizes, out.seconds)
    out.show(record, lambda record: export_text(record, how.ranks == "uniform"))
