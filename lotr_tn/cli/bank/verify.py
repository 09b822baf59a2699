"""The command `lotr bank verify`."""

from pathlib import Path

from lotr_tn.banks.file import verify_bank
from lotr_tn.cli.bank.opening import BankArgument, opened
from lotr_tn.cli.bank.show import record_of
from lotr_tn.cli.console import Output
from lotr_tn.errors import CheckpointError
from lotr_tn.files.container import read_container
from lotr_tn.report.bank import verification_text

NAMED = 6  # damaged tensors that are named


def verify(bank: BankArgument, *, out: Output) -> None:
    """Read every byte of a bank, and compare its checksums."""
    out.show(record_of(opened(bank), bank, _verified(bank)), verification_text)


def _verified(bank: Path) -> int:
    """How many tensors a bank has, all of which are as they were written."""
    damaged = verify_bank(bank)
    count = len(read_container(bank).tensors)
    if damaged:
        left = len(damaged) - NAMED
        named = ", ".join(damaged[:NAMED]) + (f" and {left} more" if left > 0 else "")
        raise CheckpointError(
            f"{bank} is damaged: {len(damaged)} of {count} tensors are not as they were written "
            f"({named}); restore it from a copy"
        )
    return count
