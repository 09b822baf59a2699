"""The command `lotr export`."""

import shlex
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lotr_tn.adapters import LoTRAdapter, to_lora
from lotr_tn.banks.bank import Bank
from lotr_tn.banks.file import is_bank, load_bank
from lotr_tn.cli.console import (
    DebugFlag,
    ForceFlag,
    JsonFlag,
    QuietFlag,
    file_size,
    progress,
    show,
)
from lotr_tn.cli.questions import DtypeOption
from lotr_tn.doors import load_adapter
from lotr_tn.doors.loading import place_in_bank
from lotr_tn.doors.sources import folder_names
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.files.dialects.peft import save_peft
from lotr_tn.files.writing import refuse_existing
from lotr_tn.report.bank import bank_export_record, bank_export_text, bank_exports_text
from lotr_tn.report.records import export_record
from lotr_tn.report.text import export_text

__all__ = ["export"]

Ranks = Literal["uniform", "minimal"]


def export(
    source: Annotated[Path, typer.Argument(help="A LoTR file, or a bank.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The PEFT folder.  [default: NAME-peft]")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="NAME", help="The adapter to take out of a bank.")
    ] = None,
    export_all: Annotated[
        bool,
        typer.Option("--all", help="Take all adapters out of a bank, each into OUTPUT/NAME."),
    ] = False,
    ranks: Annotated[
        Ranks,
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

    Of a bank name the adapter, or take --all.
    """
    begun = time.perf_counter()
    name = source.name.removesuffix(".safetensors").removesuffix(".lotr")
    bank, adapter = _bank(source, adapter, export_all=export_all)
    if bank is None:
        destination = output or Path(f"{name}-peft")
        refuse_existing(destination, force=force)
        read = load_adapter(source)
        if not isinstance(read, LoTRAdapter):
            raise CheckpointError(f"{source} is a PEFT LoRA already; needed a LoTR file")
        exported = to_lora(read, ranks=ranks, dtype=dtype)
        save_peft(exported.adapter, destination, force=force, extras=extras)
        sizes = file_size(source), file_size(destination)
        record = export_record(exported, destination, sizes, time.perf_counter() - begun)
        show(record, lambda: export_text(record, ranks == "uniform"), as_json=as_json, quiet=quiet)
        return

    def written(name: str, destination: Path) -> dict[str, Any]:
        begun = time.perf_counter()
        exported = to_lora(bank.load(name), ranks=ranks, dtype=dtype)
        save_peft(exported.adapter, destination, force=force, extras=extras)
        seconds = time.perf_counter() - begun
        size = file_size(destination)
        return bank_export_record(bank, name, exported, destination, size, seconds)

    if adapter is not None:
        bank.place(adapter)
        destination = output or Path(f"{folder_names([adapter])[adapter]}-peft")
        refuse_existing(destination, force=force)
        record = written(adapter, destination)
        text = bank_export_text(record, ranks == "uniform")
        show(record, lambda: text, as_json=as_json, quiet=quiet)
        return
    destination = output or Path(f"{name}-peft")
    refuse_existing(destination, force=force)
    if destination.exists() and not destination.is_dir():
        raise CheckpointError(f"{destination} is a file; name a folder to write")
    destination.mkdir(exist_ok=True)
    records = []
    with progress(len(bank), quiet=quiet or as_json) as step:
        for name, folder in folder_names(bank.names).items():
            step(name)
            records.append(written(name, destination / folder))
    record = {
        "adapters": records,
        "bytes_before": file_size(source),
        "bytes_after": sum(one["bytes_after"] for one in records),
        "seconds": time.perf_counter() - begun,
        "destination": str(destination),
    }
    show(record, lambda: bank_exports_text(record), as_json=as_json, quiet=quiet)


def _bank(source: Path, adapter: str | None, *, export_all: bool) -> tuple[Bank | None, str | None]:
    """The bank, if it is one, and the adapter that is asked for; None for all."""
    place = place_in_bank(source)
    if not is_bank(source):
        if adapter is not None or export_all:
            option = "--all" if export_all else "--adapter"
            raise OptionError(f"{option} is for banks, which hold many adapters; {source} is none")
        return (None, None) if place is None else (load_bank(place[0]), place[1])
    bank = load_bank(source)
    if (adapter is None) != export_all:
        example = shlex.quote(bank.names[0])
        found = f"{source} is a bank of {len(bank)} adapters"
        raise OptionError(
            f"{found}; name one, such as --adapter {example}, or take them all with --all"
            if adapter is None
            else f"{found}; give --adapter for one or --all for all of them, not both"
        )
    return bank, adapter
