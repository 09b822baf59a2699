"""Layers that can be adapted: where their matrix is, and which way round it lies."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from lotr_tn.errors import FormatError, UnsupportedError

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
NEVER_CALLED = nn.modules.linear.NonDynamicallyQuantizableLinear
"""The output layer inside nn.MultiheadAttention, which takes its weight and never calls it."""

Kind = Literal["linear", "conv1d", "embedding"]


def base_of(module: nn.Module) -> nn.Module:
    """The layer that a module adapts, or the module itself."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def kind_of_layer(module: nn.Module) -> Kind | None:
    """What kind of layer it is; None for one that cannot be adapted."""
    if isinstance(module, NEVER_CALLED):
        return None
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    # GPT-2's layer, by its name, so that transformers is not needed
    conv = type(module).__name__ == "Conv1D" and hasattr(module, "nf")
    return "conv1d" if conv else None


def is_embedding(module: nn.Module) -> bool:
    """Whether the layer looks rows up."""
    return isinstance(module, nn.Embedding)


def lies_transposed(module: nn.Module) -> bool:
    """Whether the layer stores (inputs, outputs): Conv1D and Embedding do, Linear does not."""
    return kind_of_layer(module) != "linear"


def weight_of(module: nn.Module) -> Tensor:
    """The base layer's weight."""
    weight = base_of(module).weight
    assert isinstance(weight, Tensor)
    return weight


def matrix_of(module: nn.Module) -> Tensor:
    """A view of the layer's weight as (m, n) = (outputs, inputs), without gradient."""
    weight = weight_of(module).detach()
    return weight.mT if lies_transposed(module) else weight


def sizes(module: nn.Module) -> tuple[int, int]:
    """(m, n) of the layer."""
    m, n = matrix_of(module).shape
    return m, n


def require_supported(modules: Mapping[str, nn.Module]) -> None:
    """Refuse layers whose weight is no plain matrix of floats.

    Raises:
        UnsupportedError: quantised layers, by their names.
        FormatError: modules of another kind, by their names.
    """
    strange = {name: type(m).__name__ for name, m in modules.items() if kind_of_layer(m) is None}
    if strange:
        listed = ", ".join(f"{name} ({kind})" for name, kind in strange.items())
        raise FormatError(
            f"LoTR adapts nn.Linear, GPT-2's Conv1D and nn.Embedding; found {listed}: name layers "
            "of these kinds as targets"
        )
    quantised = [name for name, module in modules.items() if _is_quantised(module)]
    if quantised:
        raise UnsupportedError(
            f"quantised layers are not supported; found {', '.join(quantised)}: load the model in "
            "bfloat16, or choose other targets"
        )


def _is_quantised(module: nn.Module) -> bool:
    weight = weight_of(module)
    package = type(weight.data).__module__.partition(".")[0]
    return weight.dtype not in FLOATS or weight.ndim != 2 or package in ("torchao", "bitsandbytes")
