"""The command `lotr bank drop`."""

from typing import Annotated

import typer

from lotr_tn.banks.changing.editing import drop_adapters
from lotr_tn.cli.bank.opening import ChangedBankArgument, opened
from lotr_tn.cli.console import Output
from lotr_tn.report.bank_changes import dropping_record, dropping_text


def drop(
    bank: ChangedBankArgument,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Adapters of the bank.")],
    *,
    out: Output,
) -> None:
    """Remove adapters from a bank; the others stay as they are.

    The bases that all share stay too: lotr bank compact makes them smaller.
    """
    opened(bank)
    done = drop_adapters(bank, names)
    out.show(dropping_record(done, bank, names, out.seconds), dropping_text)
