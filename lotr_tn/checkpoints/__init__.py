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
from lotr_tn.checkpoints.comparison import Comparison, ModuleComparison, compare_adapters
from lotr_tn.checkpoints.conversion import Conversion, GroupConversion, convert_adapter
from lotr_tn.checkpoints.export import Export, to_lora
from lotr_tn.checkpoints.grouping import group_modules
from lotr_tn.checkpoints.loading import load_adapter, save_adapter

__all__ = [
    "Adapter",
    "Analysis",
    "Comparison",
    "Conversion",
    "Export",
    "GroupAnalysis",
    "GroupConversion",
    "Layout",
    "LoRAAdapter",
    "LoRAGroup",
    "LoRAModule",
    "LoTRAdapter",
    "LoTRGroup",
    "ModuleComparison",
    "StackingCost",
    "Target",
    "analyze_adapters",
    "compare_adapters",
    "convert_adapter",
    "group_modules",
    "load_adapter",
    "save_adapter",
    "to_lora",
]
