"""The command `lotr inspect`."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from lotr_tn.adapters import LoTRAdapter
from lotr_tn.banks.file import is_bank, load_bank
from lotr_tn.cli.bank.show import show
from lotr_tn.cli.console import Output, shown
from lotr_tn.cli.questions import GroupByOption
from lotr_tn.doors import load_adapter
from lotr_tn.doors.loading import place_in_bank
from lotr_tn.doors.sources import is_collection, named_adapters
from lotr_tn.errors import OptionError
from lotr_tn.files.places import located
from lotr_tn.files.weights import file_size
from lotr_tn.report.records import inspection_record
from lotr_tn.report.several import folder_record, folder_text
from lotr_tn.report.text import inspection_text

EVERY = typer.Option("--all", help="Show every group; of several, every adapter and stack.")


def inspect(
    source: Annotated[
        Path,
        typer.Argument(
            help="A PEFT LoRA folder or file, a LoTR file, a folder of adapters, or a bank."
        ),
    ],
    group_by: GroupByOption = "kind",
    verify: Annotated[bool, typer.Option("--verify", hidden=True)] = False,
    *,
    out: Annotated[Output, {"all": EVERY}],
) -> None:
    """Show what an adapter holds: its groups of modules, ranks, scale, and other tensors.

    Of a bank it lists the adapters, with the error of each and what each takes; of a folder of
    adapters each in a line.
    """
    if verify:
        raise OptionError(
            "a bank is verified by a command of its own: lotr bank verify "
            f"{shlex.quote(str(source))}"
        )
    if is_bank(source):
        show(source, out=out)
        return
    if is_collection(source):
        found = named_adapters([source])
        records = {
            name: inspection_record(found[name], group_by, file_size(file))
            for name, file in zip(found, found.files, strict=True)
        }
        out.show(
            folder_record(source, records),
            lambda record: folder_text(record, show_all=out.all),
        )
        return
    adapter, place = load_adapter(source), place_in_bank(source)
    size = (
        file_size(located(source))
        if place is None
        else load_bank(place[0]).figures(place[1]).own_bytes
    )
    record = inspection_record(adapter, group_by, size)
    lotr = isinstance(adapter, LoTRAdapter)
    config = json.loads(adapter.config_text) if lotr else dict(adapter.config)
    out.show(record, lambda record: inspection_text(record, shown(config), show_all=out.all))
