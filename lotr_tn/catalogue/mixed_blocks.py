"""Blocks with experts, and blocks that differ within one model, by config and block number.

Paths are those of transformers. Experts are matrices of their own there, in one parameter of three
axes: each is named by the parameter's path and its number.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from lotr_tn.catalogue.sizes import (
    HEADS,
    LAYERS,
    WIDTH,
    Config,
    Linear,
    Widths,
    count,
    numbers,
    per_layer,
    size,
    widths,
)
from lotr_tn.errors import CheckpointError

Block: TypeAlias = Callable[[int], Iterable[Linear]]
"""The linear modules of a block, by its number."""

GATED = "gate_proj up_proj down_proj"
EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")


def _widths(config: Config) -> Widths:
    """Those of a model that may have no MLP but its experts."""
    if config.get("intermediate_size") is None:
        config = {**config, "intermediate_size": config.get("moe_intermediate_size")}
    return widths(config)


def _attention(width: int, query: int, kv: int, out: str = "o_proj") -> list[Linear]:
    return [
        Linear("self_attn.q_proj", query, width),
        Linear("self_attn.k_proj", kv, width),
        Linear("self_attn.v_proj", kv, width),
        Linear(f"self_attn.{out}", width, query),
    ]


def _gated(path: str, width: int, inner: int, names: str = GATED) -> list[Linear]:
    gate, up, down = names.split()
    into = [Linear(f"{path}.{name}", inner, width) for name in (gate, up)]
    return [*into, Linear(f"{path}.{down}", width, inner)]


def _experts(path: str, config: Config, inner: int) -> Iterator[Linear]:
    width, total = size(config, *WIDTH), size(config, *EXPERTS)
    for name, m, n in (("gate_up_proj", 2 * inner, width), ("down_proj", width, inner)):
        yield from (Linear(f"{path}.experts.{name}.{e}", m, n, True) for e in range(total))


def _shared_expert(config: Config) -> list[Linear]:
    """The expert of Qwen that every token takes, where the config has one."""
    width, inner = size(config, *WIDTH), count(config, "shared_expert_intermediate_size")
    if not inner:
        return []
    return [
        *_gated("mlp.shared_expert", width, inner),
        Linear("mlp.shared_expert_gate", 1, width),
    ]


def with_experts(config: Config) -> Block:
    """Llama's attention, and experts instead of its MLP in every block or in some."""
    found = _widths(config)
    attention = _attention(found.width, found.query, found.kv)
    dense = [*attention, *_gated("mlp", found.width, found.inner)]
    inner = size(config, "moe_intermediate_size", default=found.inner)
    sparse = [*attention, *_experts("mlp", config, inner), *_shared_expert(config)]
    step = size(config, "decoder_sparse_step", default=1)
    only_dense = numbers(config, "mlp_only_layers") or ()
    return lambda block: dense if (block + 1) % step or block in only_dense else sparse


def deepseek_v3(config: Config) -> Block:
    """Latent attention; a few dense blocks, then experts beside one that every token takes."""
    width, heads = size(config, *WIDTH), size(config, *HEADS)
    rope, latent = size(config, "qk_rope_head_dim"), size(config, "kv_lora_rank")
    nope, value = size(config, "qk_nope_head_dim"), size(config, "v_head_dim")
    query = heads * (nope + rope)
    queries = [Linear("self_attn.q_proj", query, width)]
    if config.get("q_lora_rank") is not None:
        rank = size(config, "q_lora_rank")
        queries = [
            Linear("self_attn.q_a_proj", rank, width),
            Linear("self_attn.q_b_proj", query, rank),
        ]
    attention = [
        *queries,
        Linear("self_attn.kv_a_proj_with_mqa", latent + rope, width),
        Linear("self_attn.kv_b_proj", heads * (nope + value), latent),
        Linear("self_attn.o_proj", width, heads * value),
    ]
    inner = size(config, "moe_intermediate_size")
    shared = inner * size(config, "n_shared_experts", default=1)
    dense = [*attention, *_gated("mlp", width, size(config, "intermediate_size"))]
    sparse = [
        *attention,
        *_experts("mlp", config, inner),
        *_gated("mlp.shared_experts", width, shared),
    ]
    first = count(config, "first_k_dense_replace", default=3)
    return lambda block: dense if block < first else sparse


def llama4(config: Config) -> Block:
    """Experts beside one that every token takes, in every block or every few."""
    found = widths(config)
    attention = _attention(found.width, found.query, found.kv)
    plain = size(config, "intermediate_size_mlp", default=2 * found.inner)
    step = size(config, "interleave_moe_layer_step", default=1)
    places = numbers(config, "moe_layers")
    dense = [*attention, *_gated("feed_forward", found.width, plain)]
    sparse = [
        *attention,
        *_experts("feed_forward", config, found.inner),
        Linear("feed_forward.router", size(config, *EXPERTS), found.width),
        *_gated("feed_forward.shared_expert", found.width, found.inner),
    ]

    def modules(block: int) -> list[Linear]:
        chosen = (block + 1) % step == 0 if places is None else block in places
        return sparse if chosen else dense

    return modules


def _first_reusing(config: Config) -> int:
    """The first block that takes keys and values from an earlier one."""
    return size(config, *LAYERS) - count(config, "num_kv_shared_layers")


def _per_layer_inputs(config: Config, width: int) -> list[Linear]:
    own = count(config, "hidden_size_per_layer_input")
    if not own:
        return []
    return [
        Linear("per_layer_input_gate", own, width),
        Linear("per_layer_projection", width, own),
    ]


def gemma3n(config: Config) -> Block:
    """MLPs as wide as each layer says, alternating updates, and keys that later blocks share."""
    inner = config.get("intermediate_size")
    wide = inner if isinstance(inner, list) else [inner] * size(config, *LAYERS)
    wide = per_layer({**config, "intermediate_size": wide}, "intermediate_size", ())
    found = widths({**config, "intermediate_size": wide[0]})
    attention = _attention(found.width, found.query, found.kv)
    laurel, streams = size(config, "laurel_rank"), size(config, "altup_num_inputs")
    rest = [
        Linear("altup.correction_coefs", streams, streams),
        Linear("altup.prediction_coefs", streams**2, streams),
        Linear("altup.modality_router", streams, found.width),
        Linear("laurel.linear_left", laurel, found.width),
        Linear("laurel.linear_right", found.width, laurel),
        *_per_layer_inputs(config, found.width),
    ]
    first = _first_reusing(config)

    def modules(block: int) -> list[Linear]:
        own = attention if block < first else [attention[0], attention[3]]
        into = size({**config, "intermediate_size": wide[block]}, "intermediate_size")
        return [*own, *_gated("mlp", found.width, into), *rest]

    return modules


def gemma4(config: Config) -> Block:
    """Wider heads in blocks of full attention, keys that later blocks share, perhaps experts."""
    layers, first = size(config, *LAYERS), _first_reusing(config)
    usual = ["sliding_attention"] * 5 + ["full_attention"]
    kinds = per_layer(config, "layer_types", [usual[i % 6] for i in range(layers - 1)] + usual[-1:])
    alike = config.get("attention_k_eq_v")
    rest = _per_layer_inputs(config, size(config, *WIDTH))
    if config.get("enable_moe_block"):
        inner = size(config, "moe_intermediate_size")
        rest += [
            Linear("router.proj", size(config, *EXPERTS), size(config, *WIDTH)),
            *(x._replace(path=x.path[1:]) for x in _experts("", config, inner)),
        ]

    def modules(block: int) -> list[Linear]:
        full, reuses = kinds[block] == "full_attention", block >= first
        found = widths({**config, **(_of_full_attention(config, block) if full else {})})
        q, k, v, out = _attention(found.width, found.query, found.kv)
        own = [q, out] if reuses else [q, k, out] if full and alike else [q, k, v, out]
        twice = 2 if reuses and config.get("use_double_wide_mlp") else 1
        return [*own, *_gated("mlp", found.width, twice * found.inner), *rest]

    return modules


def _of_full_attention(config: Config, block: int) -> dict[str, int]:
    """What a block of full attention has otherwise, as today's configs or earlier ones say it."""
    own = config.get("per_layer_config")
    if isinstance(own, dict):
        numbered = {key.lstrip("0") or "0": value for key, value in own.items()}  # "05" is 5
        found = numbered.get(str(block), {})
        return found if isinstance(found, dict) else {}
    other = {"head_dim": size(config, "global_head_dim", default=512)}
    if config.get("attention_k_eq_v") and config.get("num_global_key_value_heads") is not None:
        other["num_key_value_heads"] = size(config, "num_global_key_value_heads")
    return other


def qwen3_5(config: Config) -> Block:
    """Linear attention in most blocks; the queries of the others come with a gate."""
    found = _widths(config)
    width = found.width
    key_heads, value_heads = (size(config, f"linear_num_{x}_heads") for x in ("key", "value"))
    key, value = (size(config, f"linear_{x}_head_dim") for x in ("key", "value"))
    values = value_heads * value
    linear = [
        Linear("linear_attn.out_proj", width, values),
        Linear("linear_attn.in_proj_qkv", 2 * key_heads * key + values, width),
        Linear("linear_attn.in_proj_z", values, width),
        Linear("linear_attn.in_proj_b", value_heads, width),
        Linear("linear_attn.in_proj_a", value_heads, width),
    ]
    q, *others = _attention(width, found.query, found.kv)
    full = [q._replace(m=2 * found.query), *others]
    mlp = _gated("mlp", width, found.inner)
    if any(config.get(key) is not None for key in EXPERTS):
        inner = size(config, "moe_intermediate_size")
        mlp = [*_experts("mlp", config, inner), *_shared_expert(config)]
    step = size(config, "full_attention_interval", default=4)
    usual = [(i + 1) % step == 0 for i in range(size(config, *LAYERS))]
    kinds = per_layer(config, "layer_types", usual)
    return lambda block: [*(full if kinds[block] in (True, "full_attention") else linear), *mlp]


def _factor(config: Config) -> float:
    factor = config.get("block_ffn_dim_multiplier", 1.0)
    if not isinstance(factor, int | float) or not 0 < factor < 1e6:
        raise CheckpointError(
            f"block_ffn_dim_multiplier in the config must be positive; found {factor!r:.40}"
        )
    return factor


def lfm2(config: Config) -> Block:
    """Convolutions in some blocks, attention in the others; the MLP's width is rounded."""
    inner = size(config, "block_ff_dim", "intermediate_size")
    if config.get("block_auto_adjust_ff_dim", True):
        inner = 2 * inner // 3
        step = size(config, "block_multiple_of", default=256)
        inner = -(-int(_factor(config) * inner) // step) * step
    found = widths({**config, "intermediate_size": inner})
    width = found.width
    convolution = [Linear("conv.in_proj", 3 * width, width), Linear("conv.out_proj", width, width)]
    attention = _attention(width, found.query, found.kv, "out_proj")
    mlp = _gated("feed_forward", width, inner, "w1 w3 w2")
    places = numbers(config, "full_attn_idxs")
    usual = [places is None or i in places for i in range(size(config, *LAYERS))]
    kinds = per_layer(config, "layer_types", usual)
    return lambda block: [
        *(attention if kinds[block] in (True, "full_attention") else convolution),
        *mlp,
    ]


def whisper(side: str, *attentions: str) -> Callable[[Config], Block]:
    """One side of an encoder-decoder, with the attentions of its blocks."""

    def blocks(config: Config) -> Block:
        width, inner = size(config, "d_model"), size(config, f"{side}_ffn_dim")
        names = ("k_proj", "v_proj", "q_proj", "out_proj")
        own = [Linear(f"{path}.{name}", width, width) for path in attentions for name in names]
        found = [*own, Linear("fc1", inner, width), Linear("fc2", width, inner)]
        return lambda block: found

    return blocks
