"""PEFT's adapter_config.json: what it means for the scale, and what we must refuse."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lotr_tn.errors import CheckpointError, UnsupportedError

PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")
"""Initialisations of A and B that leave the base weights as they are."""

_RESAVE = (
    "save it from PEFT with save_pretrained(..., path_initial_model_for_weight_conversion=...), "
    "which turns it into a plain LoRA"
)
_REFUSED = {  # field: (what it is, what to do)
    "use_dora": (
        "DoRA's magnitudes renormalise W + ΔW, and would not fit a compressed ΔW",
        "merge it into the base model, or train without use_dora",
    ),
    "lora_bias": ("biases on lora_B", "train without lora_bias"),
    "layer_replication": (
        "replicated layers, which share base weights",
        "merge it into the replicated model",
    ),
    "target_parameters": (
        "updates of 3-D parameters (mixtures of experts)",
        "adapt the experts' linear modules by target_modules",
    ),
    "use_qalora": ("QALoRA, whose input is pooled", "merge it, or train without use_qalora"),
    "use_bdlora": ("block-diagonal LoRA", "convert it to plain LoRA in PEFT first"),
    "enable_lora": (
        "the old MergedLinear layout, in which lora_B is grouped",
        "load it with the PEFT 0.2 that wrote it and merge it, or train it again",
    ),
    "velora_config": ("VeLoRA", "convert it to plain LoRA in PEFT first"),
    "kasa_config": ("KaSA, which changes the base weights", "merge it into the base model"),
    "monteclora_config": ("MonteCLoRA", "convert it to plain LoRA in PEFT first"),
    "arrow_config": ("Arrow routing between adapters", "convert the single adapters instead"),
}


def parse_config(text: str, path: Path) -> dict[str, Any]:
    """The configuration of a LoRA, checked; features that conversion would not keep are refused."""
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); copy it again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, not a JSON object")
    if "lora_parameters" in config:
        raise UnsupportedError(
            f"{path} belongs to an MLX adapter; needed a PEFT adapter_config.json"
        )
    kind = config.get("peft_type")
    if kind is None:
        raise CheckpointError(f"{path} has no peft_type; needed the adapter_config.json of a LoRA")
    if kind != "LORA":
        raise UnsupportedError(
            f"{path} describes an adapter of type {kind}; needed peft_type LORA: turn it into a "
            "LoRA first (peft.save_as_lora does it for some methods)"
        )
    _check_scale_fields(config, path)
    _refuse_features(config, path)
    return config


def _check_scale_fields(config: Mapping[str, Any], path: Path) -> None:
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        if value is None:
            raise CheckpointError(
                f"{path} has no {name}, so the scale of the updates is unknown (PEFT would "
                "silently take 8); add the value it was trained with"
            )
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise CheckpointError(f"{path}: {name} must be a number; found {value!r}")
    if not isinstance(config["r"], int) or config["r"] < 1:
        raise CheckpointError(f"{path}: r must be a whole number above 0; found {config['r']!r}")
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict):
            raise CheckpointError(f"{path}: {name} must be an object; found {pattern!r}")
        for key, value in pattern.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise CheckpointError(f"{path}: {name}[{key!r}] must be a number; found {value!r}")


def _refuse_features(config: Mapping[str, Any], path: Path) -> None:
    for name, (what, remedy) in _REFUSED.items():
        if config.get(name):
            raise UnsupportedError(
                f"{path} sets {name}: {what}; this is not supported, so {remedy}"
            )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        raise UnsupportedError(
            f"{path} sets init_lora_weights={init!r}, which changes the base weights, so the "
            f"update alone means something else; {_RESAVE}"
        )


def module_rank_and_scale(config: Mapping[str, Any], module: str, path: Path) -> tuple[int, float]:
    """The rank and the scale that the configuration gives a module.

    A pattern must match the path, or an end of it after a dot; as in PEFT the first one counts.
    """
    rank = _lookup(config.get("rank_pattern") or {}, module, path)
    alpha = _lookup(config.get("alpha_pattern") or {}, module, path)
    rank = config["r"] if rank is None else rank
    alpha = config["lora_alpha"] if alpha is None else alpha
    return int(rank), alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _lookup(pattern: Mapping[str, Any], module: str, path: Path) -> Any:
    for key, value in pattern.items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as error:
            raise CheckpointError(
                f"{path}: pattern {key!r} is no regular expression ({error})"
            ) from None
    return None
