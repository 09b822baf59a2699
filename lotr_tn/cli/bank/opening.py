"""The bank that a command is about, and the adapters that are to come into one."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from lotr_tn.banks.bank import Bank
from lotr_tn.banks.file import is_bank, load_bank
from lotr_tn.errors import CheckpointError
from lotr_tn.files.places import located

BankArgument: TypeAlias = Annotated[Path, typer.Argument(metavar="BANK", help="The bank.")]
ChangedBankArgument: TypeAlias = Annotated[
    Path, typer.Argument(metavar="BANK", help="The bank; it is changed in place.")
]


def opened(path: Path) -> Bank:
    """The bank of a path; refused where it is something else."""
    require_paths([path])
    if not is_bank(path):
        raise CheckpointError(
            f"{path} is no bank; make one of several adapters, such as "
            "lotr bank make A B --rel-error 0.05 -o history.lotr.safetensors"
        )
    return load_bank(path)


def require_paths(paths: Iterable[Path]) -> None:
    """Refuse a path that is not there before hours are spent on others."""
    for path in paths:
        if not located(path).exists():
            raise CheckpointError(f"{path}: no such file or folder")
