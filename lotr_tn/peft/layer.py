"""Adapted layers with PEFT's switches."""

from collections.abc import Sequence
from typing import final

from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from lotr_tn.nn.bases import is_embedding
from lotr_tn.nn.layer import EmbeddingUpdate, LinearUpdate, LoTRLayer

__all__ = ["LotrEmbedding", "LotrLinear", "LotrTunerLayer", "tuner_layer"]


class LotrTunerLayer(BaseTunerLayer):
    """What PEFT switches on a layer; it is combined with one of the two below."""

    adapter_layer_names = ("lotr_core", "lotr_factors")
    other_param_names = (
        "lotr_dropout",
        "lotr_moved_core",
        "lotr_moved_factors",
        "scaling",
        "trained",
        "siblings",
    )

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
        assert isinstance(self, LoTRLayer)
        for name, trained in self.trained.items():
            if trained == "cores":
                self.lotr_factors[name].requires_grad_(False)
            elif trained == "factors":
                self.lotr_core[name].requires_grad_(False)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; what was moved out of the base for it is put back."""
        assert isinstance(self, LoTRLayer)
        if adapter_name in self.scaling:
            self.give_back(adapter_name)
        super().delete_adapter(adapter_name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add updates to the base weights."""
        assert isinstance(self, LoTRLayer)
        names = check_adapters_to_merge(self, adapter_names)
        if names:
            LoTRLayer.merge(self, safe_merge, names)

    def unmerge(self) -> None:
        """Take merged updates out again."""
        assert isinstance(self, LoTRLayer)
        LoTRLayer.unmerge(self)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The update as the base layer stores its weight."""
        assert isinstance(self, LoTRLayer)
        return LoTRLayer.get_delta_weight(self, adapter)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether `peft.save_as_lora` can take the update: always, unless the base was changed."""
        assert isinstance(self, LoTRLayer)
        return adapter_name not in self.lotr_moved_core


@final
class LotrLinear(LotrTunerLayer, LinearUpdate):
    """An nn.Linear or Conv1D in a PEFT model."""


@final
class LotrEmbedding(LotrTunerLayer, EmbeddingUpdate):
    """An nn.Embedding in a PEFT model."""


def tuner_layer(base_layer: nn.Module) -> LotrLinear | LotrEmbedding:
    """The layer's adapted form for PEFT."""
    return LotrEmbedding(base_layer) if is_embedding(base_layer) else LotrLinear(base_layer)
