"""The command `lotr inspect`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lotr_tn.adapters import LoTRAdapter
from lotr_tn.banks.bank import Bank
from lotr_tn.banks.file import is_bank, load_bank, verify_bank
from lotr_tn.cli.console import DebugFlag, JsonFlag, QuietFlag, file_size, show
from lotr_tn.doors import load_adapter
from lotr_tn.doors.loading import place_in_bank
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.files.container import read_container
from lotr_tn.report.bank import bank_record, bank_text
from lotr_tn.report.records import inspection_record
from lotr_tn.report.text import inspection_text

__all__ = ["inspect"]

NAMED = 6
"""Damaged tensors that are named."""


def inspect(
    source: Annotated[
        Path, typer.Argument(help="A PEFT LoRA folder or file, a LoTR file, or a bank.")
    ],
    group_by: Annotated[
        str, typer.Option("--group-by", help="kind, shape, or a regular expression.")
    ] = "kind",
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte of a bank and compare its checksums.")
    ] = False,
    show_all: Annotated[
        bool, typer.Option("--all", help="Show every adapter and every stack of a bank.")
    ] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Show what an adapter holds: its groups of modules, ranks, scale, and other tensors.

    Of a bank it lists the adapters, with the error of each and what each takes.
    """
    if is_bank(source):
        _inspect_bank(source, verify=verify, show_all=show_all, as_json=as_json, quiet=quiet)
        return
    if verify:
        raise OptionError(f"--verify compares the checksums of a bank; {source} is none")
    adapter = load_adapter(source)
    record = inspection_record(adapter, group_by, _size(source))
    text = adapter.config_text if isinstance(adapter, LoTRAdapter) else None
    config = json.loads(text) if text is not None else dict(adapter.config)  # pyright: ignore[reportAttributeAccessIssue]
    show(record, lambda: inspection_text(record, config), as_json=as_json, quiet=quiet)


def _size(source: Path) -> int:
    """Bytes of a file; of an adapter in a bank what only it takes."""
    place = place_in_bank(source)
    if place is None:
        return file_size(source)
    return load_bank(place[0]).figures(place[1]).own_bytes


def _inspect_bank(
    source: Path, *, verify: bool, show_all: bool, as_json: bool, quiet: bool
) -> None:
    bank = load_bank(source)
    verified = _verified(source) if verify else None
    record = bank_record(bank, source, file_size(source)) | {"verified": verified}
    config = _config(bank)
    show(
        record,
        lambda: bank_text(record, config, show_all=show_all),
        as_json=as_json,
        quiet=quiet,
    )


def _config(bank: Bank) -> dict[str, Any]:
    """The configuration of the first adapter."""
    name = bank.names[0]
    try:
        return json.loads(bank.config_text(name))
    except ValueError:
        raise CheckpointError(
            f"{bank.source} is damaged: the configuration of {name} is no JSON; restore it from a "
            "copy, and see with lotr inspect --verify what else is damaged"
        ) from None


def _verified(source: Path) -> int:
    """How many tensors a bank has, all of which are as they were written."""
    damaged = verify_bank(source)
    count = len(read_container(source).tensors)
    if damaged:
        left = len(damaged) - NAMED
        named = ", ".join(damaged[:NAMED]) + (f" and {left} more" if left > 0 else "")
        raise CheckpointError(
            f"{source} is damaged: {len(damaged)} of {count} tensors are not as they were written "
            f"({named}); restore it from a copy"
        )
    return count
