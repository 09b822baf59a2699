"""Adapters in memory: their modules, and which of these are stacked together."""

from lotr_tn.adapters.adapter import (
    Adapter,
    Layout,
    LoRAAdapter,
    LoRAGroup,
    LoRAModule,
    LoTRAdapter,
    LoTRGroup,
    Target,
)
from lotr_tn.adapters.as_lora import Export, to_lora
from lotr_tn.adapters.grouping import group_modules
from lotr_tn.adapters.paths import map_prefix

__all__ = [
    "Adapter",
    "Export",
    "Layout",
    "LoRAAdapter",
    "LoRAGroup",
    "LoRAModule",
    "LoTRAdapter",
    "LoTRGroup",
    "Target",
    "group_modules",
    "map_prefix",
    "to_lora",
]
