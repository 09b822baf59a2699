"""The command `lotr export`."""

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from lotr_tn.checkpoints import LoTRAdapter, load_adapter, to_lora
from lotr_tn.checkpoints.peft import save_peft
from lotr_tn.checkpoints.writing import refuse_existing
from lotr_tn.cli.console import DebugFlag, ForceFlag, JsonFlag, QuietFlag, file_size, show
from lotr_tn.cli.convert import DtypeOption
from lotr_tn.errors import CheckpointError
from lotr_tn.report.records import export_record
from lotr_tn.report.text import export_text

__all__ = ["export"]


def export(
    source: Annotated[Path, typer.Argument(help="A LoTR file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The PEFT folder.  [default: NAME-peft]")
    ] = None,
    ranks: Annotated[
        Literal["uniform", "minimal"],
        typer.Option(help="uniform loads everywhere; minimal is smaller and needs rank_pattern."),
    ] = "uniform",
    dtype: DtypeOption = "auto",
    extras: Annotated[
        bool, typer.Option("--extras/--no-extras", help="Write heads, biases and the like too.")
    ] = True,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Write a LoTR file as a PEFT LoRA folder that every loader reads alike.

    The scale is inside the factors (lora_alpha = r), all modules have one rank, and every target is
    listed by its full path. Some servers refuse heads and biases: --no-extras leaves them out.
    """
    begun = time.perf_counter()
    name = source.name.removesuffix(".safetensors").removesuffix(".lotr")
    destination = output or Path(f"{name}-peft")
    refuse_existing(destination, force=force)
    adapter = load_adapter(source)
    if not isinstance(adapter, LoTRAdapter):
        raise CheckpointError(f"{source} is a PEFT LoRA already; needed a LoTR file")
    exported = to_lora(adapter, ranks=ranks, dtype=dtype)
    save_peft(exported.adapter, destination, force=force, extras=extras)
    sizes = file_size(source), file_size(destination)
    record = export_record(exported, destination, sizes, time.perf_counter() - begun)
    show(record, lambda: export_text(record, ranks == "uniform"), as_json=as_json, quiet=quiet)
