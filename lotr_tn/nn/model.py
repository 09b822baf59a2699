"""Models: LoTR put in, switched, merged, read out and taken away again."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from lotr_tn.errors import OptionError
from lotr_tn.formats import Tucker2
from lotr_tn.nn.adapted import Switched, adapted
from lotr_tn.nn.bases import base_of
from lotr_tn.nn.factors import SharedFactors
from lotr_tn.nn.grouping import Group, GroupBy, Ranks, find_targets, plan_groups
from lotr_tn.nn.layer import LoTRLayer, Trained, require_dropout, require_trained
from lotr_tn.nn.starting import Start, Updates, require_start, starting_values
from lotr_tn.nn.training import lotr_layers, require_adapter

__all__ = [
    "add_lotr",
    "disabled",
    "merge",
    "merged_copy",
    "remove_lotr",
    "scale_of",
    "set_active",
    "set_stacks",
    "stacks_of",
    "unmerge",
]

Model = TypeVar("Model", bound=nn.Module)


def scale_of(alpha: float | None, ranks: tuple[int, int], *, root: bool = False) -> float:
    """α/r, or α/√r with `root`, where r = √(r1 r2); 1 where alpha is None.

    Examples:
        >>> scale_of(16, (8, 8)), scale_of(16, (4, 16)), scale_of(None, (8, 8))
        (2.0, 2.0, 1.0)
    """
    if alpha is None:
        return 1.0
    if not (math.isfinite(alpha) and alpha > 0):
        raise OptionError(f"alpha must be above 0; found {alpha}")
    r = math.sqrt(ranks[0] * ranks[1])
    return alpha / (math.sqrt(r) if root else r)


def add_lotr(
    model: Model,
    targets: str | Iterable[str],
    r: Ranks,
    *,
    group_by: GroupBy = "kind",
    ranks: Mapping[str, Ranks] | None = None,
    alpha: float | None = None,
    root_scale: bool = False,
    dropout: float = 0.0,
    init: Start | Updates = "balanced",
    train: Trained = "all",
    seed: int = 0,
    name: str = "default",
) -> Model:
    """Adapt layers of a model in place: shared U and V for each group, a core for each layer.

    All other parameters are frozen. The model computes at first what it computed before, bit for
    bit where the core (or U) is zero.

    Args:
        model: any module.
        targets: which layers: names that are paths or ends of paths, or a regular expression for
            whole paths. Linear layers, GPT-2's Conv1D and embeddings can be adapted.
        r: one rank, or (r1, r2) for the output and the input side.
        group_by: `kind`: layers that differ by block indices only share. `shape`: layers of one
            size share, as in the paper. A regular expression, as for `group_modules`. Or the
            layers of each group, by the group's name.
        ranks: other ranks for single groups, by name.
        alpha: the update is multiplied by alpha/r, with r = √(r1 r2); by 1 where left out.
        root_scale: by alpha/√r instead.
        dropout: the share of the update's input that is dropped while training.
        init: "balanced", "orthonormal" and "equalised" are the gauges of `random_factors`, around
            cores of zeros. "reference" has entries N(0, 1), as the authors' code. "zero-u" has U
            zero and unit cores. "weights" has the leading directions of the pretrained weights
            around cores of zeros. "principal" takes the leading part of the weights out of them and
            trains it. Or low-rank updates to continue with, by module path: exact where the
            ranks are those of the updates together.
        train: "all", "cores" or "factors"; `train_only` changes it later.
        seed: of all random numbers.
        name: the adapter's name. It becomes the active one.

    Returns:
        The same model.

    Raises:
        OptionError: targets, groups, ranks or names that match nothing; the adapter exists.
        FormatError: layers that cannot be adapted, or that cannot share.
        UnsupportedError: quantised layers.
        RankError: a rank is out of its range.

    Cost: memory of the factors; for the starts from weights that of `initial_factors_of_weights`.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 6))
        >>> model = add_lotr(model, ["0", "1"], r=(2, 3))
        >>> [tuple(p.shape) for p in model.parameters() if p.requires_grad]
        [(2, 3), (5, 2), (6, 3), (2, 3), (6, 2), (5, 3)]
    """
    require_start(init, train)
    require_trained(train)
    require_dropout(dropout)
    if any(name in layer.scaling for layer in lotr_layers(model).values()):
        raise OptionError(f"the model has an adapter {name!r} already; give another name")
    if not name or "." in name:
        raise OptionError(f"an adapter's name must not be empty or contain a dot; found {name!r}")
    modules = find_targets(model, targets)
    groups = plan_groups(modules, group_by, r, ranks)
    if init == "principal":
        require_untied(model, modules)
    groups = dict(sorted(groups.items()))  # seeds do not depend on the order of targets
    scales = [scale_of(alpha, group.ranks, root=root_scale) for group in groups.values()]
    begun = [
        begin(group, modules, init, seed=seed + index)
        for index, group in enumerate(groups.values())
    ]
    # whatever could be refused has been: from here on the model is changed
    model.requires_grad_(False)
    for group, scale, (factors, cores) in zip(groups.values(), scales, begun, strict=True):
        layers = [_layer_at(model, path) for path in group.modules]
        for path, layer, core in zip(group.modules, layers, cores, strict=True):
            layer.hold(
                name,
                factors,
                (core / scale).to(weight_of(layer).device),
                scale=scale,
                dropout=dropout,
                trained=train,
                siblings=group.siblings(path),
            )
        if init == "principal":
            move_out(layers, name)
    set_active(model, name)
    return model


def begin(
    group: Group, modules: Mapping[str, nn.Module], init: Start | Updates, *, seed: int
) -> tuple[SharedFactors, torch.Tensor]:
    """The shared factors of a group with their first values, and the cores (L, r1, r2)."""
    weight = weight_of(modules[group.modules[0]])
    values = starting_values(group, modules, init, seed=seed, dtype=weight.dtype)
    u, v = values.u.to(weight.device), values.v.to(weight.device)
    factors = SharedFactors(u, v, group.name)
    return factors, values.core


def weight_of(module: nn.Module) -> torch.Tensor:
    """The base layer's weight."""
    weight = base_of(module).weight
    assert isinstance(weight, torch.Tensor)
    return weight


def move_out(layers: Iterable[LoTRLayer], name: str) -> None:
    """Take what a group's layers begin with out of their base weights."""
    frozen = None
    for layer in layers:
        if frozen is None:
            frozen = layer.move_out(name)
        else:
            layer.keep_moved(name, frozen)


def require_untied(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Refuse to change base weights that other modules use as their own.

    Raises:
        OptionError: such weights, by the names of both.
    """
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name)
    for path, layer in layers.items():
        own = weight_of(layer)
        if others := [n for n in users.get(id(own), []) if not n.startswith(f"{path}.")]:
            raise OptionError(
                f"the weight of {path} is also {others[0]}, which would change with it; untie them "
                "first, such as by loading the model with tie_word_embeddings=False"
            )


def _layer_at(model: nn.Module, path: str) -> LoTRLayer:
    """The adapted layer at a path, put there where there is none yet."""
    found = model.get_submodule(path)
    if isinstance(found, LoTRLayer):
        return found
    layer = adapted(found)
    layer.train(found.training)
    _put(model, path, layer)
    return layer


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, own = path.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def set_active(model: nn.Module, *names: str) -> None:
    """Make these adapters active, and free what they train; without names none is active.

    Raises:
        OptionError: there is no such adapter.
    """
    for name in names:
        require_adapter(model, name)
    for layer in _own_layers(model, "model.set_adapter").values():
        layer.set_adapter(list(names))


def _own_layers(model: nn.Module, instead: str) -> dict[str, Switched]:
    """The adapted layers, where they are not PEFT's."""
    layers = lotr_layers(model)
    own = {path: layer for path, layer in layers.items() if isinstance(layer, Switched)}
    if len(own) < len(layers):
        raise OptionError(f"these layers belong to a PEFT model; use its {instead}")
    return own


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The base model, for the time of a `with` block."""
    layers = list(lotr_layers(model).values())
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was


def merge(model: nn.Module, *names: str) -> None:
    """Add the updates of adapters to the base weights, of the active ones where none is named.

    Raises:
        OptionError: there is no such adapter, or a layer's weights are also another module's.
    """
    for name in names:
        require_adapter(model, name)
    require_untied(model, lotr_layers(model))
    for layer in lotr_layers(model).values():
        layer.merge(adapter_names=list(names) or None)


def unmerge(model: nn.Module) -> None:
    """Take all merged updates out of the base weights again, to rounding in their dtype."""
    for layer in lotr_layers(model).values():
        layer.unmerge()


def remove_lotr(model: Model, *, merged: bool = False) -> Model:
    """Put the base layers back, in place.

    Args:
        model: a model with LoTR layers.
        merged: whether the active adapters stay, as part of the weights.

    Returns:
        The same model, without LoTR layers.

    Raises:
        OptionError: the layers are PEFT's; or they are to be merged, and their weights are also
            another module's.
    """
    layers = _own_layers(model, "unload or merge_and_unload")
    if merged:
        require_untied(model, layers)
    for path, layer in layers.items():
        if merged:
            layer.merge()
        else:
            layer.unmerge()
        layer.give_all_back()
        _put(model, path, layer.base_layer)
    return model


def merged_copy(model: Model) -> Model:
    """A new model of plain layers with the active adapters in its weights; the model stays as is.

    Cost: memory of a second model.
    """
    return remove_lotr(copy.deepcopy(model), merged=True)


def stacks_of(model: nn.Module, adapter: str = "default") -> dict[str, Tucker2]:
    """The updates of an adapter by group, scale inside, for all functions of the library.

    The layers are in the model's order. For an adapter that began with "principal" these are the
    trained parts, which stand beside base weights that lack what they began with.

    Raises:
        OptionError: there is no such adapter.
    """
    cores: dict[str, list[torch.Tensor]] = {}
    factors: dict[str, SharedFactors] = {}
    for layer in require_adapter(model, adapter).values():
        own = layer.lotr_factors[adapter]
        assert isinstance(own, SharedFactors)
        factors[own.group] = own
        cores.setdefault(own.group, []).append(
            layer.scaling[adapter] * layer.lotr_core[adapter].detach()
        )
    return {group: factors[group].stack(found) for group, found in cores.items()}


def set_stacks(model: nn.Module, stacks: Mapping[str, Tucker2], adapter: str = "default") -> None:
    """Give factors and cores of groups the values of stacks, scale inside.

    Raises:
        OptionError: there is no such adapter or group, or a stack has another shape or other ranks.
    """
    own = stacks_of(model, adapter)
    for group, stack in stacks.items():
        if group not in own:
            raise OptionError(f"no group is called {group!r}; there are {', '.join(own)}")
        if (stack.shape, stack.ranks) != (own[group].shape, own[group].ranks):
            raise OptionError(
                f"group {group!r} has shape {own[group].shape} and ranks {own[group].ranks}; found "
                f"{stack.shape} and {stack.ranks}"
            )
    counts = dict.fromkeys(stacks, 0)
    with torch.no_grad():
        for layer in require_adapter(model, adapter).values():
            factors = layer.lotr_factors[adapter]
            assert isinstance(factors, SharedFactors)
            if (stack := stacks.get(factors.group)) is None:
                continue
            index = counts[factors.group]
            factors.u.copy_(torch.as_tensor(stack.u))
            factors.v.copy_(torch.as_tensor(stack.v))
            core = torch.as_tensor(stack.core[index])
            layer.lotr_core[adapter].copy_(core / layer.scaling[adapter])
            counts[factors.group] = index + 1
