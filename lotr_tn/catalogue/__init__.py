"""Models and their modules by name, and what LoRA and LoTR count for them."""

from lotr_tn.catalogue.architecture import (
    Architecture,
    ModuleShape,
    architecture,
    architecture_from_config,
    architecture_from_shapes,
)
from lotr_tn.catalogue.counts import CountRow, CountTable, GroupCount, count_table
from lotr_tn.catalogue.families import MODEL_TYPES
from lotr_tn.catalogue.operations import operations_table, sums_table

__all__ = [
    "MODEL_TYPES",
    "Architecture",
    "CountRow",
    "CountTable",
    "GroupCount",
    "ModuleShape",
    "architecture",
    "architecture_from_config",
    "architecture_from_shapes",
    "count_table",
    "operations_table",
    "sums_table",
]
