"""Banks: many adapters of one base in one file."""

from lotr_tn.checkpoints.bank.appending import Appended, append_adapters
from lotr_tn.checkpoints.bank.bank import Bank, Figures
from lotr_tn.checkpoints.bank.compacting import Compacted, compact_bank
from lotr_tn.checkpoints.bank.conversion import BankConversion, convert_adapters
from lotr_tn.checkpoints.bank.editing import Edited, drop_adapters, rename_adapter
from lotr_tn.checkpoints.bank.file import load_bank, verify_bank
from lotr_tn.checkpoints.bank.joint import StackChoice

__all__ = [
    "Appended",
    "Bank",
    "BankConversion",
    "Compacted",
    "Edited",
    "Figures",
    "StackChoice",
    "append_adapters",
    "compact_bank",
    "convert_adapters",
    "drop_adapters",
    "load_bank",
    "rename_adapter",
    "verify_bank",
]
