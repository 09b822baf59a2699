"""The command `lotr bank export`."""

import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from lotr_tn.adapters import to_lora
from lotr_tn.banks.bank import Bank
from lotr_tn.cli.bank.opening import BankArgument, opened
from lotr_tn.cli.console import REPLACE, Output
from lotr_tn.cli.export import Exporting
from lotr_tn.doors.sources import folder_names
from lotr_tn.errors import CheckpointError, LotrError, OptionError
from lotr_tn.files.dialects.peft import save_peft
from lotr_tn.files.places import name_of
from lotr_tn.files.weights import file_size
from lotr_tn.files.writing import refuse_existing
from lotr_tn.report.bank_export import bank_export_record, bank_export_text, bank_exports_text

EVERY = typer.Option("--all", help="Every adapter of the bank.")


def export(
    bank: BankArgument,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Adapters of the bank; or take --all."),
    ] = None,
    destination: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The folder; of several, one that gets a folder for each.  [default: NAME-peft]",
        ),
    ] = None,
    *,
    how: Exporting,
    out: Annotated[Output, {"force": REPLACE, "all": EVERY}],
) -> None:
    """Take adapters out of a bank, each as a PEFT LoRA folder that every loader reads alike."""
    held = opened(bank)
    chosen = _chosen(held, bank, names or [], every=out.all)

    def written(name: str, folder: Path) -> dict[str, Any]:
        begun = time.perf_counter()
        exported = to_lora(held.load(name), ranks=how.ranks, dtype=how.dtype)
        save_peft(exported.adapter, folder, force=out.force, extras=how.extras)
        seconds = time.perf_counter() - begun
        return bank_export_record(held, name, exported, folder, file_size(folder), seconds)

    if len(chosen) == 1 and not out.all:
        (name,) = chosen
        destination = destination or Path(f"{folder_names([name])[name]}-peft")
        refuse_existing(destination, force=out.force)
        uniform = how.ranks == "uniform"
        out.show(written(name, destination), lambda record: bank_export_text(record, uniform))
        return
    destination = destination or Path(f"{name_of(bank)}-peft")
    refuse_existing(destination, force=out.force)
    if destination.exists() and not destination.is_dir():
        raise CheckpointError(f"{destination} is a file; name a folder to write")
    new, records = not destination.exists(), []
    destination.mkdir(exist_ok=True)
    try:
        with out.progress(len(chosen)) as step:
            for name, folder in folder_names(chosen).items():
                step(name)
                records.append(written(name, destination / folder))
    except LotrError as error:
        if not records:
            raise
        raise CheckpointError(
            f"{error}; {len(records)} of {len(chosen)} adapters were written to {destination}"
        ) from None
    finally:
        if new and not records:
            with suppress(OSError):
                destination.rmdir()
    record = {
        "adapters": records,
        "bytes_before": file_size(bank),
        "bytes_after": sum(one["bytes_after"] for one in records),
        "seconds": out.seconds,
        "destination": str(destination),
    }
    out.show(record, bank_exports_text)


def _chosen(held: Bank, bank: Path, names: Sequence[str], *, every: bool) -> Sequence[str]:
    """The adapters that are asked for, all of which the bank has."""
    if bool(names) == every:
        example = shlex.quote(held.names[0])
        found = f"{bank} is a bank of {len(held)} adapters"
        raise OptionError(
            f"{found}; give names or --all for all of them, not both"
            if every
            else f"{found}; name one, such as {example}, or take them all with --all"
        )
    for name in names:
        held.place(name)
    return list(dict.fromkeys(names)) or held.names
