"""Banks: many adapters of one base in one file."""

from lotr_tn.banks.bank import Bank, Figures
from lotr_tn.banks.changing.appending import Appended, add_adapters
from lotr_tn.banks.changing.compacting import Compacted, compact_bank
from lotr_tn.banks.changing.editing import Edited, drop_adapters, rename_adapter
from lotr_tn.banks.file import load_bank, verify_bank
from lotr_tn.banks.making.conversion import BankConversion, make_bank
from lotr_tn.banks.making.outcome import StackChoice

__all__ = [
    "Appended",
    "Bank",
    "BankConversion",
    "Compacted",
    "Edited",
    "Figures",
    "StackChoice",
    "add_adapters",
    "compact_bank",
    "drop_adapters",
    "load_bank",
    "make_bank",
    "rename_adapter",
    "verify_bank",
]
