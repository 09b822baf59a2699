"""Frozen records that hold and check the arrays of a stack of updates; no mathematics."""

from typing import TypeAlias

from lotr_tn.formats.certificate import Certificate
from lotr_tn.formats.dense import Dense
from lotr_tn.formats.lora import LoRAStack
from lotr_tn.formats.low_rank_tucker2 import LowRankTucker2
from lotr_tn.formats.operators import Operators
from lotr_tn.formats.tucker1 import SharedSide, Tucker1
from lotr_tn.formats.tucker2 import Tucker2

Stack: TypeAlias = LoRAStack | Tucker2 | LowRankTucker2 | Tucker1 | Dense
"""Any stack of updates."""

__all__ = [
    "Certificate",
    "Dense",
    "LoRAStack",
    "LowRankTucker2",
    "Operators",
    "SharedSide",
    "Stack",
    "Tucker1",
    "Tucker2",
]
