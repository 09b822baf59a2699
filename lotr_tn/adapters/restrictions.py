"""What a conversion may not change: ranks within limits, and modules kept as they are."""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from lotr_tn.adapters.adapter import LoRAGroup, LoRAModule
from lotr_tn.catalogue.expressions import regular_expression
from lotr_tn.errors import OptionError, listed, meant
from lotr_tn.linalg.ranks import RankLimits

Limits: TypeAlias = RankLimits | Mapping[str, RankLimits] | None
"""Limits for all groups, or for some by name; those of "" are for all that are not named."""


def limits_of(groups: Iterable[str], limits: Limits) -> dict[str, RankLimits]:
    """The limits of every group, by its name; a group that does not exist is an error."""
    names = list(groups)
    if not isinstance(limits, Mapping):
        return dict.fromkeys(names, limits or RankLimits())
    for name in limits:
        if name and name not in names:
            raise OptionError(
                f"there is no group {name!r}; the groups are {listed(names)}{meant(name, names)}"
            )
    others = limits.get("", RankLimits())
    return {name: limits.get(name, others) for name in names}


def kept_apart(
    groups: Mapping[str, LoRAGroup], keep: str | None
) -> tuple[dict[str, LoRAGroup], dict[str, LoRAGroup]]:
    """Groups to convert, and groups of the modules, by an expression, that stay as they are."""
    if keep is None:
        return dict(groups), {}
    expression = regular_expression(keep, "keep takes a regular expression")
    apart, kept = {}, {}
    for name, group in groups.items():
        parts: dict[bool, list[LoRAModule]] = {True: [], False: []}
        for module in group.modules:
            parts[expression.search(module.target.name) is not None].append(module)
        if parts[True]:
            kept[f"{name}.kept"] = LoRAGroup(f"{name}.kept", tuple(parts[True]))
        if parts[False]:
            apart[name] = LoRAGroup(name, tuple(parts[False]))
    if not kept:
        path = next(t.name for group in groups.values() for t in group.targets)
        raise OptionError(f"keep {keep!r} is found in no module; there is such as {path}")
    return apart, kept
