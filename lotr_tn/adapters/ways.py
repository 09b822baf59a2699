"""The ways to group the modules of one adapter, of which a conversion keeps the best."""

from collections.abc import Mapping
from dataclasses import dataclass

from lotr_tn.adapters.adapter import LoRAAdapter, LoRAGroup
from lotr_tn.adapters.asked import Asked
from lotr_tn.adapters.grouping import lora_groups
from lotr_tn.adapters.restrictions import kept_apart
from lotr_tn.adapters.stackings import LARGEST_STACK, rules_of
from lotr_tn.linalg.ranks import FixedRank


@dataclass(frozen=True, eq=False)
class Grouped:
    """The modules of an adapter by one rule."""

    name: str  # the rule
    groups: Mapping[str, LoRAGroup]  # what is converted
    kept: Mapping[str, LoRAGroup]  # what is kept as it is

    @property
    def largest(self) -> int:
        """Rank terms of the largest stack."""
        return max(sum(t.rank for t in group.targets) for group in self.groups.values())


def grouped(adapter: LoRAAdapter, asked: Asked) -> tuple[Grouped, ...]:
    """The ways that are compared: more than one where grouping is left to the size.

    Ranks are told for one way, and so are limits by the names of groups.
    """
    first, *others = rules_of(asked.group_by)
    ways = [Grouped(first, *kept_apart(lora_groups(adapter, first), asked.keep))]
    if isinstance(asked.rule, FixedRank) or isinstance(asked.limits, Mapping):
        others = []
    for rule in others:
        way = Grouped(rule, *kept_apart(lora_groups(adapter, rule), asked.keep))
        alike = {g.modules for g in way.groups.values()}
        known = [{g.modules for g in one.groups.values()} for one in ways]
        if alike not in known and way.groups and way.largest <= LARGEST_STACK:
            ways.append(way)
    return tuple(ways)
