"""The command `lotr bank compact`."""

from typing import Annotated

import typer

from lotr_tn.banks.changing.compacting import compact_bank
from lotr_tn.cli.bank.opening import ChangedBankArgument, opened
from lotr_tn.cli.console import Output, missed
from lotr_tn.cli.questions import error_rule
from lotr_tn.cli.values import share
from lotr_tn.report.bank_changes import compacting_record, compacting_text

EVERY = typer.Option("--all", help="Show every adapter.")


def compact(
    bank: ChangedBankArgument,
    rel_error: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            parser=share,
            help="What each adapter may lose in all.  [default: as the bank was asked]",
        ),
    ] = None,
    *,
    out: Annotated[Output, {"all": EVERY}],
) -> None:
    """Find bases and ranks for a bank anew, after adapters were added and dropped.

    The originals are not needed. Each adapter keeps to the error asked for, over all changes since
    it was stored; one that was added with a smaller error may lose as much as the others.
    """
    with out.progress(len(opened(bank))) as step:
        done = compact_bank(bank, rule=error_rule(rel_error), progress=step)
    record = compacting_record(done, bank, rel_error, out.seconds)
    out.show(record, lambda record: compacting_text(record, show_all=out.all))
    if not done.met:
        missed(
            f"an adapter of the bank may be {record['worst_bound']:.4g} from its original, more "
            f"than the {record['asked']:g} asked for; what was lost before cannot come back: ask "
            "for a larger error"
        )
