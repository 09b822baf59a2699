"""A layer, the shared factors of its group, and its own core."""

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from lotr_tn.errors import FormatError, OptionError
from lotr_tn.nn.bases import base_of, is_embedding, lies_transposed, require_supported, sizes
from lotr_tn.nn.factors import SharedFactors
from lotr_tn.nn.product import add_product, folds_left, folds_right

__all__ = ["TRAINED", "EmbeddingUpdate", "LinearUpdate", "LoTRLayer", "Trained"]

Trained: TypeAlias = Literal["all", "cores", "factors"]
"""Which parameters of an adapter a training changes."""

TRAINED: tuple[Trained, ...] = ("all", "cores", "factors")


class LoTRLayer(nn.Module):
    """What all adapted layers have in common: y = base(x) + s x (U G Vᵀ)ᵀ for each active adapter.

    The names of the parameters and switches are those that PEFT expects of a layer, so that one
    class serves both with and without it.

    Attributes:
        base_layer: the layer that is adapted; its own parameters are not touched.
        lotr_core: the layer's core G (r1, r2) of each adapter, by the adapter's name.
        lotr_factors: U and V of each adapter: the group's one `SharedFactors`.
        scaling: s of each adapter.
        trained: which parameters of each adapter a training changes.
        merged_adapters: adapters whose update is in the base weights at the moment.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lotr_core = nn.ParameterDict()
        self.lotr_factors = nn.ModuleDict()
        self.lotr_dropout = nn.ModuleDict()
        # what was moved out of the base weights, which a switched off adapter has to give back
        self.lotr_moved_core = nn.ParameterDict()
        self.lotr_moved_factors = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.trained: dict[str, Trained] = {}
        self.siblings: dict[str, int] = {}
        self.merged_adapters: list[str] = []
        self._active_adapter: str | list[str] = []
        self._disable_adapters = False

    def hold(
        self,
        name: str,
        factors: SharedFactors,
        core: Tensor,
        *,
        scale: float = 1.0,
        dropout: float = 0.0,
        trained: Trained = "all",
        siblings: int = 1,
    ) -> None:
        """Give the layer an adapter.

        Args:
            name: the adapter's name.
            factors: those of the group.
            core: (r1, r2); it is copied.
            scale: s.
            dropout: the share of entries of x that the update does not see while training.
            trained: what `set_trainable` sets free: "all", "cores" or "factors".
            siblings: how many layers of this group stand beside this one, itself included, and
                are expected to be given the same x.

        Raises:
            FormatError: the factors do not fit the layer, or the core does not fit the factors.
            OptionError: a number out of its range, or an unknown choice.
        """
        base = base_of(self)
        if factors.shape != sizes(base):
            raise FormatError(
                f"the factors of group {factors.group!r} are for layers of shape {factors.shape}; "
                f"this layer has {sizes(base)}"
            )
        if tuple(core.shape) != factors.ranks:
            raise FormatError(f"the core must be {factors.ranks}; found {tuple(core.shape)}")
        require_trained(trained)
        require_dropout(dropout)
        self.lotr_factors[name] = factors
        self.lotr_core[name] = nn.Parameter(core.detach().clone())
        self.lotr_dropout[name] = nn.Dropout(dropout) if dropout else nn.Identity()
        self.scaling[name], self.trained[name] = float(scale), trained
        self.siblings[name] = siblings

    def set_trainable(self, name: str, on: bool) -> None:
        """Set free what this adapter trains, or freeze all of it."""
        mode = self.trained[name]
        self.lotr_core[name].requires_grad_(on and mode != "factors")
        self.lotr_factors[name].requires_grad_(on and mode != "cores")

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output, and what each active adapter adds to it."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        names = self.names_in_effect()
        for name in self.lotr_moved_core:
            if name not in names:
                factors, core = self.lotr_moved_factors[name], self.lotr_moved_core[name]
                result = self._added(result, x, factors, core, self.scaling[name])
        if self.merged_adapters:
            return result
        for name in names:
            if name in self.scaling:
                dropout = self.lotr_dropout[name]
                dropped = dropout(x) if self.training and self._drops(dropout) else x
                result = self._added(
                    result,
                    dropped,
                    self.lotr_factors[name],
                    self.lotr_core[name],
                    self.scaling[name],
                    self.siblings[name],
                )
        return result

    def names_in_effect(self) -> list[str]:
        """The adapters that change the output: merged ones, or else the active ones."""
        if self._disable_adapters:
            return []
        active = self._active_adapter
        return self.merged_adapters or ([active] if isinstance(active, str) else active)

    @staticmethod
    def _drops(dropout: nn.Module) -> bool:
        return isinstance(dropout, nn.Dropout)

    def _added(
        self,
        result: Tensor,
        x: Tensor,
        factors: Any,
        core: Tensor,
        scale: float,
        siblings: int = 1,
    ) -> Tensor:
        raise NotImplementedError

    def update_of(self, name: str) -> Tensor:
        """ΔW = s U G Vᵀ (m, n): the one place where a matrix of that size is formed."""
        return self._product(self.lotr_factors[name], self.lotr_core[name], self.scaling[name])

    @staticmethod
    def _product(factors: Any, core: Tensor, scale: float) -> Tensor:
        with torch.no_grad():
            u, v = (
                x.to(core.device, torch.promote_types(x.dtype, torch.float32))
                for x in (factors.u, factors.v)
            )
            return (u @ (scale * core.to(u.dtype))) @ v.mT

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The update as the base layer stores its weight."""
        return self._as_stored(self.update_of(adapter))

    def _as_stored(self, update: Tensor) -> Tensor:
        return update.mT if lies_transposed(base_of(self)) else update

    def add_to_base(self, update: Tensor) -> None:
        """Add an update (m, n) to the base weights, rounding once to their dtype."""
        weight = base_of(self).weight
        assert isinstance(weight, Tensor)
        with torch.no_grad():
            wide = weight.to(torch.promote_types(weight.dtype, update.dtype))
            weight.copy_(wide + self._as_stored(update).to(weight.device))

    def move_out(self, name: str) -> SharedFactors:
        """Take the adapter's update out of the base weights, so that the sum stays what it was.

        Returns:
            A frozen copy of the factors, to be held by the other layers of the group.
        """
        factors = self.lotr_factors[name]
        assert isinstance(factors, SharedFactors)
        frozen = SharedFactors(factors.u, factors.v, factors.group).requires_grad_(False)
        self.keep_moved(name, frozen)
        return frozen

    def keep_moved(self, name: str, frozen: SharedFactors) -> None:
        """The same, with the frozen copy of the group's factors that another layer made."""
        self.take_out(name, frozen, self.lotr_core[name])

    def take_out(self, name: str, factors: SharedFactors, core: Tensor) -> None:
        """Take s U G Vᵀ, of frozen factors and a core, out of the base weights."""
        core = core.detach().clone().to(factors.u.device)
        self.lotr_moved_factors[name] = factors
        self.lotr_moved_core[name] = nn.Parameter(core, requires_grad=False)
        self.add_to_base(-self._product(factors, core, self.scaling[name]))

    def give_back(self, name: str) -> None:
        """Put what was moved out back into the base weights."""
        if name in self.lotr_moved_core:
            factors, core = self.lotr_moved_factors[name], self.lotr_moved_core[name]
            self.add_to_base(self._product(factors, core, self.scaling[name]))
            del self.lotr_moved_factors[name], self.lotr_moved_core[name]

    def give_all_back(self, but: Iterable[str] = ()) -> None:
        """The same for every adapter that is not merged, but for those named."""
        for name in set(self.lotr_moved_core).difference(self.merged_adapters, but):
            self.give_back(name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add updates to the base weights.

        Args:
            safe_merge: refuse to leave entries that are not finite.
            adapter_names: which adapters; the active ones where left out. Those that are merged
                already are left as they are.

        Raises:
            OptionError: with `safe_merge`, the merged weights would not be finite.
        """
        active = self._active_adapter
        names = adapter_names or ([active] if isinstance(active, str) else active)
        for name in names:
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
        self.give_back(name)
        for parts in (self.lotr_core, self.lotr_factors, self.lotr_dropout):
            if name in parts:
                del parts[name]
        for values in (self.scaling, self.trained, self.siblings):
            values.pop(name, None)


class LinearUpdate(LoTRLayer):
    """An adapted nn.Linear or Conv1D."""

    def __init__(self, base_layer: nn.Module) -> None:
        require_supported({"the layer": base_of(base_layer)})
        super().__init__(base_layer)

    def _added(
        self,
        result: Tensor,
        x: Tensor,
        factors: Any,
        core: Tensor,
        scale: float,
        siblings: int = 1,
    ) -> Tensor:
        m, n, (r1, r2) = factors.u.shape[0], factors.v.shape[0], core.shape
        asker, u, core = core, factors.u.to(x.device), core * scale
        rows = x.numel() // n
        if siblings < 2 and folds_right(rows, m, n, r1, r2):
            both = factors.v.to(x.device) @ core.mT
            if not torch.is_autocast_enabled(x.device.type):
                x = x.to(both.dtype)
            return add_product(result, x @ both, u)
        inside = factors.project(x, asker, siblings)
        if folds_left(rows, m, n, r1, r2):
            return add_product(result, inside, u @ core)
        return add_product(result, functional.linear(inside, core), u)


class EmbeddingUpdate(LoTRLayer):
    """An adapted nn.Embedding: x picks rows of V, which stand for the columns of (U G Vᵀ)."""

    def __init__(self, base_layer: nn.Module) -> None:
        require_supported({"the layer": base_of(base_layer)})
        if not is_embedding(base_of(base_layer)):
            raise FormatError(f"needed an nn.Embedding; found {type(base_layer).__name__}")
        super().__init__(base_layer)

    @staticmethod
    def _drops(dropout: nn.Module) -> bool:
        return False  # indices cannot be dropped

    def _added(
        self,
        result: Tensor,
        x: Tensor,
        factors: Any,
        core: Tensor,
        scale: float,
        siblings: int = 1,
    ) -> Tensor:
        base = base_of(self)
        assert isinstance(base, nn.Embedding)
        m, (r1, r2) = factors.u.shape[0], core.shape
        u, core = factors.u.to(x.device), core * scale
        # some models multiply what they look up by a number of their own
        if (factor := getattr(base, "embed_scale", None)) is not None:
            core = core * torch.as_tensor(factor, device=core.device, dtype=core.dtype)
        inside = functional.embedding(x, factors.v.to(x.device), base.padding_idx)
        if folds_left(x.numel(), m, 0, r1, r2):
            return add_product(result, inside, u @ core)
        return add_product(result, functional.linear(inside, core), u)


def require_trained(value: str) -> None:
    """Refuse a choice of parameters that is not known."""
    if value not in TRAINED:
        raise OptionError(
            f"train must be {', '.join(TRAINED[:-1])} or {TRAINED[-1]}; found {value!r}"
        )


def require_dropout(share: float) -> None:
    """Refuse a share outside 0 … 1."""
    if not 0 <= share < 1:
        raise OptionError(f"dropout must be at least 0 and below 1; found {share}")


def names_of(layers: Iterable[LoTRLayer]) -> list[str]:
    """The names of all adapters that any of the layers holds, sorted."""
    return sorted({name for layer in layers for name in layer.scaling})
