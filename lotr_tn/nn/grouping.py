"""Which layers are adapted, and which of them form a group."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import nn

from lotr_tn.catalogue.expressions import regular_expression
from lotr_tn.catalogue.grouping import group_paths
from lotr_tn.catalogue.methods import Site, sites_of
from lotr_tn.errors import FormatError, OptionError
from lotr_tn.nn.bases import base_of, is_embedding, require_supported, sizes

GroupBy: TypeAlias = str | Mapping[str, Sequence[str]]
"""`kind`, `shape`, a regular expression, or the modules of each group by its name."""

FED_TOGETHER = (
    re.compile("((q|k|v|query|key|value)(_proj|_lin|_layer)?)"),
    re.compile("((gate|up)_proj|w1|w3|wi_0|wi_1)"),
)
"""Names of layers that stand beside each other and are given the same input."""


@dataclass(frozen=True)
class Group:
    """Layers that share parameters, or begin together.

    Attributes:
        name: the group.
        modules: their paths, in stack order.
        shape: (m, n) of each.
        options: those of the group's form; `ranks` (r1, r2) for LoTR.
    """

    name: str
    modules: tuple[str, ...]
    shape: tuple[int, int]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(L, m, n)."""
        return len(self.modules), *self.shape

    @property
    def sites(self) -> tuple[Site, ...]:
        """The places of its layers."""
        found = zip(self.modules, sites_of(self.modules), strict=True)
        return tuple(replace(site, siblings=self._siblings(path)) for path, site in found)

    def _siblings(self, path: str) -> int:
        """How many of its layers, this one included, are given one input, by their names.

        Where they are given different inputs after all, nothing but time is lost.
        """
        parent, _, own = path.rpartition(".")
        for family in FED_TOGETHER:
            if family.fullmatch(own):
                beside = (other.rpartition(".") for other in self.modules)
                return sum(p == parent and bool(family.fullmatch(end)) for p, _, end in beside)
        return 1


def find_targets(model: nn.Module, targets: str | Iterable[str]) -> dict[str, nn.Module]:
    """The modules of a model that are to be adapted, by path, in the model's order.

    `targets` is a regular expression for the whole path, or names: paths, or ends after a dot.
    """
    named = dict(model.named_modules())
    inside = tuple(f"{path}." for path, module in named.items() if hasattr(module, "base_layer"))
    paths = [path for path in named if path and not path.startswith(inside)]
    if isinstance(targets, str):
        expression = regular_expression(targets, "targets is a regular expression, or names")
        found = {path for path in paths if expression.fullmatch(path)}
        missing = [] if found else [targets]
    else:
        wanted = list(targets)
        matches = {t: [p for p in paths if p == t or p.endswith(f".{t}")] for t in wanted}
        found = {path for each in matches.values() for path in each}
        missing = [t for t in wanted if not matches[t]] or ([] if wanted else ["(none given)"])
    if missing:
        ends = sorted({p.rpartition(".")[2] for p, m in named.items() if _is_leaf(m)} - {""})
        raise OptionError(
            f"no module matches {', '.join(missing)}; this model has {', '.join(ends)}: name some "
            "of them as targets"
        )
    return {path: named[path] for path in paths if path in found}


def _is_leaf(module: nn.Module) -> bool:
    return hasattr(base_of(module), "weight") and not isinstance(module, nn.LayerNorm)


def form_groups(modules: Mapping[str, nn.Module], group_by: GroupBy) -> dict[str, Group]:
    """The groups of the modules that are to be adapted, by name, without options."""
    bases = {path: base_of(module) for path, module in modules.items()}
    require_supported(bases)
    shapes = {path: sizes(base) for path, base in bases.items()}
    if isinstance(group_by, str):
        # embeddings share with embeddings only, whatever their shape
        lookups = [path for path, base in bases.items() if is_embedding(base)]
        members: dict[str, list[str]] = {}
        for paths in ([p for p in bases if p not in set(lookups)], lookups):
            found = group_paths([(path, shapes[path]) for path in paths], group_by)
            for name, positions in found.items():
                key = name if name not in members else f"{name}[embedding]"
                members[key] = [paths[i] for i in positions]
    else:
        members = _given(list(bases), group_by)
    for name, paths in members.items():
        if len({(shapes[path], is_embedding(bases[path])) for path in paths}) > 1:
            listed = ", ".join(f"{path} {shapes[path]}" for path in paths)
            raise FormatError(
                f"group {name!r} has modules of different shapes, which cannot share U and V: "
                f"{listed}; put them into groups of one shape"
            )
    return {name: Group(name, tuple(p), shapes[p[0]]) for name, p in members.items()}


def _given(paths: list[str], group_by: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    known = set(paths)
    for name, wanted in group_by.items():
        if isinstance(wanted, str):
            raise OptionError(f"group {name!r} must list modules, such as ['q_proj']")
        found: set[str] = set()
        for end in wanted:
            here = {end} & known or {path for path in paths if path.endswith(f".{end}")}
            if not here:
                raise OptionError(
                    f"group {name!r} names {end}, which is no target; the targets are "
                    f"{_some(paths)}"
                )
            found |= here
        members[name] = [path for path in paths if path in found]
        for path in members[name]:
            if path in owner:
                raise OptionError(f"{path} is in the groups {owner[path]!r} and {name!r}")
            owner[path] = name
    if left := [path for path in paths if path not in owner]:
        raise OptionError(
            f"these targets are in no group: {_some(left)}; name them in group_by, or leave them "
            "out of the targets"
        )
    return {name: found for name, found in members.items() if found}


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:6]) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")
