"""The text model inside of a model that also sees or hears."""

from itertools import islice
from typing import NamedTuple

from lotr_tn.catalogue.families import WRAPPERS, family_of, linear_modules
from lotr_tn.catalogue.sizes import Config, Linear
from lotr_tn.errors import CheckpointError

MOST_MODULES = 200_000
"""More than any model has: a config that asks for more is wrong."""

USUAL = {
    "cohere2": (8192, 40, 64, 22528),
    "deepseek_v3": (7168, 61, 128, 18432),
    "gemma": (3072, 28, 16, 24576),
    "gemma2": (2304, 26, 8, 9216),
    "gemma3_text": (2304, 26, 8, 9216),
    "gemma3n_text": (2048, 35, 8, 16384),
    "gemma4_text": (2304, 30, 8, 9216),
    "lfm2": (2560, 32, 32, 12288),
    "llama": (4096, 32, 32, 11008),
    "llama4_text": (5120, 48, 40, 8192),
    "ministral3": (4096, 34, 32, 14336),
    "mistral": (4096, 32, 32, 14336),
    "qwen2": (4096, 32, 32, 22016),
    "qwen2_5_vl_text": (8192, 80, 64, 29568),
    "qwen2_vl_text": (8192, 80, 64, 29568),
    "qwen3": (4096, 32, 32, 22016),
    "qwen3_5_moe_text": (2048, 40, 16, None),
    "qwen3_5_text": (4096, 32, 16, 12288),
    "qwen3_vl_moe_text": (2048, 24, 16, 5632),
    "qwen3_vl_text": (4096, 32, 32, 22016),
}
"""Width, layers, heads and inner width that transformers leaves out of a text_config."""

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


class Described(NamedTuple):
    """The model that a config describes."""

    modules: list[Linear]
    targets: tuple[str, ...]  # names of attention queries and values that it has
    nested: bool  # whether it is the text model of a larger one


def described(config: Config) -> Described:
    """The linear modules of a config's model, or of its text model.

    Raises:
        UnsupportedError: the model_type is not known here.
        CheckpointError: a size is missing, or no whole number.
    """
    text, nested = _text_config(config)
    modules = list(islice(linear_modules(text), MOST_MODULES + 1))
    if len(modules) > MOST_MODULES:
        raise CheckpointError(
            f"the config asks for more than {MOST_MODULES:,} linear modules; look at its numbers "
            "of layers and experts"
        )
    ends = {module.path.rpartition(".")[2] for module in modules}
    targets = tuple(target for target in family_of(text).targets if target in ends)
    if nested:
        place = "language_model.model." if config["model_type"] == "llama4" else INNER
        modules = [m._replace(path=place + m.path.removeprefix("model.")) for m in modules]
    return Described(modules, targets, nested)


INNER = "model.language_model."
"""Where transformers holds the text model of all others."""


def _text_config(config: Config) -> tuple[Config, bool]:
    """The config of the text model, and whether it is one of a larger model."""
    name, text = config.get("model_type"), config.get("text_config")
    known = WRAPPERS.get(name) if isinstance(name, str) else None
    if text is None:
        return ({**config, "model_type": known}, True) if known else (config, False)
    if not isinstance(text, dict):
        raise CheckpointError(
            f"text_config in the config must be an object; found {type(text).__name__}"
        )
    kind = text.get("model_type") or known or name
    usual = dict(zip(SIZES, USUAL.get(str(kind), ()), strict=False))
    given = {key: value for key, value in text.items() if value is not None or key not in usual}
    return {**usual, **given, "model_type": kind}, True
