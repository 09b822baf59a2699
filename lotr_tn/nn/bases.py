"""Layers that can be adapted: where their matrix is, and which way round it lies."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lotr_tn.errors import FormatError, UnsupportedError

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
NEVER_CALLED = nn.modules.linear.NonDynamicallyQuantizableLinear
"""The output layer inside nn.MultiheadAttention, which takes its weight and never calls it."""


def base_of(module: nn.Module) -> nn.Module:
    """The layer that a module adapts, or the module itself."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def can_be_adapted(module: nn.Module) -> bool:
    """Whether it is a layer of one of three kinds, and called as one."""
    if isinstance(module, nn.Linear | nn.Embedding):
        return not isinstance(module, NEVER_CALLED)
    # GPT-2's layer, by its name, so that transformers is not needed
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_embedding(module: nn.Module) -> bool:
    """Whether the layer looks rows up."""
    return isinstance(module, nn.Embedding)


def lies_transposed(module: nn.Module) -> bool:
    """Whether the layer stores (inputs, outputs): Conv1D and Embedding do, Linear does not."""
    return not isinstance(module, nn.Linear)


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
    """Refuse layers of other kinds, and quantised ones, by their names."""
    strange = [f"{n} ({type(m).__name__})" for n, m in modules.items() if not can_be_adapted(m)]
    if strange:
        raise FormatError(
            "LoTR adapts nn.Linear, GPT-2's Conv1D and nn.Embedding; found "
            f"{', '.join(strange)}: name layers of these kinds as targets"
        )
    if quantised := [name for name, module in modules.items() if _is_quantised(module)]:
        raise UnsupportedError(
            f"quantised layers are not supported; found {', '.join(quantised)}: load the model in "
            "bfloat16, or choose other targets"
        )


def _is_quantised(module: nn.Module) -> bool:
    weight = weight_of(module)
    package = type(weight.data).__module__.partition(".")[0]
    return weight.dtype not in FLOATS or weight.ndim != 2 or package in ("torchao", "bitsandbytes")
