"""What adapters are like: nothing is written."""

from lotr_tn.inspection.analysis import Analysis, GroupAnalysis, StackingCost
from lotr_tn.inspection.analyze import analyze_adapters
from lotr_tn.inspection.compare import Comparison, ModuleComparison, compare_adapters
from lotr_tn.inspection.likeness import Likeness, compare_many

__all__ = [
    "Analysis",
    "Comparison",
    "GroupAnalysis",
    "Likeness",
    "ModuleComparison",
    "StackingCost",
    "analyze_adapters",
    "compare_adapters",
    "compare_many",
]
