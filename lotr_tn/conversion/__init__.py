"""One adapter in, one out: converted, exported, merged."""

from lotr_tn.conversion.convert import convert_adapter
from lotr_tn.conversion.merge import Merged, MergedModule, merge_adapters
from lotr_tn.conversion.outcome import Conversion, GroupConversion

__all__ = [
    "Conversion",
    "GroupConversion",
    "Merged",
    "MergedModule",
    "convert_adapter",
    "merge_adapters",
]
