"""Sizes that a model's config gives, under the names that its family has for them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from lotr_tn.errors import CheckpointError

Config: TypeAlias = Mapping[str, Any]
"""The contents of a config.json."""

WIDTH = ("hidden_size", "n_embd", "n_embed", "d_model", "dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
INNER = ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim", "d_ff", "ffn_hidden_size")
KV_HEADS = ("num_key_value_heads", "num_kv_heads")
FOURFOLD = ("bloom", "falcon", "gpt2", "gpt_neo", "gptj")  # where configs leave the inner width out


class Linear(NamedTuple):
    """A matrix in a block: its path there, outputs, inputs."""

    path: str
    m: int
    n: int
    expert: bool = False  # one expert's slice of a parameter that holds all of them


class Widths(NamedTuple):
    """What the modules of attention and of a plain MLP widen to."""

    width: int
    query: int
    kv: int
    fused: int
    inner: int

    def named(self, name: str) -> int:
        """One of them, `two inner` too."""
        return 2 * self.inner if name == "two inner" else getattr(self, name)


def size(config: Config, *keys: str, default: int | None = None) -> int:
    """The first of these entries that is there and not null.

    Raises:
        CheckpointError: it is no whole number of at least 1, or there is none and no default.
    """
    for key in keys:
        if (value := config.get(key)) is not None:
            return whole(value, key)
    if default is None:
        raise CheckpointError(
            f"the config of this {config['model_type']} model gives no {' or '.join(keys)}; "
            "needed a complete config.json"
        )
    return default


def whole(value: Any, key: str, least: int = 1) -> int:
    """An entry that has to be a whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CheckpointError(
            f"{key} in the config must be a whole number of at least {least}; found {value!r:.50}"
        )
    return value


def per_layer(config: Config, key: str, default: Sequence[Any]) -> Sequence[Any]:
    """A list with an entry for each layer, or the default where the config has none.

    Raises:
        CheckpointError: it is no list, or has fewer entries than layers.
    """
    found = config.get(key)
    if found is None:
        return default
    layers = size(config, *LAYERS)
    if not isinstance(found, list) or len(found) < layers:
        raise CheckpointError(
            f"{key} in the config must list {layers} entries, one a layer; found {found!r:.50}"
        )
    return found


def count(config: Config, key: str, default: int = 0) -> int:
    """An entry that may be 0; the default where it is null or not there."""
    value = config.get(key)
    return default if value is None else whole(value, key, least=0)


def numbers(config: Config, key: str) -> Sequence[int] | None:
    """A list of block numbers; None where the config has none.

    Raises:
        CheckpointError: it is no list of whole numbers.
    """
    found = config.get(key)
    if found is not None and not isinstance(found, list):
        raise CheckpointError(f"{key} in the config must list block numbers; found {found!r:.50}")
    return None if found is None else [whole(value, key, least=0) for value in found]


def widths(config: Config) -> Widths:
    """The widths that the modules of a block have."""
    width, heads = size(config, *WIDTH), size(config, *HEADS)
    if config.get("head_dim") is None and config.get("d_kv") is None and width % heads:
        raise CheckpointError(
            f"a width of {width} is not divided by {heads} heads, and the config names no head_dim"
        )
    head = size(config, "head_dim", "d_kv", default=width // heads)
    key_heads = size(config, *KV_HEADS, default=heads)
    if config["model_type"] == "falcon" and not config.get("new_decoder_architecture"):
        key_heads = 1 if config.get("multi_query", True) else heads
    fourfold = 4 * width if config["model_type"] in FOURFOLD else None
    inner = size(config, *INNER, default=fourfold)
    fused = (heads + 2 * key_heads) * head
    return Widths(width, heads * head, key_heads * head, fused, inner)
