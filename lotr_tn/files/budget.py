"""What of a budget is spent before any group has a form."""

from collections.abc import Mapping, Sequence

from lotr_tn.adapters.adapter import LoRAAdapter, LoRAGroup
from lotr_tn.adapters.storage import AdapterRule
from lotr_tn.files.dialects.native import native_overhead
from lotr_tn.linalg.ranks import Budget


def spent_beside(
    rule: AdapterRule,
    adapters: Sequence[LoRAAdapter],
    groups: Mapping[str, LoRAGroup],
    kept: Mapping[str, LoRAGroup],
    group_by: str,
) -> int:
    """What modules that are kept take, and of bytes everything that is no number, heads too."""
    if not isinstance(rule, Budget):
        return 0
    if rule.params is not None:
        return sum(group.stored for group in kept.values())
    own = [module for group in kept.values() for module in group.modules]
    numbers = sum(module.up.nbytes + module.down.nbytes for module in own)
    first, *others = adapters
    extras = sum(t.nbytes for other in others for t in other.extras.values())
    return numbers + extras + native_overhead(first, {**groups, **kept}, group_by)
