"""The command `lotr bank show`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lotr_tn.banks.bank import Bank
from lotr_tn.cli.bank.opening import BankArgument, opened
from lotr_tn.cli.console import Output, shown
from lotr_tn.errors import CheckpointError
from lotr_tn.files.weights import file_size
from lotr_tn.report.bank import bank_record, bank_text

EVERY = typer.Option("--all", help="Show every adapter and every stack.")


def show(bank: BankArgument, *, out: Annotated[Output, {"all": EVERY}]) -> None:
    """Show what a bank holds: its adapters with the error of each, and its stacks."""
    held = opened(bank)
    config = _config(held)
    out.show(
        record_of(held, bank), lambda record: bank_text(record, shown(config), show_all=out.all)
    )


def record_of(bank: Bank, path: Path, verified: int | None = None) -> dict[str, Any]:
    """What is told of a bank in JSON; `verified` tensors are as they were written."""
    return bank_record(bank, path, file_size(path)) | {"verified": verified}


def _config(bank: Bank) -> dict[str, Any]:
    """The configuration of the first adapter."""
    name = bank.names[0]
    try:
        return json.loads(bank.config_text(name))
    except ValueError:
        raise CheckpointError(
            f"{bank.source} is damaged: the configuration of {name} is no JSON; restore it from a "
            "copy, and see with lotr bank verify what else is damaged"
        ) from None
