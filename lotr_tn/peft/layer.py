"""Adapted layers with PEFT's switches."""

from collections.abc import Sequence
from typing import Any, final

from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from lotr_tn.nn.bases import is_embedding
from lotr_tn.nn.form import Form, Own
from lotr_tn.nn.holding import AdaptedLayer, EmbeddingUpdate


class TunerLayer(AdaptedLayer, BaseTunerLayer):
    """What PEFT switches on a layer."""

    other_param_names = ("input_dropout", "rooms", "scaling", "trained", "sites")

    def hold(self, name: str, form: Form, own: Own | Tensor, **setting: Any) -> None:
        """Give the layer an adapter, and tell PEFT where it is kept."""
        super().hold(name, form, own, **setting)
        room = self.rooms[name]
        names = (*self.adapter_layer_names, *room.own.values(), room.form)
        self.adapter_layer_names = tuple(dict.fromkeys(names))

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters active and free what each of them trains; PEFT would free all of it."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        for name in self.trained:
            self.set_trainable(name, name in self.active_adapters and not inference_mode)

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """Free what each of these adapters trains, or freeze them."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in self.trained.keys() & set(names):
            self.set_trainable(name, requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; what was moved out of the base for it is put back."""
        self.give_back(adapter_name)
        super().delete_adapter(adapter_name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add updates to the base weights."""
        if names := check_adapters_to_merge(self, adapter_names):
            super().merge(safe_merge, names)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether `peft.save_as_lora` can take the update: always, unless the base was changed."""
        return adapter_name not in self.moved_adapters


@final
class TunerLinear(TunerLayer):
    """An nn.Linear or Conv1D in a PEFT model."""


@final
class TunerEmbedding(TunerLayer, EmbeddingUpdate):
    """An nn.Embedding in a PEFT model."""


def tuner_layer(base_layer: nn.Module) -> TunerLinear | TunerEmbedding:
    """The layer's adapted form for PEFT."""
    return TunerEmbedding(base_layer) if is_embedding(base_layer) else TunerLinear(base_layer)
