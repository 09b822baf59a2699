"""The command `lotr bank add`."""

from pathlib import Path
from typing import Annotated

import typer

from lotr_tn.banks.changing.appending import add_adapters
from lotr_tn.cli.bank.opening import ChangedBankArgument, opened, require_paths
from lotr_tn.cli.console import Output, missed
from lotr_tn.cli.questions import AnyBaseOption, MapPrefixOption, asked_prefixes, error_rule
from lotr_tn.cli.values import share
from lotr_tn.doors.sources import named_adapters
from lotr_tn.report.bank_changes import appending_record, appending_text

EVERY = typer.Option("--all", help="Show every new adapter.")


def add(
    bank: ChangedBankArgument,
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="Adapters of the same base; a folder of them, or another bank."
        ),
    ],
    rel_error: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            parser=share,
            help="The error of each new adapter.  [default: as the bank was asked]",
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
    map_prefix: MapPrefixOption = None,
    *,
    out: Annotated[Output, {"all": EVERY}],
) -> None:
    """Add adapters to a bank, without a change to those that it holds.

    A new one uses the bases of the bank, with as many directions more as its error needs. Errors
    are measured on what is stored.
    """
    opened(bank)
    adapters = named_adapters(sources, name or None, prefixes=asked_prefixes(map_prefix))
    require_paths(adapters.files)
    with out.progress(len(adapters)) as step:
        done = add_adapters(
            bank, adapters, rule=error_rule(rel_error), any_base=any_base, progress=step
        )
    record = appending_record(done, bank, rel_error, out.seconds)
    out.show(record, lambda record: appending_text(record, show_all=out.all))
    if not done.met:
        missed(
            f"the dtype of the bank, {record['dtype']}, cannot hold the error asked for (at most "
            f"{record['asked']:g}); a new adapter has {record['worst_error']:.2g}: ask for a "
            "larger error, or convert all adapters anew"
        )
