"""What of a budget is spent before any group has a form."""

from collections.abc import Mapping, Sequence

from lotr_tn.adapters.adapter import LoRAAdapter, LoRAGroup
from lotr_tn.adapters.storage import AdapterRule
from lotr_tn.files.dialects.native import native_least
from lotr_tn.linalg.ranks import Budget


def spent_beside(
    rule: AdapterRule,
    adapters: Sequence[LoRAAdapter],
    groups: Mapping[str, LoRAGroup],
    kept: Mapping[str, LoRAGroup],
    group_by: str,
) -> int:
    """What modules that are kept take; of bytes also, at least, heads and all that is no number."""
    if not isinstance(rule, Budget):
        return 0
    if rule.params is not None:
        return sum(group.stored for group in kept.values())
    converted = [module for group in groups.values() for module in group.modules]
    numbers = sum(module.up.nbytes + module.down.nbytes for module in converted)
    first, *others = adapters
    least = native_least(first, {**groups, **kept}, group_by) - numbers
    return least + heads_of(others)


def heads_of(adapters: Sequence[LoRAAdapter]) -> int:
    """Bytes of all tensors of adapters that are no updates."""
    return sum(tensor.nbytes for adapter in adapters for tensor in adapter.extras.values())
