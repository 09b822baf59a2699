"""Frozen records that hold and check the arrays of a stack of updates; no mathematics."""

from typing import TypeAlias

from lotr_tn.formats.certificate import Certificate
from lotr_tn.formats.dense import Dense
from lotr_tn.formats.lora import LoRAStack
from lotr_tn.formats.tucker import Tucker2

Stack: TypeAlias = LoRAStack | Tucker2 | Dense
"""Any stack of updates."""

__all__ = ["Certificate", "Dense", "LoRAStack", "Stack", "Tucker2"]
