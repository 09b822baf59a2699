"""One adapter in, one out: converted, exported, merged."""

from lotr_tn.conversion.convert import Conversion, GroupConversion, convert_adapter
from lotr_tn.conversion.merge import Merged, MergedModule, merge_adapters

__all__ = [
    "Conversion",
    "GroupConversion",
    "Merged",
    "MergedModule",
    "convert_adapter",
    "merge_adapters",
]
