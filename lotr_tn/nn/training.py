"""What is trained, how fast, and how much of it there is."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lotr_tn._arguments import door
from lotr_tn.errors import OptionError, listed, meant
from lotr_tn.nn.holding import AdaptedLayer


@door
def lotr_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """The adapted layers of a model, by path, with PEFT or without it."""
    return {path: m for path, m in model.named_modules() if isinstance(m, AdaptedLayer)}


def require_adapter(model: nn.Module, name: str) -> dict[str, AdaptedLayer]:
    """The layers that hold an adapter; none is an error."""
    layers = lotr_layers(model)
    held = {path: layer for path, layer in layers.items() if name in layer.scaling}
    if not held:
        known = sorted({n for layer in layers.values() for n in layer.scaling})
        raise OptionError(
            f"no adapter is called {name!r}; the model has {listed(known)}{meant(name, known)}"
        )
    return held


@door
def shared_factors(model: nn.Module, adapter: str = "default") -> dict[str, Any]:
    """What the layers of an adapter share, by group: the one `Form` of each, U and V for LoTR."""
    forms = [layer.form_of(adapter) for layer in require_adapter(model, adapter).values()]
    return {form.group: form for form in forms}


@door
def shared_parameters(model: nn.Module) -> set[nn.Parameter]:
    """All that groups share, of every adapter, each once: U and V for LoTR."""
    return {
        parameter
        for layer in lotr_layers(model).values()
        for moved, names in ((False, layer.rooms), (True, layer.moved_adapters))
        for name in names
        for parameter in layer.form_of(name, moved=moved).parameters()
    }


@door
def train_only(model: nn.Module, what: str, adapter: str = "default") -> None:
    """Choose what a training of an adapter changes from now on.

    Frozen parameters keep no gradient, so an optimiser that has them already passes them by.

    Args:
        model: a model with adapted layers.
        what: "all", or a part of the form's parameters; for LoTR "cores", L·r1·r2 numbers, or
            "factors", U and V alone, which have no gradient while the cores are zero.
        adapter: its name.

    Raises:
        OptionError: an unknown choice or adapter.
    """
    layers = require_adapter(model, adapter).values()
    for layer in layers:
        layer.form_of(adapter).require_trained(what)
    for layer in layers:
        layer.trained[adapter] = what
        layer.set_trainable(adapter, adapter in layer.names_in_effect())
    for form in shared_factors(model, adapter).values():
        for parameter in form.parameters():
            parameter.grad = parameter.grad if parameter.requires_grad else None


def _parts(model: nn.Module, adapter: str | None) -> Iterator[tuple[str, bool, Tensor]]:
    """The parameters of adapters: what each is called, whether it is a layer's own, and itself."""
    for layer in lotr_layers(model).values():
        for name in layer.scaling:
            if adapter in (None, name):
                form, own = layer.adapter(name)
                for part, parameters in form.parts(own).items():
                    for parameter in parameters:
                        yield part, part != form.part_names[0], parameter


@door
def parameter_count(
    model: nn.Module, adapter: str | None = None, *, trainable: bool = False
) -> int:
    """The entries of factors and cores, what is shared counted once: m·r1 + n·r2 + L·r1·r2 a group.

    Args:
        model: a model with adapted layers.
        adapter: one adapter's name; all of them where left out.
        trainable: count only what is being trained.

    Examples:
        >>> from torch import nn
        >>> from lotr_tn.nn import add_lotr
        >>> model = nn.Sequential(nn.Linear(768, 768), nn.Linear(768, 768))
        >>> model = add_lotr(model, ["0", "1"], r=2, group_by="shape")
        >>> parameter_count(model)
        3080
    """
    unique = {id(p): p for *_, p in _parts(model, adapter) if p.requires_grad or not trainable}
    return sum(p.numel() for p in unique.values())


@door
def parameter_groups(
    model: nn.Module,
    lr: float,
    *,
    core_lr: float | None = None,
    other_lr: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Everything that is trained, once each, as groups for an optimiser of torch.

    Args:
        model: a model with adapted layers.
        lr: learning rate of what is shared, U and V.
        core_lr: that of the layers' own parameters, the cores; `lr` where left out.
        other_lr: that of everything else that is trained, such as a new head; `lr` where left out.
        weight_decay: of all groups.

    Returns:
        Groups named "factors", "cores" and "other", or as the form calls its parts; those without
        parameters are left out.

    Raises:
        OptionError: nothing is trained.
    """
    kinds: dict[int, str] = {}
    rates: dict[str, float] = {}
    for part, own, parameter in _parts(model, None):
        kinds[id(parameter)] = part
        rates[part] = lr if not own or core_lr is None else core_lr
    rates["other"] = lr if other_lr is None else other_lr
    members: dict[str, list[Tensor]] = {name: [] for name in rates}
    for parameter in model.parameters():  # each once
        if parameter.requires_grad:
            members[kinds.get(id(parameter), "other")].append(parameter)
    if not any(members.values()):
        raise OptionError("no parameter is trained; make an adapter active, or unfreeze a layer")
    return [
        {"name": name, "params": found, "lr": rates[name], "weight_decay": weight_decay}
        for name, found in members.items()
        if found
    ]
