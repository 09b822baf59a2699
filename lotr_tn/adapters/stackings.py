"""Ways to stack the modules of one adapter, or of several."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lotr_tn.adapters.adapter import LoRAAdapter, LoRAGroup, LoRAModule
from lotr_tn.adapters.grouping import lora_groups
from lotr_tn.catalogue.grouping import EACH, kind_of


@dataclass(frozen=True, eq=False)
class StackedGroup:
    """A group of modules, of one adapter or of several, with a short label for each layer."""

    group: LoRAGroup
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        """The group's name."""
        return self.group.name

    @property
    def order(self) -> tuple[int, ...]:
        """The places of the layers as a reader expects them: layer 2 before layer 10."""
        return tuple(sorted(range(len(self.labels)), key=lambda i: natural(self.labels[i])))


@dataclass(frozen=True, eq=False)
class Stacking:
    """One way to stack all modules."""

    # `kind`, `shape` or a regular expression for one adapter; `layers` (each adapter on its own, by
    # kind), `adapters` (each module over the adapters), or `adapters-layers` (each kind over layers
    # and adapters) for several
    name: str
    label: str  # the same in words
    groups: tuple[StackedGroup, ...]


LARGEST_STACK = 1024
"""Rank terms of a stack up to which another way of stacking is tried unasked."""


def rules_of(group_by: str) -> tuple[str, ...]:
    """The rules that modules of one adapter are grouped by: of `auto` the smallest file is kept."""
    return ("kind", "shape") if group_by == "auto" else (group_by,)


def natural(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers inside text by their value."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def stackings_of(adapters: Mapping[str, LoRAAdapter], group_by: str) -> list[Stacking]:
    """The ways to stack modules of adapters of one base, which may differ in ranks and modules."""
    if len(adapters) == 1:
        (adapter,) = adapters.values()
        return _of_one(adapter, group_by)
    group_by, *_ = rules_of(group_by)
    alone, kinds = _alone(adapters, group_by), _over(adapters, group_by)
    return [
        Stacking("layers", "each adapter on its own, over its layers", alone),
        Stacking("adapters", "each module over the adapters", _over(adapters, EACH)),
        Stacking("adapters-layers", "each kind over adapters and layers", kinds),
    ]


def _of_one(adapter: LoRAAdapter, group_by: str) -> list[Stacking]:
    words = {"kind": "each kind over its layers", "shape": "all modules of a shape"}
    first, *_ = rules_of(group_by)
    found = [Stacking(first, words.get(first, "as asked"), _groups(adapter, first))]
    for other in (rule for rule in words if rule != first):
        groups = _groups(adapter, other)
        if not any(_alike(groups, known.groups) for known in found):
            found.append(Stacking(other, words[other], groups))
    return found


def _alike(a: Sequence[StackedGroup], b: Sequence[StackedGroup]) -> bool:
    return {x.group.targets for x in a} == {x.group.targets for x in b}


def _groups(adapter: LoRAAdapter, group_by: str) -> tuple[StackedGroup, ...]:
    return tuple(
        StackedGroup(group, _labels([target.name for target in group.targets]))
        for group in lora_groups(adapter, group_by).values()
    )


def _alone(adapters: Mapping[str, LoRAAdapter], group_by: str) -> tuple[StackedGroup, ...]:
    return tuple(
        StackedGroup(LoRAGroup(f"{name}: {found.name}", found.group.modules), found.labels)
        for name, adapter in adapters.items()
        for found in _groups(adapter, group_by)
    )


def _over(adapters: Mapping[str, LoRAAdapter], group_by: str) -> tuple[StackedGroup, ...]:
    """Stacks over the adapters, of the groups that a rule makes."""
    owner = {id(m): name for name, adapter in adapters.items() for m in adapter.modules}
    modules = [module for adapter in adapters.values() for module in adapter.modules]
    together = LoRAAdapter(tuple(modules), {}, {}, "")
    groups = sorted(lora_groups(together, group_by).values(), key=lambda one: natural(one.name))
    return tuple(StackedGroup(group, _labels_over(group.modules, owner)) for group in groups)


def _labels_over(modules: Sequence[LoRAModule], owner: Mapping[int, str]) -> tuple[str, ...]:
    paths = [module.target.name for module in modules]
    names = [owner[id(module)] for module in modules]
    if len(set(paths)) == 1:
        return tuple(names)
    layers = _labels(paths)
    return tuple(f"{name} {layer}" for name, layer in zip(names, layers, strict=True))


def _labels(paths: Sequence[str]) -> tuple[str, ...]:
    """The block index of each path, with its kind's last word where kinds differ."""
    kinds = {kind_of(path) for path in paths}
    labels = []
    for path in paths:
        parts = path.split(".")
        index = ".".join(part for part in parts if part.isdigit())
        last = "" if len(kinds) == 1 and index else parts[-1]
        labels.append(f"{last} {index}".strip())
    return tuple(labels)
