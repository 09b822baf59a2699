"""The commands that change a bank in place: append, drop, rename and compact."""

import time
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from lotr_tn.banks.bank import Bank
from lotr_tn.banks.changing.appending import append_adapters
from lotr_tn.banks.changing.compacting import compact_bank
from lotr_tn.banks.changing.editing import drop_adapters, rename_adapter
from lotr_tn.banks.file import is_bank, load_bank
from lotr_tn.cli.console import NOT_MET, DebugFlag, JsonFlag, QuietFlag, progress, show
from lotr_tn.cli.convert_many import require_paths
from lotr_tn.cli.questions import AnyBaseOption
from lotr_tn.doors.sources import named_adapters
from lotr_tn.errors import CheckpointError
from lotr_tn.report.bank_changes import (
    appending_record,
    appending_text,
    compacting_record,
    compacting_text,
    dropping_record,
    dropping_text,
    renaming_record,
    renaming_text,
)

__all__ = ["append", "compact", "drop", "rename"]

BankArgument: TypeAlias = Annotated[
    Path, typer.Argument(metavar="BANK", help="The bank; it is changed in place.")
]


def append(
    bank: BankArgument,
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="Adapters of the same base; a folder of them, or another bank."
        ),
    ],
    rel_error: Annotated[
        float | None,
        typer.Option(
            metavar="E", help="The error of each new adapter.  [default: as the bank was asked]"
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name for each new adapter, in order; repeated.  [default: as its folder or "
            "file]",
        ),
    ] = None,
    any_base: AnyBaseOption = False,
    show_all: Annotated[bool, typer.Option("--all", help="Show every new adapter.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Add adapters to a bank, without a change to those that it holds.

    A new one uses the bases of the bank, with as many directions more as its error needs. Errors
    are measured on what is stored.
    """
    begun = time.perf_counter()
    _open(bank)
    adapters = named_adapters(sources, name or None)
    require_paths(adapters)
    with progress(len(adapters), quiet=quiet or as_json) as step:
        done = append_adapters(
            bank, adapters, rel_error=rel_error, any_base=any_base, progress=step
        )
    record = appending_record(done, bank, rel_error, time.perf_counter() - begun)
    show(record, lambda: appending_text(record, show_all=show_all), as_json=as_json, quiet=quiet)
    if not done.met:
        typer.echo(
            f"lotr: the dtype of the bank, {record['dtype']}, cannot hold the error asked for (at "
            f"most {record['asked']:g}); a new adapter has {record['worst_error']:.2g}: ask for a "
            "larger error, or convert all adapters anew",
            err=True,
        )
        raise typer.Exit(NOT_MET)


def drop(
    bank: BankArgument,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Adapters of the bank.")],
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Remove adapters from a bank; the others stay as they are.

    The bases that all share stay too: lotr compact makes them smaller.
    """
    begun = time.perf_counter()
    _open(bank)
    done = drop_adapters(bank, names)
    record = dropping_record(done, bank, names, time.perf_counter() - begun)
    show(record, lambda: dropping_text(record), as_json=as_json, quiet=quiet)


def rename(
    bank: BankArgument,
    old: Annotated[str, typer.Argument(metavar="OLD", help="The name of an adapter.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Give an adapter of a bank another name."""
    begun = time.perf_counter()
    _open(bank)
    done = rename_adapter(bank, old, new)
    record = renaming_record(done, bank, (old, new), time.perf_counter() - begun)
    show(record, lambda: renaming_text(record), as_json=as_json, quiet=quiet)


def compact(
    bank: BankArgument,
    rel_error: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="What each adapter may lose in all.  [default: as the bank was asked]",
        ),
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show every adapter.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Find bases and ranks for a bank anew, after adapters were added and dropped.

    The originals are not needed. Each adapter keeps to the error asked for, over all changes since
    it was stored; one that was added with a smaller error may lose as much as the others.
    """
    begun = time.perf_counter()
    count = len(_open(bank))
    with progress(count, quiet=quiet or as_json) as step:
        done = compact_bank(bank, rel_error=rel_error, progress=step)
    record = compacting_record(done, bank, rel_error, time.perf_counter() - begun)
    show(record, lambda: compacting_text(record, show_all=show_all), as_json=as_json, quiet=quiet)
    if not done.met:
        typer.echo(
            f"lotr: an adapter of the bank may be {record['worst_bound']:.4g} from its original, "
            f"more than the {record['asked']:g} asked for; what was lost before cannot come back: "
            "ask for a larger error",
            err=True,
        )
        raise typer.Exit(NOT_MET)


def _open(path: Path) -> Bank:
    """The bank of a path; refused where it is something else."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if not is_bank(path):
        raise CheckpointError(
            f"{path} is no bank; make one with lotr convert of several adapters, such as "
            f"lotr convert A B --rel-error 0.05 -o history.lotr.safetensors"
        )
    return load_bank(path)
