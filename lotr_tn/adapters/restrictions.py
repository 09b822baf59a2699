"""What a conversion may not change: ranks within limits, and modules kept as they are."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from lotr_tn.adapters.adapter import LoRAGroup
from lotr_tn.errors import OptionError
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
            raise OptionError(f"there is no group {name!r}; the groups are {', '.join(names)}")
    others = limits.get("", RankLimits())
    return {name: limits.get(name, others) for name in names}


def kept_apart(
    groups: Mapping[str, LoRAGroup], keep: str | None
) -> tuple[dict[str, LoRAGroup], dict[str, LoRAGroup]]:
    """Groups to convert, and groups of the modules, by an expression, that stay as they are."""
    if keep is None:
        return dict(groups), {}
    try:
        pattern = re.compile(keep)
    except re.error as error:
        raise OptionError(
            f"--keep takes a regular expression; {keep!r} is none ({error})"
        ) from None
    apart, kept = {}, {}
    for name, group in groups.items():
        inside = tuple(m for m in group.modules if pattern.search(m.target.name))
        if inside:
            kept[f"{name}.kept"] = LoRAGroup(f"{name}.kept", inside)
        if others := tuple(m for m in group.modules if not pattern.search(m.target.name)):
            apart[name] = LoRAGroup(name, others)
    if not kept:
        raise OptionError(
            f"--keep {keep!r} is found in no module; see `lotr inspect` for the paths"
        )
    return apart, kept
