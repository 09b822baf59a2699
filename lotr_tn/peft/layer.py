"""Adapted layers with PEFT's switches."""

from collections.abc import Sequence
from typing import Any, final

from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from lotr_tn.nn.bases import is_embedding
from lotr_tn.nn.form import Form, Own
from lotr_tn.nn.holding import AdaptedLayer, EmbeddingUpdate, LinearUpdate


class TunerLayer(BaseTunerLayer, AdaptedLayer):
    """What PEFT switches on a layer; it is combined with one of the two kinds of layers."""

    other_param_names = ("input_dropout", "rooms", "scaling", "trained", "sites")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.adapter_layer_names = ()
        self._active_adapter = []
        self._disable_adapters = False

    def hold(self, name: str, form: Form, own: Own | Tensor, **setting: Any) -> None:
        """Give the layer an adapter, and tell PEFT where it is kept."""
        super().hold(name, form, own, **setting)
        room = self.rooms[name][False]
        names = (*self.adapter_layer_names, *room.own.values(), room.form)
        self.adapter_layer_names = tuple(dict.fromkeys(names))

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters active and free what each of them trains."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._refreeze()

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """Free what each of these adapters trains, or freeze them."""
        super().set_requires_grad(adapter_names, requires_grad)
        self._refreeze()

    def _refreeze(self) -> None:
        """Freeze again what is not to be trained; PEFT frees all parts of an active adapter."""
        for name, trained in self.trained.items():
            for part, parameters in self.form_of(name).parts(self.own_of(name)).items():
                for parameter in parameters:
                    parameter.requires_grad_(parameter.requires_grad and trained in ("all", part))

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; what was moved out of the base for it is put back."""
        self.give_back(adapter_name)
        super().delete_adapter(adapter_name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add updates to the base weights."""
        names = check_adapters_to_merge(self, adapter_names)
        if names:
            AdaptedLayer.merge(self, safe_merge, names)

    def unmerge(self) -> None:
        """Take merged updates out again."""
        AdaptedLayer.unmerge(self)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether `peft.save_as_lora` can take the update: always, unless the base was changed."""
        return adapter_name not in self.moved_adapters


@final
class TunerLinear(TunerLayer, LinearUpdate):
    """An nn.Linear or Conv1D in a PEFT model."""


@final
class TunerEmbedding(TunerLayer, EmbeddingUpdate):
    """An nn.Embedding in a PEFT model."""


def tuner_layer(base_layer: nn.Module) -> TunerLinear | TunerEmbedding:
    """The layer's adapted form for PEFT."""
    return TunerEmbedding(base_layer) if is_embedding(base_layer) else TunerLinear(base_layer)
