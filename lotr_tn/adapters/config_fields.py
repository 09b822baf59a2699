"""The fields of a LoRA's configuration, by what they mean for an update beside its factors.

Each field of PEFT's `LoraConfig` is in one of the tables; one that is in none is taken to mean
something, as nothing is known of it.
"""

from collections.abc import Mapping
from typing import Any

from lotr_tn.errors import CheckpointError, UnsupportedError

INSIDE = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
"""Ranks and scales: once a file is read they are in the factors."""

TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Which modules are updated: what is written lists them by their paths."""

MEANING = {
    "alora_invocation_tokens": "the update acts only behind these tokens",
    "ensure_weight_tying": "the update of an embedding is that of what is tied to it, too",
    "use_dora": "magnitudes renormalise W + ΔW",
    "lora_bias": "lora_B has biases",
    "use_qalora": "the update's input is pooled",
    "use_bdlora": "the factors are block diagonal",
    "layer_replication": "layers of the base model are repeated",
    "target_parameters": "parameters of experts are updated",
    "velora_config": "gradients are those of a projection",
    "kasa_config": "the base weights are changed",
    "monteclora_config": "factors are drawn from a distribution",
    "arrow_config": "the input chooses among adapters",
    "enable_lora": "lora_B is grouped",
}
"""What an update does beside its factors: of adapters that become one, all must agree."""

OTHER_TENSORS = {"bias": "none", "modules_to_save": None, "trainable_token_indices": None}
"""Which tensors an adapter has beside its updates, and what says that it has none."""

MODEL = ("revision", "task_type")
"""Which base model it is, and with which head: of two adapters that say so, both must agree."""

FREE = (
    "peft_type", "peft_version", "base_model_name_or_path", "auto_mapping", "inference_mode",
    "fan_in_fan_out", "lora_dropout", "init_lora_weights", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "runtime_config", "megatron_config", "megatron_core",
    "qalora_group_size",
)  # fmt: skip
"""How factors began and were trained, and how a layer is found and loaded; names of the base model
are compared by themselves."""

_KNOWN = {*INSIDE, *TARGETS, *MEANING, *OTHER_TENSORS, *MODEL, *FREE}
_UNSET = {"bias": "none", "revision": "main"}  # what PEFT takes
_LONGEST = 40  # letters of a value in a message


def require_same_meaning(
    configs: Mapping[str, Mapping[str, Any]], *, any_base: bool = False, any_tensors: bool = False
) -> None:
    """Refuse adapters, by name, whose updates mean different things beside their factors.

    Args:
        configs: the configuration of each.
        any_base: whether they may be of differing revisions of the base model.
        any_tensors: whether the fields of other tensors may differ, and the task they are for.

    Raises:
        CheckpointError: a field differs; it names both adapters and both values.
    """
    (first, ours), *others = configs.items()
    for name, theirs in others:
        for field in sorted({*ours, *theirs} - {*INSIDE, *TARGETS, *FREE}):
            mine, other = _value(ours, field), _value(theirs, field)
            if mine == other or (field in MODEL and None in (mine, other)):
                continue
            if (field == "revision" and any_base) or (field in _OF_TENSORS and any_tensors):
                continue
            raise CheckpointError(
                f"{first} and {name} differ in {field} ({_told(mine)} and {_told(other)}): "
                f"{_reason(field)}"
            )


_OF_TENSORS = (*OTHER_TENSORS, "task_type")


def _value(config: Mapping[str, Any], field: str) -> Any:
    """What a field says; None where it says what it says unset."""
    value = config.get(field)
    if not value or value == _UNSET.get(field):
        return None
    if field == "modules_to_save" and isinstance(value, list):
        return sorted(map(str, value))  # PEFT writes a set, in any order
    return value


def _reason(field: str) -> str:
    if field in MEANING:
        return f"{MEANING[field]}, so no one adapter means both; merge adapters that agree in it"
    if field == "revision":
        return "their base models differ (any_base=True, if both are the same weights)"
    if field in _OF_TENSORS:
        return "say whose heads to keep with extras_from, or none"
    return (
        "it is not known here, and may change what an update means; take it out of both "
        "configurations if it does not"
    )


def _told(value: Any) -> str:
    text = "none" if value is None else ascii(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def require_plain_meaning(config: Mapping[str, Any], where: str) -> None:
    """Refuse an adapter whose updates mean more than their factors say, where that would be lost.

    Raises:
        UnsupportedError: a field of `MEANING` is set.
    """
    for field, reason in MEANING.items():
        if field != "ensure_weight_tying" and (value := _value(config, field)) is not None:
            raise UnsupportedError(
                f"the adapter sets {field} ({_told(value)}): {reason}, which {where} cannot say; "
                "keep it as a LoRA, or convert it to a native file"
            )
