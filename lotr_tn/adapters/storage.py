"""How a group is stored: its form, its ranks, and the dtype that an error needs."""

from typing import TypeAlias

from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.adapters.adapter import LoRAGroup, LoTRGroup
from lotr_tn.analysis.forms import LORA, Form, FormatName, form_of
from lotr_tn.linalg.ranks import ITEM_SIZES, Budget, FixedRank, RankRule, TotalError

AdapterRule: TypeAlias = RankRule | TotalError

STORAGE_MARGIN = 1 / 8
"""A storage dtype is chosen for an error ε when its unit roundoff is at most this share of ε: then
rounding takes at most 1/64 of the squared error allowed."""


NEGLIGIBLE = 1 / 4
"""A dtype's roundoff, as a share of the error asked for, up to which ranks hardly depend on it."""


def is_negligible(dtype: str, epsilon: float) -> bool:
    """Whether a wider dtype could hardly cut more off."""
    return UNIT_ROUNDOFF[dtype] <= NEGLIGIBLE * epsilon


def storage_dtype_for(own: str, rule: AdapterRule) -> str:
    """The storage dtype that an error needs: the LoRA's own, else float32, else float64."""
    if isinstance(rule, FixedRank | Budget):
        return own
    for dtype in (own, "float32"):
        if UNIT_ROUNDOFF[dtype] <= STORAGE_MARGIN * rule.epsilon:
            return dtype
    return "float64" if rule.epsilon or own == "float64" else "float32"


def other_dtypes_for(own: str, rule: AdapterRule) -> tuple[str, ...]:
    """The dtypes no wider than `storage_dtype_for` in which a smaller file may keep to a rule."""
    if isinstance(rule, FixedRank) or (isinstance(rule, Budget) and rule.params is not None):
        return ()
    widest = storage_dtype_for(own, rule)
    enough = 1.0 if isinstance(rule, Budget) else rule.epsilon
    return tuple(
        name
        for name, roundoff in UNIT_ROUNDOFF.items()
        if name != widest and ITEM_SIZES[name] <= ITEM_SIZES[widest] and roundoff < enough
    )


def group_form(group: LoTRGroup | LoRAGroup) -> Form:
    """The form in which a group is stored."""
    return LORA if isinstance(group, LoRAGroup) else form_of(group.stack)


def format_of(group: LoTRGroup | LoRAGroup) -> FormatName:
    """The name of the form in which a group is stored."""
    return group_form(group).name


def stored_ranks(group: LoTRGroup | LoRAGroup) -> list[int]:
    """The ranks of a group, as its file says them: (r1, r2) of a LoTR, each layer's of a LoRA."""
    if isinstance(group, LoRAGroup):
        return [target.rank for target in group.targets]
    return [int(rank) for rank in form_of(group.stack).ranks(group.stack)]
