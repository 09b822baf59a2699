"""Strategies for adapters as PEFT stores them: adapter_config.json and its tensors."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from lotr_tn._arrays import Array
from lotr_tn.testing.strategies import sizes
from lotr_tn.testing.strategies.formats import ToArray, stored
from lotr_tn.testing.strategies.sizes import either

PATHS = {
    "q_proj": "model.layers.{}.self_attn.q_proj",
    "v_proj": "model.layers.{}.self_attn.v_proj",
    "down_proj": "model.layers.{}.mlp.down_proj",
}
"""Names of target modules, and where a model of the LLaMA family keeps them."""

MOST_BLOCKS = 3
LARGEST_SIZE = 8
PATTERN_KEYS = (*PATHS, r"layers\.0\..*", "model.layers.1.self_attn.q_proj")
"""A kind of module, a block, and one module: PEFT matches the end of a module's path."""


def adapter_configs() -> SearchStrategy[dict[str, Any]]:
    """Dictionaries as in the adapter_config.json of a PEFT LoRA. Requires the hypothesis package.

    They differ in rank, alpha, target modules, rank-stabilised scale, and in patterns that give
    some modules a rank or an alpha of their own.
    """
    keys = st.sampled_from(PATTERN_KEYS)
    alphas = st.integers(1, 32) | st.sampled_from((0.5, 2.5))
    return st.fixed_dictionaries(
        {
            "peft_type": st.just("LORA"),
            "task_type": st.just("CAUSAL_LM"),
            "base_model_name_or_path": st.just("base"),
            "r": st.integers(1, 4),
            "lora_alpha": alphas,
            "target_modules": st.lists(st.sampled_from(tuple(PATHS)), min_size=1, unique=True),
            "use_rslora": st.booleans(),
            "rank_pattern": st.dictionaries(keys, st.integers(1, 5), max_size=2),
            "alpha_pattern": st.dictionaries(keys, alphas, max_size=2),
            "bias": st.just("none"),
            "fan_in_fan_out": st.just(False),
            "init_lora_weights": st.just(True),
            "inference_mode": st.just(True),
        }
    )


def peft_state_dicts(
    *, config: Mapping[str, Any] | None = None, dtype: str = "float32", array: ToArray | None = None
) -> SearchStrategy[dict[str, Array]]:
    """Tensors by PEFT's keys: lora_A (r, in) and lora_B (out, r). Requires the hypothesis package.

    Modules of one name have one size; blocks are alike. Among the entries is lora_B = 0, which
    is how a LoRA begins.

    Args:
        config: the configuration to fit, such as `adapter_configs` draws; one is drawn where it is
            left out. Its target modules must be a list of q_proj, v_proj and down_proj.
        dtype: storage dtype: "float64", "float32", "float16" or "bfloat16".
        array: a function that each NumPy array goes through, such as `torch.from_numpy`.
    """
    return _peft_state_dicts(config, dtype, array)


@st.composite
def _peft_state_dicts(
    draw: st.DrawFn, config: Mapping[str, Any] | None, dtype: str, array: ToArray | None
) -> dict[str, Array]:
    chosen = draw(adapter_configs()) if config is None else config
    blocks = draw(st.integers(1, MOST_BLOCKS))
    sides = sizes.distinct_sizes(2, largest=LARGEST_SIZE)
    shapes = {name: draw(sides) for name in chosen["target_modules"]}
    kind = draw(st.sampled_from(("whole numbers", "normal", "fresh")))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    tensors: dict[str, Array] = {}
    for block, (name, (outputs, inputs)) in itertools.product(range(blocks), shapes.items()):
        module = PATHS[name].format(block)
        rank = _rank(chosen, module)
        a = _entries(kind, rng, (rank, inputs))
        b = _entries(kind, rng, (outputs, rank)) * (kind != "fresh")
        for side, x in (("A", a), ("B", b)):
            key = f"base_model.model.{module}.lora_{side}.weight"
            tensors[key] = stored(x, dtype, array)
    return tensors


def adapters(
    *,
    configs: SearchStrategy[dict[str, Any]] | None = None,
    dtype: str = "float32",
    array: ToArray | None = None,
) -> SearchStrategy[tuple[dict[str, Any], dict[str, Array]]]:
    """A PEFT configuration, and tensors that fit it. Requires the hypothesis package.

    Args:
        configs: a strategy of configurations; `adapter_configs()` where left out.
        dtype: as for `peft_state_dicts`.
        array: as for `peft_state_dicts`.

    Raises:
        TypeError: configs is a value instead of a strategy.
    """
    chosen = either("configs", configs, adapter_configs())
    return _adapters(chosen, dtype, array)


@st.composite
def _adapters(
    draw: st.DrawFn, chosen: SearchStrategy[dict[str, Any]], dtype: str, array: ToArray | None
) -> tuple[dict[str, Any], dict[str, Array]]:
    config = draw(chosen)
    return config, draw(peft_state_dicts(config=config, dtype=dtype, array=array))


def _rank(config: Mapping[str, Any], module: str) -> int:
    """The rank that a configuration gives a module: that of the first pattern that fits its end."""
    for key, rank in config.get("rank_pattern", {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return rank
    return config["r"]


def _entries(kind: str, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    if kind == "whole numbers":
        return rng.integers(-2, 3, size).astype(np.float64)
    return rng.standard_normal(size)
