"""Fused experts, which are not read: recognised, so that they are named as the cause."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lotr_tn.errors import UnsupportedError


def is_experts(module: str) -> bool:
    """Whether a path is that of fused experts, by the names that transformers and PEFT give."""
    return _path(module).rpartition(".")[2] == "experts"


def require_no_experts(modules: Iterable[str], config: Mapping[str, Any], weights: Path) -> None:
    """Refuse updates of the 3-D parameters that the configuration names, where there are any."""
    targets = config.get("target_parameters")
    if not isinstance(targets, list):
        return
    holders = {str(target).rpartition(".")[0] for target in targets}
    for module in modules:
        parts = _path(module).split(".")
        ends = {".".join(parts[at:]) for at in range(len(parts))}
        if is_experts(module) or ends & holders:
            raise fused_experts(weights, module, "target_parameters in its configuration")


def fused_experts(weights: Path, module: str, sign: str) -> UnsupportedError:
    """What is said of an update of fused experts."""
    return UnsupportedError(
        f"{weights}: {module} holds updates of fused experts, 3-D parameters of a mixture of "
        f"experts ({sign}); these are not read yet, only updates of linear layers, embeddings and "
        "convolutions"
    )


def _path(module: str) -> str:
    """The path in the model: PEFT nests a second parameter of one module."""
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    return module
