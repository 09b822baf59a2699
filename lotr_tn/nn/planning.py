"""What an adapter is to be, and the first values of all its groups; no module is changed here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from lotr_tn._arrays import Array, to_numpy
from lotr_tn.errors import FormatError, OptionError, UnsupportedError
from lotr_tn.formats import LoRAStack
from lotr_tn.nn.bases import base_of, is_embedding, matrix_of, weight_of
from lotr_tn.nn.form import Form, Start
from lotr_tn.nn.grouping import Group, GroupBy, form_groups
from lotr_tn.nn.holding import require_dropout

Updates: TypeAlias = Mapping[str, tuple[Array, Array]]
"""Low-rank updates to continue with: (up (m, r), down (r, n)) by module path, scale inside."""


Place: TypeAlias = dict[str, Any]
"""What a layer is given, as the arguments of `AdaptedLayer.hold`."""


@dataclass(frozen=True)
class Plan:
    """What an adapter is to be; the fields are the arguments of `add`."""

    form: type[Form]
    options: Mapping[str, Any]
    group_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    group_by: GroupBy = "kind"
    alpha: float | None = None
    root_scale: bool = False
    dropout: float = 0.0
    init: str | Updates = ""
    train: str = "all"
    seed: int = 0

    def require_sense(self) -> None:
        """Refuse what makes no sense with any model."""
        if isinstance(self.init, str):
            self.form.require_start(self.init, self.train)
        self.form.require_trained(self.train)
        require_dropout(self.dropout)
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise OptionError(f"alpha must be above 0; found {self.alpha}")

    def groups(self, modules: Mapping[str, nn.Module]) -> dict[str, Group]:
        """The groups of the modules that are to be adapted, by name, with their options."""
        found = form_groups(modules, self.group_by)
        if strange := [name for name in self.group_options if name not in found]:
            what = ", ".join({key: 0 for name in strange for key in self.group_options[name]})
            raise OptionError(
                f"{what} are given for {', '.join(strange)}; the groups are {', '.join(found)}"
            )
        if self.form.rows is Form.rows and any(is_embedding(base_of(m)) for m in modules.values()):
            raise UnsupportedError(
                f"{self.form.method.label} adapts no embeddings; leave them out of the targets"
            )
        for name, group in found.items():
            options = {**self.options, **self.group_options.get(name, {})}
            found[name] = replace(group, options=self.form.settled(options, group))
        return found

    def places(
        self, groups: Mapping[str, Group], modules: Mapping[str, nn.Module]
    ) -> dict[str, Place]:
        """What each module is given, by its path; seeds do not depend on the order of targets."""
        places: dict[str, Place] = {}
        setting = {"dropout": self.dropout, "trained": self.train}
        for index, (_, group) in enumerate(sorted(groups.items())):
            scale = self.form.method.scale(self.alpha, group.options, root=self.root_scale)
            init = self.init if isinstance(self.init, str) else _together(group, self.init)
            weights = _Weights([base_of(modules[path]) for path in group.modules])
            start = Start(init, weights, weight_of(weights.modules[0]), scale, self.seed + index)
            form, owns = self.form.begin(group, start)
            for path, own, site in zip(group.modules, owns, group.sites, strict=True):
                places[path] = {"form": form, "own": own, "scale": scale, "site": site, **setting}
        return places


@dataclass(frozen=True)
class _Weights:
    """The weights of a group's layers, each as (m, n) when it is asked for."""

    modules: list[nn.Module]

    def __len__(self) -> int:
        return len(self.modules)

    def __getitem__(self, index: int) -> Tensor:
        return matrix_of(self.modules[index]).cpu()


def _together(group: Group, updates: Updates) -> LoRAStack:
    """The low-rank updates of a group's layers as one stack in float64."""
    if missing := [path for path in group.modules if path not in updates]:
        raise FormatError(
            f"the adapter has no update for {', '.join(missing)}; it has "
            f"{', '.join(list(updates)[:4])} …: choose the targets that it has"
        )
    ups, downs = [], []
    for path in group.modules:
        up, down = (to_numpy(x).astype(np.float64) for x in updates[path])
        if (up.shape[0], down.shape[1]) != group.shape or up.shape[1] != down.shape[0]:
            found = f"{up.shape} times {down.shape}"
            raise FormatError(f"the update of {path} is {found}; the module needs {group.shape}")
        ups.append(up)
        downs.append(down)
    ranks = tuple(up.shape[1] for up in ups)
    return LoRAStack(np.concatenate(ups, axis=1), np.concatenate(downs, axis=0), ranks)
