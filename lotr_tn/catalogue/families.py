"""The linear modules in the blocks of transformers models, by `model_type`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lotr_tn.errors import CheckpointError, UnsupportedError

WIDTH = ("hidden_size", "n_embd", "n_embed", "d_model", "dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
INNER = ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim", "d_ff", "ffn_hidden_size")
KV_HEADS = ("num_key_value_heads", "num_kv_heads")
Modules = tuple[tuple[str, str, str], ...]  # path in a block, output and input size (see `_sizes`)


@dataclass(frozen=True)
class Family:
    """What models of one type share; of a stack: path, keys of its length, modules of a block."""

    stacks: tuple[tuple[str, tuple[str, ...], Modules], ...]
    targets: tuple[str, ...]  # the modules of attention queries and values
    defaults: Mapping[str, Any] = field(default_factory=dict)  # where a config leaves them out


def _attention(path: str, names: str) -> Modules:
    """Queries, keys and values, or all in one; and the output."""
    *inputs, out = names.split()
    sizes = ("query", "kv", "kv") if len(inputs) == 3 else ("fused",)
    own = ((path + name, size, "width") for name, size in zip(inputs, sizes, strict=True))
    return (*own, (path + out, "width", "query"))


def _mlp(names: str) -> Modules:
    """All but the last widen the hidden state; the last narrows it again."""
    *up, down = names.split()
    return (*((name, "inner", "width") for name in up), (down, "width", "inner"))


def _one(path: str, attention: str, names: str, mlp: str | Modules, **defaults: Any) -> Family:
    """Models of one list of blocks; the modules of attention have names behind their path."""
    rest = _mlp(mlp) if isinstance(mlp, str) else mlp
    targets = tuple(name.rpartition(".")[2] for name in names.split()[:-1:2])
    return Family(((path, LAYERS, (*_attention(attention, names), *rest)),), targets, defaults)


def _llama(**defaults: Any) -> Family:
    mlp = "mlp.gate_proj mlp.up_proj mlp.down_proj"
    return _one("model.layers", "self_attn.", f"{QKV} o_proj", mlp, **defaults)


def _bert(path: str, names: str = "self.query self.key self.value output.dense") -> Family:
    return _one(path, "attention.", names, "intermediate.dense output.dense")


def _t5(*inner: str) -> Family:
    own = _attention("layer.0.SelfAttention.", "q k v o")
    cross = _attention("layer.1.EncDecAttention.", "q k v o")
    names = (" ".join(f"layer.{i}.DenseReluDense.{name}" for name in inner) for i in (1, 2))
    encoder, decoder = map(_mlp, names)
    return Family(
        (
            ("encoder.block", LAYERS, (*own, *encoder)),
            ("decoder.block", ("num_decoder_layers", *LAYERS), (*own, *cross, *decoder)),
        ),
        ("q", "v"),
    )


QKV = "q_proj k_proj v_proj"
NEOX = "query_key_value dense", "mlp.dense_h_to_4h mlp.dense_4h_to_h"
PHI3 = ("mlp.gate_up_proj", "two inner", "width"), ("mlp.down_proj", "width", "inner")
DEBERTA = "self.query_proj self.key_proj self.value_proj output.dense"
DISTILBERT = "q_lin k_lin v_lin out_lin"

FAMILIES: dict[str, Family] = {
    "bert": _bert("bert.encoder.layer"),
    "bloom": _one("transformer.h", "self_attention.", *NEOX),
    "camembert": _bert("roberta.encoder.layer"),
    "deberta-v2": _bert("deberta.encoder.layer", DEBERTA),
    "distilbert": _one(
        "distilbert.transformer.layer", "attention.", DISTILBERT, "ffn.lin1 ffn.lin2"
    ),
    "electra": _bert("electra.encoder.layer"),
    "falcon": _one("transformer.h", "self_attention.", *NEOX),
    "gemma": _llama(num_key_value_heads=16, head_dim=256),
    "gemma2": _llama(num_key_value_heads=4, head_dim=256),
    "gemma3_text": _llama(num_key_value_heads=4, head_dim=256),
    "gpt2": _one("transformer.h", "attn.", "c_attn c_proj", "mlp.c_fc mlp.c_proj"),
    "gpt_neo": _one("transformer.h", "attn.attention.", f"{QKV} out_proj", "mlp.c_fc mlp.c_proj"),
    "gpt_neox": _one("gpt_neox.layers", "attention.", *NEOX),
    "gptj": _one("transformer.h", "attn.", f"{QKV} out_proj", "mlp.fc_in mlp.fc_out"),
    "granite": _llama(),
    "llama": _llama(),
    "mistral": _llama(num_key_value_heads=8),
    "olmo2": _llama(),
    "opt": _one("model.decoder.layers", "self_attn.", f"{QKV} out_proj", "fc1 fc2"),
    "phi": _one("model.layers", "self_attn.", f"{QKV} dense", "mlp.fc1 mlp.fc2"),
    "phi3": _one("model.layers", "self_attn.", "qkv_proj o_proj", PHI3),
    "qwen2": _llama(num_key_value_heads=32),
    "qwen3": _llama(num_key_value_heads=32, head_dim=128),
    "roberta": _bert("roberta.encoder.layer"),
    "smollm3": _llama(num_key_value_heads=4),
    "stablelm": _llama(num_key_value_heads=32),
    "starcoder2": _one(
        "model.layers", "self_attn.", f"{QKV} o_proj", "mlp.c_fc mlp.c_proj", num_key_value_heads=2
    ),
    "t5": _t5("wi", "wo"),
    "vit": _one("vit.layers", "attention.", f"{QKV} o_proj", "mlp.fc1 mlp.fc2"),
    "xlm-roberta": _bert("roberta.encoder.layer"),
}
GATED_T5 = _t5("wi_0", "wi_1", "wo")
MODEL_TYPES = tuple(FAMILIES)
FOURFOLD = ("bloom", "falcon", "gpt2", "gpt_neo", "gptj")  # where configs leave the inner width out


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config."""
    name = config.get("model_type")
    if not isinstance(name, str):
        raise CheckpointError(
            "the config has no model_type; needed the config.json of a transformers model"
        )
    if name not in FAMILIES:
        nested = "; or give its text_config alone" if "text_config" in config else ""
        raise UnsupportedError(
            f"model_type {name!r} is not known here; known are {', '.join(FAMILIES)}: "
            f"give the shapes instead, such as q_proj=32x4096x4096{nested}"
        )
    if name == "t5" and str(config.get("feed_forward_proj", "")).startswith("gated"):
        return GATED_T5
    return FAMILIES[name]


def linear_modules(config: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Path, outputs and inputs of each linear module, block by block."""
    family = family_of(config)
    config = {**family.defaults, **config}
    sizes = _sizes(config)
    for path, keys, modules in family.stacks:
        for block in range(_size(config, *keys)):
            for name, out, into in modules:
                yield f"{path}.{block}.{name}", sizes[out], sizes[into]


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """The widths that the modules of a block have."""
    width, heads = _size(config, *WIDTH), _size(config, *HEADS)
    if config.get("head_dim") is None and config.get("d_kv") is None and width % heads:
        raise CheckpointError(
            f"a width of {width} is not divided by {heads} heads, and the config names no head_dim"
        )
    head = _size(config, "head_dim", "d_kv", default=width // heads)
    key_heads = _size(config, *KV_HEADS, default=heads)
    if config["model_type"] == "falcon" and not config.get("new_decoder_architecture"):
        key_heads = 1 if config.get("multi_query", True) else heads
    fourfold = 4 * width if config["model_type"] in FOURFOLD else None
    inner = _size(config, *INNER, default=fourfold)
    return {
        "width": width,
        "query": heads * head,
        "kv": key_heads * head,
        "fused": (heads + 2 * key_heads) * head,
        "inner": inner,
        "two inner": 2 * inner,
    }


def _size(config: Mapping[str, Any], *keys: str, default: int | None = None) -> int:
    """The first of these entries that is there and not null."""
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(
                f"{key} in the config must be a whole number of at least 1; found {value!r}"
            )
        return value
    if default is None:
        raise CheckpointError(
            f"the config of this {config['model_type']} model gives no {' or '.join(keys)}; "
            "needed a complete config.json"
        )
    return default
