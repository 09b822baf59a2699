"""How a group is stored: its form, its ranks, and the dtype that an error needs."""

from typing import TypeAlias

from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.adapters.adapter import LoRAGroup, LoTRGroup
from lotr_tn.analysis.forms import FormatName
from lotr_tn.formats import LoRAStack, LowRankTucker2, Tucker1, Tucker2
from lotr_tn.linalg.ranks import Budget, FixedRank, RankRule, TotalError

__all__ = ["AdapterRule", "format_of", "storage_dtype_for", "stored_ranks"]

AdapterRule: TypeAlias = RankRule | TotalError

DTYPE_MARGIN = 1 / 8
"""A storage dtype is chosen for an error ε when its unit roundoff is at most this share of ε: then
rounding takes at most 1/64 of the squared error allowed."""


def storage_dtype_for(own: str, rule: AdapterRule) -> str:
    """The storage dtype that an error needs: the LoRA's own, else float32, else float64."""
    if isinstance(rule, FixedRank | Budget):
        return own
    for dtype in (own, "float32"):
        if UNIT_ROUNDOFF[dtype] <= DTYPE_MARGIN * rule.epsilon:
            return dtype
    return "float64" if rule.epsilon or own == "float64" else "float32"


def format_of(group: LoTRGroup | LoRAGroup) -> FormatName:
    """The name of the format in which a group is stored."""
    if isinstance(group, LoRAGroup):
        return "lora"
    match group.stack:
        case Tucker2():
            return "lotr"
        case LowRankTucker2():
            return "lotr-low-rank"
        case Tucker1():
            return "shared-in" if group.stack.side == "in" else "shared-out"
        case LoRAStack():
            return "truncated"


def stored_ranks(group: LoTRGroup | LoRAGroup) -> list[int]:
    """The ranks of a group.

    Returns:
        (r1, r2) of a LoTR, and with low-rank cores then each core's; r of one shared side; else
        each layer's rank.
    """
    if isinstance(group, LoRAGroup):
        return [target.rank for target in group.targets]
    match group.stack:
        case LowRankTucker2():
            return [*group.stack.shared_ranks, *group.stack.ranks]
        case Tucker1():
            return [group.stack.rank]
        case _:
            return list(group.stack.ranks)
