"""Adapted layers: they hold a group's form and what is their own, switch it, merge it, move it."""

from abc import ABC, abstractmethod
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
    require_supported,
    sizes,
    weight_of,
)
from lotr_tn.nn.form import Form, Own


class Room(NamedTuple):
    """The attributes in which a layer keeps an adapter, each a dictionary by adapters' names."""

    form: str
    own: dict[str, str]  # by parameter


class AdaptedLayer(nn.Module, ABC):
    """What all adapted layers have in common: y = base(x) + s x ΔWᵀ for each active adapter.

    An adapter's form and own parameters lie under the names that its method gives them, by the
    adapter's name: for LoTR in `lotr_factors` and `lotr_core`. The names of the switches are those
    that PEFT expects of a layer, so that one class serves both with and without it.

    Attributes:
        base_layer: the layer that is adapted; its own parameters are not touched.
        rooms: where each adapter is kept, and where what was moved out for it, by its name.
        scaling: s of each adapter.
        trained: which parameters of each adapter a training changes.
        sites: the layer's place in each adapter's group.
        merged_adapters: adapters whose update is in the base weights at the moment.
        moved_adapters: those whose first update was moved out of the base weights, which a
            switched off adapter has to give back.
    """

    _disable_adapters: bool

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.input_dropout = nn.ModuleDict()
        self.rooms: dict[str, tuple[Room, Room]] = {}
        self.scaling: dict[str, float] = {}
        self.trained: dict[str, str] = {}
        self.sites: dict[str, Site] = {}
        self.merged_adapters: list[str] = []
        self.moved_adapters: list[str] = []

    @property
    @abstractmethod
    def active_adapters(self) -> list[str]:
        """The names of the active adapters; not all of them need be this layer's."""

    @property
    @abstractmethod
    def disable_adapters(self) -> bool:
        """Whether all adapters are switched off."""

    @abstractmethod
    def _added(
        self, result: Tensor, x: Tensor, form: Form, own: Own, site: Site, scale: float
    ) -> Tensor:
        """The result with an update added."""

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
            own: the layer's own values, by name, or the only one; they are copied. For LoTR the
                core (r1, r2).
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
        form.require_fit(own, sizes(base_of(self)))
        form.require_trained(trained)
        require_dropout(dropout)
        here, moved = (
            Room(form.method.held(moved=m), {key: form.method.kept(key, moved=m) for key in own})
            for m in (False, True)
        )
        self.rooms[name] = here, moved
        self._keep(name, form, own)
        self.input_dropout[name] = nn.Dropout(dropout) if dropout else nn.Identity()
        self.scaling[name], self.trained[name] = float(scale), trained
        self.sites[name] = site or Site()

    def _keep(self, name: str, form: Form, own: Own, *, moved: bool = False) -> None:
        room = self.rooms[name][moved]
        for attribute in room.own.values():
            if not hasattr(self, attribute):
                setattr(self, attribute, nn.ParameterDict())
        if not hasattr(self, room.form):
            setattr(self, room.form, nn.ModuleDict())
        getattr(self, room.form)[name] = form
        for key, value in own.items():
            kept = nn.Parameter(value.detach().clone(), requires_grad=not moved)
            getattr(self, room.own[key])[name] = kept

    def form_of(self, name: str, *, moved: bool = False) -> Form:
        """The form of an adapter, or the frozen one that was moved out for it."""
        return getattr(self, self.rooms[name][moved].form)[name]

    def own_of(self, name: str, *, moved: bool = False) -> dict[str, Tensor]:
        """The layer's own parameters of an adapter, or the frozen ones."""
        own = self.rooms[name][moved].own
        return {key: getattr(self, attribute)[name] for key, attribute in own.items()}

    def set_trainable(self, name: str, on: bool) -> None:
        """Set free what this adapter trains, or freeze all of it."""
        for part, parameters in self.form_of(name).parts(self.own_of(name)).items():
            for parameter in parameters:
                parameter.requires_grad_(on and self.trained[name] in ("all", part))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output, and what each active adapter adds to it."""
        if self.disable_adapters and self.merged_adapters:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        names = self.names_in_effect()
        for name in self.moved_adapters:
            if name not in names:
                form, own = self.form_of(name, moved=True), self.own_of(name, moved=True)
                site = replace(self.sites[name], siblings=1)
                result = self._added(result, x, form, own, site, self.scaling[name])
        if self.merged_adapters:
            return result
        for name in names:
            if name in self.scaling:
                dropout = self.input_dropout[name]
                dropped = dropout(x) if self.training and self._drops(dropout) else x
                form, own = self.form_of(name), self.own_of(name)
                scale, site = self.scaling[name], self.sites[name]
                result = self._added(result, dropped, form, own, site, scale)
        return result

    def names_in_effect(self) -> list[str]:
        """The adapters that change the output: merged ones, or else the active ones."""
        return [] if self.disable_adapters else self.merged_adapters or self.active_adapters

    @staticmethod
    def _drops(dropout: nn.Module) -> bool:
        return isinstance(dropout, nn.Dropout)

    @torch.no_grad()
    def update_of(self, name: str, *, moved: bool = False) -> Tensor:
        """The matrix s ΔW (m, n) of an adapter, or of what was moved out for it."""
        form, own = self.form_of(name, moved=moved), self.own_of(name, moved=moved)
        return form.delta(own, self.sites[name], self.scaling[name])

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The update as the base layer stores its weight."""
        return self._as_stored(self.update_of(adapter))

    def _as_stored(self, update: Tensor) -> Tensor:
        return update.mT if lies_transposed(base_of(self)) else update

    @torch.no_grad()
    def add_to_base(self, update: Tensor) -> None:
        """Add an update (m, n) to the base weights, rounding once to their dtype."""
        weight = weight_of(self)
        wide = weight.to(torch.promote_types(weight.dtype, update.dtype))
        weight.copy_(wide + self._as_stored(update).to(weight.device))

    def move_out(self, name: str, frozen: Form | None = None) -> Form:
        """Take the adapter's update out of the base weights, so that the sum stays what it was.

        Returns:
            A frozen copy of the form, to be given to the other layers of the group.
        """
        frozen = self.form_of(name).frozen() if frozen is None else frozen
        self.take_out(name, frozen, self.own_of(name))
        return frozen

    def take_out(self, name: str, form: Form, own: Own) -> None:
        """Take the update of a frozen form, and of own values, out of the base weights."""
        device = next(form.parameters(), weight_of(self)).device
        own = {key: value.to(device) for key, value in own.items()}
        self._keep(name, form, own, moved=True)
        self.moved_adapters.append(name)
        self.add_to_base(-self.update_of(name, moved=True))

    def give_back(self, name: str) -> None:
        """Put what was moved out back into the base weights."""
        if name in self.moved_adapters:
            self.add_to_base(self.update_of(name, moved=True))
            self._forget(name, moved=True)
            self.moved_adapters.remove(name)

    def _forget(self, name: str, *, moved: bool = False) -> None:
        room = self.rooms[name][moved]
        for attribute in (room.form, *room.own.values()):
            del getattr(self, attribute)[name]

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

    def drop(self, name: str) -> None:
        """Forget an adapter; what was moved out of the base for it is put back."""
        if name in self.merged_adapters:
            raise OptionError(f"adapter {name!r} is merged; unmerge it before it is removed")
        if name not in self.scaling:
            return
        self.give_back(name)
        self._forget(name)
        del self.input_dropout[name]
        for values in (self.rooms, self.scaling, self.trained, self.sites):
            del values[name]


class LinearUpdate(AdaptedLayer):
    """An adapted nn.Linear or Conv1D."""

    def __init__(self, base_layer: nn.Module) -> None:
        require_supported({"the layer": base_of(base_layer)})
        super().__init__(base_layer)

    def _added(
        self, result: Tensor, x: Tensor, form: Form, own: Own, site: Site, scale: float
    ) -> Tensor:
        return form.added(result, x, own, site, scale)


class EmbeddingUpdate(AdaptedLayer):
    """An adapted nn.Embedding: x picks rows of ΔWᵀ."""

    def __init__(self, base_layer: nn.Module) -> None:
        require_supported({"the layer": base_of(base_layer)})
        if not is_embedding(base_of(base_layer)):
            raise FormatError(f"needed an nn.Embedding; found {type(base_layer).__name__}")
        super().__init__(base_layer)

    @staticmethod
    def _drops(dropout: nn.Module) -> bool:
        return False  # indices cannot be dropped

    def _added(
        self, result: Tensor, x: Tensor, form: Form, own: Own, site: Site, scale: float | Tensor
    ) -> Tensor:
        base = base_of(self)
        assert isinstance(base, nn.Embedding)
        # some models multiply what they look up by a number of their own
        factor = getattr(base, "embed_scale", None)
        if isinstance(factor, Tensor):
            scale = scale * factor.to(x.device, torch.promote_types(factor.dtype, torch.float32))
        elif factor is not None:
            scale = scale * factor
        return form.added_rows(result, x, own, replace(site, padding=base.padding_idx), scale)


def require_dropout(share: float) -> None:
    """Refuse a share outside 0 … 1."""
    if not 0 <= share < 1:
        raise OptionError(f"dropout must be at least 0 and below 1; found {share}")


def names_of(layers: Iterable[AdaptedLayer]) -> list[str]:
    """The names of all adapters that any of the layers holds, sorted."""
    return sorted({name for layer in layers for name in layer.scaling})
