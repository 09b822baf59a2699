"""Layers for use without PEFT, with their own switches."""

from typing import Any, final

from torch import Tensor, nn

from lotr_tn.errors import OptionError
from lotr_tn.nn.bases import is_embedding, weight_of
from lotr_tn.nn.holding import AdaptedLayer, EmbeddingUpdate


class Switched(AdaptedLayer):
    """Which adapter is active, and whether any is."""

    @property
    def disable_adapters(self) -> bool:
        """Whether all adapters are switched off."""
        return self._disable_adapters

    def set_adapter(self, names: str | list[str]) -> None:
        """Make these adapters active and free what they train; the others are frozen.

        A name that the layer does not hold has no effect on it.
        """
        self._active_adapter = [names] if isinstance(names, str) else list(names)
        for name in self.scaling:
            self.set_trainable(name, name in self.active_adapters)

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off."""
        self._disable_adapters = not enabled

    def delete_adapter(self, name: str) -> None:
        """Forget an adapter; what was moved out of the base for it is put back.

        Raises:
            OptionError: it is merged at the moment.
        """
        if name in self.merged_adapters:
            raise OptionError(f"adapter {name!r} is merged; unmerge it before it is removed")
        if name in self.rooms:
            self.give_back(name)
            self._forget(name, self.rooms)
            for values in (self.input_dropout, self.scaling, self.trained, self.sites):
                if name in values:
                    del values[name]
        self._active_adapter = [a for a in self.active_adapters if a != name]

    @property
    def weight(self) -> Tensor:
        """The base layer's weight, which some models read."""
        return weight_of(self)

    @property
    def bias(self) -> Any:
        """The base layer's bias."""
        return self.base_layer.bias


@final
class AdaptedLinear(Switched):
    """An nn.Linear or GPT-2's Conv1D with adapters: y = base(x) + s x ΔWᵀ.

    What is shared belongs to a group of layers, and the own part to this one: for LoTR
    y = base(x) + s ((x V) Gᵀ) Uᵀ. Where `torch.autocast` is on, products run in its dtype.

    Args:
        base_layer: the layer; its parameters are left as they are.

    Raises:
        FormatError: the layer is of another kind.
        UnsupportedError: the layer is quantised.

    Examples:
        >>> import torch
        >>> from lotr_tn.nn import SharedFactors
        >>> layer = AdaptedLinear(torch.nn.Linear(4, 5))
        >>> factors = SharedFactors(torch.ones(5, 2), torch.ones(4, 3))
        >>> layer.hold("default", factors, torch.ones(2, 3))
        >>> layer.set_adapter("default")
        >>> x = torch.ones(1, 4)
        >>> (layer(x) - layer.base_layer(x)).tolist()
        [[24.0, 24.0, 24.0, 24.0, 24.0]]
    """


@final
class AdaptedEmbedding(EmbeddingUpdate, Switched):
    """An nn.Embedding with adapters: looks up rows of ΔWᵀ, for LoTR rows of V, then Gᵀ and Uᵀ.

    Its matrix is (m, n) = (size of a vector, number of entries), as LoRA has it.

    Args:
        base_layer: the layer; its parameters are left as they are.

    Raises:
        FormatError: the layer is no nn.Embedding.
        UnsupportedError: the layer is quantised.
    """


def adapted(base_layer: nn.Module) -> Switched:
    """The layer's adapted form."""
    return AdaptedEmbedding(base_layer) if is_embedding(base_layer) else AdaptedLinear(base_layer)
