"""Adapted layers: they hold a group's form and what is their own, switch it, merge it, move it."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lotr_tn.catalogue.methods import Site
from lotr_tn.errors import FormatError, OptionError
from lotr_tn.nn.bases import (
    base_of,
    is_embedding,
    lies_transposed,
    matrix_of,
    require_supported,
    sizes,
    weight_of,
)
from lotr_tn.nn.form import Form, Own


class Room(NamedTuple):
    """The attributes in which a layer keeps an adapter, each a dictionary by adapters' names."""

    form: str
    own: dict[str, str]  # by parameter


class AdaptedLayer(nn.Module):
    """What all adapted layers have in common: y = base(x) + s x ΔWᵀ for each active adapter.

    An adapter's form and own parameters lie under the names that its method gives them, by the
    adapter's name: for LoTR in `lotr_factors` and `lotr_core`. The names of the switches are those
    that PEFT expects of a layer, so that one class serves both with and without it.

    Attributes:
        base_layer: the layer that is adapted; its own parameters are not touched.
        rooms: where each adapter is kept, by its name.
        moved_adapters: where that is kept which was moved out of the base weights for an adapter,
            and which it has to give back when it is switched off.
        scaling: s of each adapter.
        trained: which parameters of each adapter a training changes.
        sites: the layer's place in each adapter's group.
        merged_adapters: adapters whose update is in the base weights at the moment.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        require_supported({"the layer": base_of(base_layer)})
        super().__init__()
        self.base_layer = base_layer
        self.input_dropout = nn.ModuleDict()
        self.rooms: dict[str, Room] = {}
        self.moved_adapters: dict[str, Room] = {}
        self.scaling: dict[str, float] = {}
        self.trained: dict[str, str] = {}
        self.sites: dict[str, Site] = {}
        self.merged_adapters: list[str] = []
        self._active_adapter: str | list[str] = []
        self._disable_adapters = False

    @property
    def active_adapters(self) -> list[str]:
        """The names of the active adapters; not all of them need be this layer's."""
        active = self._active_adapter
        return [active] if isinstance(active, str) else active

    def hold(
        self,
        name: str,
        form: Form,
        own: Own | Tensor,
        *,
        scale: float = 1.0,
        dropout: float = 0.0,
        trained: str = "all",
        site: Site | None = None,
    ) -> None:
        """Give the layer an adapter.

        Args:
            name: the adapter's name.
            form: that of the group.
            own: the layer's own values, by name, or the only one; they are copied, to the device
                of the layer's weight. For LoTR the core (r1, r2).
            scale: s.
            dropout: the share of entries of x that the update does not see while training.
            trained: what `set_trainable` sets free: "all", or one part; for LoTR "cores" or
                "factors".
            site: the layer's place in the group.

        Raises:
            FormatError: the form does not fit the layer, or the own values do not fit the form.
            OptionError: a number out of its range, or an unknown choice.
        """
        if isinstance(own, Tensor):
            own = dict.fromkeys(form.method.own(form.shared()), own)
        base = base_of(self)
        form.require_fit(own, sizes(base))
        form.require_trained(trained)
        require_dropout(dropout)
        device = weight_of(self).device
        self._keep(name, form, {key: value.to(device) for key, value in own.items()})
        if dropout and not is_embedding(base):  # indices cannot be dropped
            self.input_dropout[name] = nn.Dropout(dropout)
        self.scaling[name], self.trained[name] = float(scale), trained
        self.sites[name] = replace(site or Site(), padding=getattr(base, "padding_idx", None))

    def _keep(self, name: str, form: Form, own: Own, *, moved: bool = False) -> None:
        method = form.method
        room = Room(method.held(moved=moved), {key: method.kept(key, moved=moved) for key in own})
        for key, value in own.items():
            if not hasattr(self, room.own[key]):
                setattr(self, room.own[key], nn.ParameterDict())
            kept = nn.Parameter(value.detach().clone(), requires_grad=not moved)
            getattr(self, room.own[key])[name] = kept
        if not hasattr(self, room.form):
            setattr(self, room.form, nn.ModuleDict())
        getattr(self, room.form)[name] = form
        (self.moved_adapters if moved else self.rooms)[name] = room

    def _forget(self, name: str, rooms: dict[str, Room]) -> None:
        room = rooms.pop(name)
        for attribute in (room.form, *room.own.values()):
            del getattr(self, attribute)[name]

    def adapter(self, name: str, *, moved: bool = False) -> tuple[Form, dict[str, Tensor]]:
        """The form and the own parameters of an adapter, or those that were moved out for it."""
        form, own = (self.moved_adapters if moved else self.rooms)[name]
        return getattr(self, form)[name], {key: getattr(self, at)[name] for key, at in own.items()}

    def form_of(self, name: str, *, moved: bool = False) -> Form:
        """The form of an adapter, or the frozen one that was moved out for it."""
        return self.adapter(name, moved=moved)[0]

    def own_of(self, name: str, *, moved: bool = False) -> dict[str, Tensor]:
        """The layer's own parameters of an adapter, or the frozen ones."""
        return self.adapter(name, moved=moved)[1]

    def set_trainable(self, name: str, on: bool) -> None:
        """Set free what this adapter trains, or freeze all of it."""
        form, own = self.adapter(name)
        for part, parameters in form.parts(own).items():
            for parameter in parameters:
                parameter.requires_grad_(on and self.trained[name] in ("all", part))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output, and what each active adapter adds to it."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        names = self.names_in_effect()
        for name in self.moved_adapters:
            if name not in names:
                site = replace(self.sites[name], siblings=1)
                result = self._added(result, x, name, site, moved=True)
        if self.merged_adapters:
            return result
        for name in names:
            if name in self.scaling:
                drops = self.training and name in self.input_dropout
                dropped = self.input_dropout[name](x) if drops else x
                result = self._added(result, dropped, name, self.sites[name])
        return result

    def _added(
        self, result: Tensor, x: Tensor, name: str, site: Site, *, moved: bool = False
    ) -> Tensor:
        """The result with the update of an adapter added."""
        form, own = self.adapter(name, moved=moved)
        return form.added(result, x, own, site, self.scaling[name])

    def names_in_effect(self) -> list[str]:
        """The adapters that change the output: merged ones, or else the active ones."""
        return [] if self._disable_adapters else self.merged_adapters or self.active_adapters

    @torch.no_grad()
    def update_of(self, name: str, *, moved: bool = False) -> Tensor:
        """The matrix s ΔW (m, n) of an adapter, or of what was moved out for it."""
        form, own = self.adapter(name, moved=moved)
        return form.delta(own, self.sites[name], self.scaling[name])

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The update as the base layer stores its weight."""
        update = self.update_of(adapter)
        return update.mT if lies_transposed(base_of(self)) else update

    @torch.no_grad()
    def add_to_base(self, update: Tensor) -> None:
        """Add an update (m, n) to the base weights, rounding once to their dtype."""
        weight = matrix_of(base_of(self))
        wide = weight.to(torch.promote_types(weight.dtype, update.dtype))
        weight.copy_(wide + update.to(weight.device))

    def take_out(self, name: str, form: Form, own: Own) -> None:
        """Take the update of a frozen form, and of own values, out of the base weights."""
        device = next(form.parameters(), weight_of(self)).device
        own = {key: value.to(device) for key, value in own.items()}
        self._keep(name, form, own, moved=True)
        self.add_to_base(-self.update_of(name, moved=True))

    def give_back(self, name: str) -> None:
        """Put what was moved out back into the base weights."""
        if name in self.moved_adapters:
            self.add_to_base(self.update_of(name, moved=True))
            self._forget(name, self.moved_adapters)

    def give_all_back(self, but: Iterable[str] = ()) -> None:
        """The same for every adapter that is not merged, but for those named."""
        for name in set(self.moved_adapters).difference(self.merged_adapters, but):
            self.give_back(name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add updates to the base weights, of the active adapters where none is named.

        Raises:
            OptionError: with `safe_merge`, the merged weights would not be finite.
        """
        for name in adapter_names or self.active_adapters:
            if name not in self.scaling or name in self.merged_adapters:
                continue
            update = self.update_of(name)
            if safe_merge and not torch.isfinite(update).all():
                raise OptionError(f"adapter {name!r} has entries that are not finite")
            self.add_to_base(update)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take merged updates out again; the weights come back to rounding in their dtype."""
        while self.merged_adapters:
            self.add_to_base(-self.update_of(self.merged_adapters.pop()))


class EmbeddingUpdate(AdaptedLayer):
    """An adapted nn.Embedding: x picks rows of ΔWᵀ."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        if not is_embedding(base_of(base_layer)):
            raise FormatError(f"needed an nn.Embedding; found {type(base_layer).__name__}")

    def _added(
        self, result: Tensor, x: Tensor, name: str, site: Site, *, moved: bool = False
    ) -> Tensor:
        # some models multiply what they look up by a number of their own
        factor: Any = getattr(base_of(self), "embed_scale", 1.0)
        if isinstance(factor, Tensor):
            factor = factor.to(x.device, torch.promote_types(factor.dtype, torch.float32))
        form, own = self.adapter(name, moved=moved)
        return form.added_rows(result, x, own, site, self.scaling[name] * factor)


def require_dropout(share: float) -> None:
    """Refuse a share outside 0 … 1."""
    if not 0 <= share < 1:
        raise OptionError(f"dropout must be at least 0 and below 1; found {share}")
