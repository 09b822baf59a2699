"""Files: adapters read, converted, exported, compared and written."""

from lotr_tn.checkpoints.adapter import (
    Adapter,
    Layout,
    LoRAAdapter,
    LoRAGroup,
    LoRAModule,
    LoTRAdapter,
    LoTRGroup,
    Target,
)
from lotr_tn.checkpoints.analysis import Analysis, GroupAnalysis, StackingCost, analyze_adapters
from lotr_tn.checkpoints.bank import (
    Appended,
    Bank,
    BankConversion,
    Compacted,
    Edited,
    Figures,
    StackChoice,
    append_adapters,
    compact_bank,
    convert_adapters,
    drop_adapters,
    load_bank,
    rename_adapter,
    verify_bank,
)
from lotr_tn.checkpoints.comparison import Comparison, ModuleComparison, compare_adapters
from lotr_tn.checkpoints.conversion import Conversion, GroupConversion, convert_adapter
from lotr_tn.checkpoints.export import Export, to_lora
from lotr_tn.checkpoints.grouping import group_modules
from lotr_tn.checkpoints.likeness import Likeness, compare_many
from lotr_tn.checkpoints.loading import load_adapter, save_adapter
from lotr_tn.checkpoints.merging import Merged, MergedModule, merge_adapters

__all__ = [
    "Adapter",
    "Analysis",
    "Appended",
    "Bank",
    "BankConversion",
    "Compacted",
    "Comparison",
    "Conversion",
    "Edited",
    "Export",
    "Figures",
    "GroupAnalysis",
    "GroupConversion",
    "Layout",
    "Likeness",
    "LoRAAdapter",
    "LoRAGroup",
    "LoRAModule",
    "LoTRAdapter",
    "LoTRGroup",
    "Merged",
    "MergedModule",
    "ModuleComparison",
    "StackChoice",
    "StackingCost",
    "Target",
    "analyze_adapters",
    "append_adapters",
    "compact_bank",
    "compare_adapters",
    "compare_many",
    "convert_adapter",
    "convert_adapters",
    "drop_adapters",
    "group_modules",
    "load_adapter",
    "load_bank",
    "merge_adapters",
    "rename_adapter",
    "save_adapter",
    "to_lora",
    "verify_bank",
]
