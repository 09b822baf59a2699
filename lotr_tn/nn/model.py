"""Models: adapters put in, switched, merged, read out and taken away again."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, TypeVar

from torch import nn

from lotr_tn._arguments import door
from lotr_tn.errors import OptionError, meant
from lotr_tn.formats import Stack
from lotr_tn.nn.adapted import Switched, adapted
from lotr_tn.nn.bases import weight_of
from lotr_tn.nn.form import FORMS, Form, choice_of
from lotr_tn.nn.forms.tucker2 import Ranks, Tucker2Form
from lotr_tn.nn.forms.tucker2_starts import TuckerStart
from lotr_tn.nn.grouping import Group, GroupBy, find_targets
from lotr_tn.nn.holding import AdaptedLayer
from lotr_tn.nn.planning import Plan, Updates
from lotr_tn.nn.training import lotr_layers, require_adapter
from lotr_tn.ops.arithmetic import scale

Model = TypeVar("Model", bound=nn.Module)
Trained: TypeAlias = Literal["all", "cores", "factors"]


@door
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
    init: TuckerStart | Updates = "balanced",
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
    return add(
        model, targets, Tucker2Form, {"ranks": r}, group_options=_ranks_by_group(ranks),
        group_by=group_by, alpha=alpha, root_scale=root_scale, dropout=dropout, init=init,
        train=train, seed=seed, name=name,
    )  # fmt: skip


@door
def plan_groups(
    modules: Mapping[str, nn.Module],
    group_by: GroupBy,
    r: Ranks,
    ranks: Mapping[str, Ranks] | None = None,
) -> dict[str, Group]:
    """The groups that `add_lotr` would form of these modules by path, with its errors."""
    return Plan(Tucker2Form, {"ranks": r}, _ranks_by_group(ranks), group_by).groups(modules)


def _ranks_by_group(ranks: Mapping[str, Ranks] | None) -> dict[str, dict[str, Ranks]]:
    return {name: {"ranks": pair} for name, pair in (ranks or {}).items()}


@door
def add(
    model: Model,
    targets: str | Iterable[str],
    form: str | type[Form],
    options: Mapping[str, Any],
    *,
    group_options: Mapping[str, Mapping[str, Any]] | None = None,
    group_by: GroupBy = "kind",
    alpha: float | None = None,
    root_scale: bool = False,
    dropout: float = 0.0,
    init: str | Updates | None = None,
    train: str = "all",
    seed: int = 0,
    name: str = "default",
) -> Model:
    """Adapt layers of a model in place by any trainable form; `add_lotr` says more of the rest.

    Args:
        model: any module.
        targets: which layers.
        form: a form, or the name of a registered one: "lotr".
        options: those of the form, such as {"ranks": (8, 4)}.
        group_options: other options for single groups, by name.
        group_by: which layers form a group.
        alpha: the update is multiplied by alpha/r, with the form's r.
        root_scale: by alpha/√r instead.
        dropout: as for `add_lotr`.
        init: one of the form's starts, the first where left out; or low-rank updates, by path.
        train: "all", or one part of the form's parameters.
        seed: of all random numbers.
        name: the adapter's name. It becomes the active one.

    Raises:
        UnsupportedError: embeddings, where the form has no rule for them.
        LotrError: all that `add_lotr` raises.
    """
    if isinstance(form, str) and form not in FORMS:
        raise OptionError(f"form must be {choice_of(sorted(FORMS))}, or a Form; found {form!r}")
    kind = FORMS[form] if isinstance(form, str) else form
    plan = Plan(
        kind, options, group_options or {}, group_by, alpha, root_scale, dropout,
        kind.starts[0] if init is None else init, train, seed,
    )  # fmt: skip
    plan.require_sense()
    if any(name in layer.scaling for layer in lotr_layers(model).values()):
        raise OptionError(f"the model has an adapter {name!r} already; give another name")
    if not name or "." in name:
        raise OptionError(f"an adapter's name must not be empty or contain a dot; found {name!r}")
    modules = find_targets(model, targets)
    groups = plan.groups(modules)
    if init == "principal":
        require_untied(model, modules)
    places = plan.places(groups, modules)
    # whatever could be refused has been: from here on the model is changed
    model.requires_grad_(False)
    for group in groups.values():
        layers = [_layer_at(model, path) for path in group.modules]
        for path, layer in zip(group.modules, layers, strict=True):
            layer.hold(name, **places[path])
        if init == "principal":
            move_out(layers, name)
    set_active(model, name)
    return model


def move_out(layers: Sequence[AdaptedLayer], name: str) -> None:
    """Take what a group's layers begin with out of their base weights: the sum stays the same."""
    frozen = layers[0].form_of(name).frozen()
    for layer in layers:
        layer.take_out(name, frozen, layer.own_of(name))


def require_untied(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Refuse to change base weights that other modules use as their own."""
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name)
    for path, layer in layers.items():
        names = users.get(id(weight_of(layer)), [])
        if others := [n for n in names if not n.startswith(f"{path}.")]:
            raise OptionError(
                f"the weight of {path} is also {others[0]}, which would change with it; untie them "
                "first, such as by loading the model with tie_word_embeddings=False"
            )


def _layer_at(model: nn.Module, path: str) -> AdaptedLayer:
    """The adapted layer at a path, put there where there is none yet."""
    found = model.get_submodule(path)
    if isinstance(found, AdaptedLayer):
        return found
    layer = adapted(found)
    layer.train(found.training)
    _put(model, path, layer)
    return layer


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, own = path.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


@door
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


@door
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


@door
def unmerge(model: nn.Module) -> None:
    """Take all merged updates out of the base weights again, to rounding in their dtype."""
    for layer in lotr_layers(model).values():
        layer.unmerge()


@door
def remove_lotr(model: Model, *, merged: bool = False) -> Model:
    """Put the base layers back, in place.

    Args:
        model: a model with adapted layers.
        merged: whether the active adapters stay, as part of the weights.

    Returns:
        The same model, without adapted layers.

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


@door
def merged_copy(model: Model) -> Model:
    """A new model of plain layers with the active adapters in its weights; the model stays as is.

    Cost: memory of a second model.
    """
    return remove_lotr(copy.deepcopy(model), merged=True)


@door
def stacks_of(model: nn.Module, adapter: str = "default") -> dict[str, Any]:
    """The updates of an adapter by group, scale inside, for all functions of the library.

    The layers are in the model's order. For an adapter that began with "principal" these are the
    trained parts, which stand beside base weights that lack what they began with.

    Returns:
        For each group a stack of the format of its form: a `Tucker2` for LoTR.

    Raises:
        OptionError: there is no such adapter.
    """
    return {
        group: scale(_unscaled(layers, adapter), [layer.scaling[adapter] for layer in layers])
        for group, layers in _by_group(model, adapter).items()
    }


def _by_group(model: nn.Module, adapter: str) -> dict[str, list[AdaptedLayer]]:
    layers: dict[str, list[AdaptedLayer]] = {}
    for layer in require_adapter(model, adapter).values():
        layers.setdefault(layer.form_of(adapter).group, []).append(layer)
    return layers


def _unscaled(layers: list[AdaptedLayer], adapter: str) -> Stack:
    owns = [layer.own_of(adapter) for layer in layers]
    return layers[0].form_of(adapter).stack(owns, [layer.sites[adapter] for layer in layers])


@door
def set_stacks(model: nn.Module, stacks: Mapping[str, Stack], adapter: str = "default") -> None:
    """Give the parameters of groups the values of stacks, scale inside.

    Raises:
        OptionError: there is no such adapter or group, or a stack has another format, shape or
            other ranks.
    """
    members = _by_group(model, adapter)
    for group, stack in stacks.items():
        if group not in members:
            raise OptionError(
                f"no group is called {group!r}; there are {', '.join(members)}"
                f"{meant(group, members)}"
            )
        own = _unscaled(members[group], adapter)
        if type(stack) is not type(own):
            raise OptionError(
                f"group {group!r} is a {type(own).__name__}; found a {type(stack).__name__}: "
                "convert it first"
            )
        options = members[group][0].form_of(adapter).method.options
        has, given = options(own), options(stack)
        if (stack.shape, given) != (own.shape, has):
            words = " and ".join(f"{key} {value}" for key, value in has.items())
            raise OptionError(
                f"group {group!r} has shape {own.shape} and {words}; found {stack.shape} and "
                f"{', '.join(map(str, given.values()))}"
            )
    for group, stack in stacks.items():
        layers = members[group]
        unscaled = scale(stack, [1 / layer.scaling[adapter] for layer in layers])
        owns = layers[0].form_of(adapter).load(unscaled)
        for layer, own in zip(layers, owns, strict=True):
            for key, kept in layer.own_of(adapter).items():
                kept.detach().copy_(own[key])
