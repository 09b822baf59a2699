"""Layers for use without PEFT, with their own switches."""

from typing import final

from torch import nn

from lotr_tn.nn.bases import is_embedding
from lotr_tn.nn.layer import EmbeddingUpdate, LinearUpdate, LoTRLayer

__all__ = ["LoTREmbedding", "LoTRLinear", "Switched", "adapted"]


class Switched(LoTRLayer):
    """Which adapter is active, and whether any is."""

    def set_adapter(self, names: str | list[str]) -> None:
        """Make these adapters active and free what they train; the others are frozen.

        A name that the layer does not hold has no effect on it.
        """
        self._active_adapter = [names] if isinstance(names, str) else list(names)
        for name in self.scaling:
            self.set_trainable(name, name in self._active_adapter)

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off."""
        self._disable_adapters = not enabled

    def delete_adapter(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            OptionError: it is merged at the moment.
        """
        self.drop(name)
        active = self._active_adapter
        self._active_adapter = [a for a in active if a != name]

    @property
    def weight(self) -> nn.Parameter:
        """The base layer's weight, which some models read."""
        weight = self.base_layer.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The base layer's bias."""
        bias = self.base_layer.bias
        assert bias is None or isinstance(bias, nn.Parameter)
        return bias


@final
class LoTRLinear(Switched, LinearUpdate):
    """An nn.Linear or GPT-2's Conv1D with LoTR adapters: y = base(x) + s ((x V) Gᵀ) Uᵀ.

    U and V belong to a group of layers, and the core G to this one. The products are taken in the
    order with the fewest operations for the number of rows, and none of them is m × n. Where
    `torch.autocast` is on, they run in its dtype.

    Args:
        base_layer: the layer; its parameters are left as they are.

    Raises:
        FormatError: the layer is of another kind.
        UnsupportedError: the layer is quantised.

    Cost: for b rows 2·b·(n·r2 + r1·r2 + m·r1) flops forward, and twice that backward, at most.

    Examples:
        >>> import torch
        >>> from lotr_tn.nn import SharedFactors
        >>> layer = LoTRLinear(torch.nn.Linear(4, 5))
        >>> factors = SharedFactors(torch.ones(5, 2), torch.ones(4, 3))
        >>> layer.hold("default", factors, torch.ones(2, 3))
        >>> layer.set_adapter("default")
        >>> x = torch.ones(1, 4)
        >>> (layer(x) - layer.base_layer(x)).tolist()
        [[24.0, 24.0, 24.0, 24.0, 24.0]]
    """


@final
class LoTREmbedding(Switched, EmbeddingUpdate):
    """An nn.Embedding with LoTR adapters: looks up rows of V, then Gᵀ and Uᵀ.

    Its matrix is (m, n) = (size of a vector, number of entries), as LoRA has it.

    Args:
        base_layer: the layer; its parameters are left as they are.

    Raises:
        FormatError: the layer is no nn.Embedding.
        UnsupportedError: the layer is quantised.
    """


def adapted(base_layer: nn.Module) -> Switched:
    """The layer's adapted form."""
    return LoTREmbedding(base_layer) if is_embedding(base_layer) else LoTRLinear(base_layer)
