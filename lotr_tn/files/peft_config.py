"""PEFT's adapter_config.json: what it means for the scale, and what we must refuse."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lotr_tn.errors import CheckpointError, UnsupportedError
from lotr_tn.files.json_text import json_object
from lotr_tn.files.path_patterns import PathPatterns

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
    config = json_object(text, path)
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
        if config.get(name) is None:
            raise CheckpointError(
                f"{path} has no {name}, so the scale of the updates is unknown (PEFT would "
                "silently take 8); add the value it was trained with"
            )
    _number(config["lora_alpha"], "lora_alpha", path)
    _rank(config["r"], "r", path)
    for name, check in (("rank_pattern", _rank), ("alpha_pattern", _number)):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict):
            raise CheckpointError(f"{path}: {name} must be an object; found {pattern!r}")
        for key, value in pattern.items():
            check(value, f"{name}[{key!r}]", path)


def _number(value: Any, name: str, path: Path) -> float:
    """A value as a finite float."""
    try:
        number = float(value) if type(value) in (int, float) else math.nan
        if math.isfinite(number):
            return number
    except OverflowError:  # a whole number of more digits than any float has
        pass
    raise CheckpointError(f"{path}: {name} must be a number; found {value!r}")


def _rank(value: Any, name: str, path: Path) -> None:
    if _number(value, name, path) < 1 or value != int(value) or not isinstance(value, int):
        raise CheckpointError(f"{path}: {name} must be a whole number above 0; found {value!r}")


def _refuse_features(config: Mapping[str, Any], path: Path) -> None:
    for name, (what, remedy) in _REFUSED.items():
        if config.get(name):
            raise UnsupportedError(
                f"{path} sets {name}: {what}; this is not supported, so {remedy}"
            )
    init = config.get("init_lora_weights", True)
    if not isinstance(init, bool | str | None):
        raise CheckpointError(
            f"{path}: init_lora_weights must be true, false or a word; found {init!r}"
        )
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        raise UnsupportedError(
            f"{path} sets init_lora_weights={init!r}, which changes the base weights, so the "
            f"update alone means something else; {_RESAVE}"
        )


class ScaleRule:
    """The ranks and scales that a checked configuration gives to modules.

    A pattern must match the path, or an end of it after a dot; as in PEFT the first one counts.
    """

    def __init__(self, config: Mapping[str, Any], path: Path) -> None:
        self._config = config
        self._ranks = PathPatterns(config.get("rank_pattern") or {}, path)
        self._alphas = PathPatterns(config.get("alpha_pattern") or {}, path)

    def rank_and_scale(self, module: str) -> tuple[int, float]:
        """The rank and the scale of a module."""
        rank, alpha = self._ranks.first(module), self._alphas.first(module)
        rank = self._config["r"] if rank is None else rank
        alpha = self._config["lora_alpha"] if alpha is None else alpha
        return rank, float(alpha) / (rank**0.5 if self._config.get("use_rslora") else rank)
