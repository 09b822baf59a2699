"""The linear modules in the blocks of transformers models, by `model_type`."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lotr_tn.catalogue import mixed_blocks
from lotr_tn.catalogue.mixed_blocks import Block
from lotr_tn.catalogue.sizes import LAYERS, Config, Linear, size, widths
from lotr_tn.errors import CheckpointError, UnsupportedError

Modules = tuple[tuple[str, str, str], ...]  # path in a block, output and input size (see `Widths`)
Blocks: TypeAlias = Callable[[Config], Block]


@dataclass(frozen=True)
class Family:
    """What models of one type share; of a stack: path, keys of its length, its blocks."""

    stacks: tuple[tuple[str, tuple[str, ...], Blocks], ...]
    targets: tuple[str, ...]  # the modules of attention queries and values
    defaults: Mapping[str, Any] = field(default_factory=dict)  # where a config leaves them out


def _alike(modules: Modules) -> Blocks:
    """Blocks that all have the same modules."""

    def blocks(config: Config) -> Block:
        sizes = widths(config)
        found = [Linear(path, sizes.named(m), sizes.named(n)) for path, m, n in modules]
        return lambda block: found

    return blocks


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
    blocks = _alike((*_attention(attention, names), *rest))
    return Family(((path, LAYERS, blocks),), targets, defaults)


def _mixed(blocks: Blocks, targets: str = "q_proj v_proj", **defaults: Any) -> Family:
    """Models whose blocks have experts, or differ from one another."""
    return Family((("model.layers", LAYERS, blocks),), tuple(targets.split()), defaults)


def _llama(**defaults: Any) -> Family:
    mlp = "mlp.gate_proj mlp.up_proj mlp.down_proj"
    return _one("model.layers", "self_attn.", f"{QKV} o_proj", mlp, **defaults)


def _glm() -> Family:
    names = f"{QKV} o_proj"
    return _one("model.layers", "self_attn.", names, PHI3, num_key_value_heads=2, head_dim=128)


def _bert(path: str, names: str = "self.query self.key self.value output.dense") -> Family:
    return _one(path, "attention.", names, "intermediate.dense output.dense")


def _t5(*inner: str) -> Family:
    own = _attention("layer.0.SelfAttention.", "q k v o")
    cross = _attention("layer.1.EncDecAttention.", "q k v o")
    names = (" ".join(f"layer.{i}.DenseReluDense.{name}" for name in inner) for i in (1, 2))
    encoder, decoder = map(_mlp, names)
    return Family(
        (
            ("encoder.block", LAYERS, _alike((*own, *encoder))),
            (
                "decoder.block",
                ("num_decoder_layers", *LAYERS),
                _alike((*own, *cross, *decoder)),
            ),
        ),
        ("q", "v"),
    )


QKV = "q_proj k_proj v_proj"
NEOX = "query_key_value dense", "mlp.dense_h_to_4h mlp.dense_4h_to_h"
PHI3 = ("mlp.gate_up_proj", "two inner", "width"), ("mlp.down_proj", "width", "inner")
DEBERTA = "self.query_proj self.key_proj self.value_proj output.dense"
DISTILBERT = "q_lin k_lin v_lin out_lin"

MOE: dict[str, Any] = {
    "num_experts": 60,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
}
DEEPSEEK: dict[str, Any] = {
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
    "v_head_dim": 128, "moe_intermediate_size": 2048, "n_routed_experts": 256,
}  # fmt: skip
QWEN3_5: dict[str, Any] = {
    "num_key_value_heads": 4, "head_dim": 256, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
}  # fmt: skip
QWEN3_5_MOE: dict[str, Any] = {
    "num_key_value_heads": 2, "num_experts": 256, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}  # fmt: skip
GEMMA3N: dict[str, Any] = {
    "num_key_value_heads": 2, "head_dim": 256, "laurel_rank": 64, "altup_num_inputs": 4,
    "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 15,
}  # fmt: skip
GEMMA4: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_size_per_layer_input": 256,
}
LLAMA4: dict[str, Any] = {
    "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 16,
    "intermediate_size_mlp": 16384,
}  # fmt: skip

FAMILIES: dict[str, Family] = {
    "bert": _bert("bert.encoder.layer"),
    "bloom": _one("transformer.h", "self_attention.", *NEOX),
    "camembert": _bert("roberta.encoder.layer"),
    "cohere": _llama(),
    "cohere2": _llama(),
    "deberta-v2": _bert("deberta.encoder.layer", DEBERTA),
    "deepseek_v3": _mixed(mixed_blocks.deepseek_v3, "q_proj q_b_proj kv_b_proj", **DEEPSEEK),
    "distilbert": _one(
        "distilbert.transformer.layer", "attention.", DISTILBERT, "ffn.lin1 ffn.lin2"
    ),
    "electra": _bert("electra.encoder.layer"),
    "exaone4": _llama(num_key_value_heads=32),
    "falcon": _one("transformer.h", "self_attention.", *NEOX),
    "gemma": _llama(num_key_value_heads=16, head_dim=256),
    "gemma2": _llama(num_key_value_heads=4, head_dim=256),
    "gemma3_text": _llama(num_key_value_heads=4, head_dim=256),
    "gemma3n_text": _mixed(mixed_blocks.gemma3n, **GEMMA3N),
    "gemma4_text": _mixed(mixed_blocks.gemma4, **GEMMA4),
    "glm": _glm(),
    "glm4": _glm(),
    "gpt2": _one("transformer.h", "attn.", "c_attn c_proj", "mlp.c_fc mlp.c_proj"),
    "gpt_neo": _one("transformer.h", "attn.attention.", f"{QKV} out_proj", "mlp.c_fc mlp.c_proj"),
    "gpt_neox": _one("gpt_neox.layers", "attention.", *NEOX),
    "gpt_oss": _mixed(
        mixed_blocks.with_experts, num_key_value_heads=8, head_dim=64, num_local_experts=128
    ),
    "gptj": _one("transformer.h", "attn.", f"{QKV} out_proj", "mlp.fc_in mlp.fc_out"),
    "granite": _llama(),
    "lfm2": _mixed(mixed_blocks.lfm2, num_key_value_heads=8),
    "llama": _llama(),
    "llama4_text": _mixed(mixed_blocks.llama4, **LLAMA4),
    "ministral": _llama(num_key_value_heads=8),
    "ministral3": _llama(num_key_value_heads=8, head_dim=128),
    "mistral": _llama(num_key_value_heads=8),
    "mixtral": _mixed(mixed_blocks.with_experts, num_key_value_heads=8, num_local_experts=8),
    "modernbert": _one(
        "model.layers",
        "attn.",
        "Wqkv Wo",
        (("mlp.Wi", "two inner", "width"), ("mlp.Wo", "width", "inner")),
    ),
    "olmo": _llama(),
    "olmo2": _llama(),
    "olmo3": _llama(),
    "olmoe": _mixed(mixed_blocks.with_experts, num_experts=64),
    "opt": _one("model.decoder.layers", "self_attn.", f"{QKV} out_proj", "fc1 fc2"),
    "phi": _one("model.layers", "self_attn.", f"{QKV} dense", "mlp.fc1 mlp.fc2"),
    "phi3": _one("model.layers", "self_attn.", "qkv_proj o_proj", PHI3),
    "qwen2": _llama(num_key_value_heads=32),
    "qwen2_5_vl_text": _llama(num_key_value_heads=8),
    "qwen2_moe": _mixed(mixed_blocks.with_experts, num_key_value_heads=16, **MOE),
    "qwen2_vl_text": _llama(num_key_value_heads=8),
    "qwen3": _llama(num_key_value_heads=32, head_dim=128),
    "qwen3_5_moe_text": _mixed(mixed_blocks.qwen3_5, **QWEN3_5 | QWEN3_5_MOE),
    "qwen3_5_text": _mixed(mixed_blocks.qwen3_5, **QWEN3_5),
    "qwen3_moe": _mixed(
        mixed_blocks.with_experts,
        num_key_value_heads=4,
        num_experts=128,
        moe_intermediate_size=768,
    ),
    "qwen3_vl_moe_text": _mixed(
        mixed_blocks.with_experts,
        num_key_value_heads=16,
        head_dim=128,
        num_experts=60,
        moe_intermediate_size=1408,
    ),
    "qwen3_vl_text": _llama(num_key_value_heads=32, head_dim=128),
    "roberta": _bert("roberta.encoder.layer"),
    "smollm3": _llama(num_key_value_heads=4),
    "stablelm": _llama(num_key_value_heads=32),
    "starcoder2": _one(
        "model.layers", "self_attn.", f"{QKV} o_proj", "mlp.c_fc mlp.c_proj", num_key_value_heads=2
    ),
    "t5": _t5("wi", "wo"),
    "vit": _one("vit.layers", "attention.", f"{QKV} o_proj", "mlp.fc1 mlp.fc2"),
    "whisper": Family(
        (
            (
                "model.encoder.layers",
                ("encoder_layers",),
                mixed_blocks.whisper("encoder", "self_attn"),
            ),
            (
                "model.decoder.layers",
                ("decoder_layers",),
                mixed_blocks.whisper("decoder", "self_attn", "encoder_attn"),
            ),
        ),
        ("q_proj", "v_proj"),
    ),
    "xlm-roberta": _bert("roberta.encoder.layer"),
}
GATED_T5 = _t5("wi_0", "wi_1", "wo")

WRAPPERS = {
    "aya_vision": "cohere2",
    "cohere2_vision": "cohere2",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "internvl": "qwen2",
    "kimi_k25": "deepseek_v3",
    "lfm2_vl": "lfm2",
    "llama4": "llama4_text",
    "llava": "llama",
    "llava_next": "llama",
    "llava_onevision": "qwen2",
    "mistral3": "mistral",
    "paligemma": "gemma",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_vl": "qwen2_vl_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "voxtral": "llama",
}
"""Model types whose config has a text_config, and the type of that where it does not say."""

MODEL_TYPES = tuple(sorted({*FAMILIES, *WRAPPERS}))
"""Every model_type that `architecture_from_config` takes."""


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config without a text_config."""
    name = config.get("model_type")
    if not isinstance(name, str):
        raise CheckpointError(
            "the config has no model_type; needed the config.json of a transformers model"
        )
    if name not in FAMILIES:
        near = difflib.get_close_matches(name[:50], MODEL_TYPES, n=3, cutoff=0)
        raise UnsupportedError(
            f"model_type {name!r:.60} is not known here; near it are {', '.join(near)}: "
            "MODEL_TYPES names all types, and any other model can be given by its shapes, such as "
            "q_proj=32x4096x4096"
        )
    if name == "t5" and str(config.get("feed_forward_proj", "")).startswith("gated"):
        return GATED_T5
    return FAMILIES[name]


def linear_modules(config: Mapping[str, Any]) -> Iterator[Linear]:
    """Path, outputs and inputs of each linear module, block by block."""
    family = family_of(config)
    config = {**family.defaults, **config}
    for path, keys, blocks in family.stacks:
        block = blocks(config)
        for i in range(size(config, *keys)):
            yield from (found._replace(path=f"{path}.{i}.{found.path}") for found in block(i))
