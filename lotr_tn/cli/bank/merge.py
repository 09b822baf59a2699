"""The command `lotr bank merge`."""

from typing import Annotated

from lotr_tn.cli.bank.opening import BankArgument, opened
from lotr_tn.cli.console import REPLACE, Output
from lotr_tn.cli.merge import Mixing, mixed
from lotr_tn.cli.questions import asked_prefixes
from lotr_tn.doors.sources import named_adapters
from lotr_tn.files.writing import refuse_existing


def merge(bank: BankArgument, *, how: Mixing, out: Annotated[Output, {"force": REPLACE}]) -> None:
    """Merge adapters of a bank into one LoRA, as lotr merge does; --weights says which."""
    refuse_existing(how.destination, force=out.force)
    opened(bank)
    mixed(named_adapters([bank], prefixes=asked_prefixes(how.map_prefix)), how, out)
