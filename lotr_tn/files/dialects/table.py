"""The formats of adapter files that are known, in the order in which they are tried."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lotr_tn.adapters.adapter import Adapter
from lotr_tn.files.dialects.contents import Contents
from lotr_tn.files.dialects.lotr_peft import is_lotr_peft, load_lotr_peft, save_lotr_peft
from lotr_tn.files.dialects.native import is_native, load_native, save_native
from lotr_tn.files.dialects.peft import load_peft, save_peft
from lotr_tn.files.dialects.tt_lora import is_tt_lora, load_tt_lora


class Write(Protocol):
    """Writes an adapter to a path, all or nothing."""

    def __call__(self, adapter: Any, path: Path, *, force: bool) -> None:
        """Raises CheckpointError where the target exists or cannot be written."""


@dataclass(frozen=True)
class Dialect:
    """One format of files."""

    name: str  # of the format
    # whether contents are in it, from names, metadata and configuration alone
    matches: Callable[[Contents], bool]
    read: Callable[[Path], Adapter]  # the adapter at a path
    write: Write | None  # the other way; None where nothing is written in it


DIALECTS = (
    Dialect("lotr", is_native, load_native, save_native),
    Dialect("lotr-peft", is_lotr_peft, load_lotr_peft, save_lotr_peft),
    Dialect("tt-lora", is_tt_lora, load_tt_lora, None),
    Dialect("peft", lambda contents: True, load_peft, save_peft),  # says what else it may be
)


def dialect_of(contents: Contents) -> Dialect:
    """The first dialect that matches."""
    return next(dialect for dialect in DIALECTS if dialect.matches(contents))
