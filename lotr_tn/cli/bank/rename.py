"""The command `lotr bank rename`."""

from typing import Annotated

import typer

from lotr_tn.banks.changing.editing import rename_adapter
from lotr_tn.cli.bank.opening import ChangedBankArgument, opened
from lotr_tn.cli.console import Output
from lotr_tn.report.bank_changes import renaming_record, renaming_text


def rename(
    bank: ChangedBankArgument,
    old: Annotated[str, typer.Argument(metavar="OLD", help="The name of an adapter.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    *,
    out: Output,
) -> None:
    """Give an adapter of a bank another name."""
    opened(bank)
    done = rename_adapter(bank, old, new)
    out.show(renaming_record(done, bank, (old, new), out.seconds), renaming_text)
