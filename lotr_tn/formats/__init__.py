"""Frozen records that hold and check the arrays of a stack of updates; no mathematics."""

from typing import TypeAlias

from lotr_tn._arrays import Array
from lotr_tn.formats.certificate import Certificate
from lotr_tn.formats.cp import CP
from lotr_tn.formats.dense import Dense
from lotr_tn.formats.format import Format
from lotr_tn.formats.lora import LoRAStack
from lotr_tn.formats.low_rank_tucker2 import LowRankTucker2
from lotr_tn.formats.operators import Operators
from lotr_tn.formats.tensor_train import TensorTrain
from lotr_tn.formats.tucker1 import SharedSide, Tucker1
from lotr_tn.formats.tucker2 import Tucker2

Core: TypeAlias = LoRAStack | Tucker2 | LowRankTucker2 | Tucker1 | Dense
"""A stack in one of the core formats, which the algebra has rules of its own for."""

Stack: TypeAlias = Core | Format
"""Any stack of updates: in a core format, or in one that `lotr_tn.ops.register_format` opened."""

__all__ = [
    "CP",
    "Array",
    "Certificate",
    "Core",
    "Dense",
    "Format",
    "LoRAStack",
    "LowRankTucker2",
    "Operators",
    "SharedSide",
    "Stack",
    "TensorTrain",
    "Tucker1",
    "Tucker2",
]
