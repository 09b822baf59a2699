"""Any adapter as a LoRA, in the form that every loader reads alike."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import UNIT_ROUNDOFF, narrow, require_dtype, suits_float16
from lotr_tn.adapters.adapter import Adapter, LoRAAdapter, LoRAModule, LoTRAdapter
from lotr_tn.adapters.own_factors import own_factors
from lotr_tn.adapters.raw_tensor import RawTensor

EXPORT_MARGIN = 1 / 100
"""A dtype for the factors is chosen when its unit roundoff is at most this share of the error: what
it adds changes no digit that is shown."""


@dataclass(frozen=True)
class Export:
    """A LoRA adapter made from a LoTR one.

    Attributes:
        adapter: the LoRA adapter, scale inside.
        ranks: the rank of each module by its path.
        dtype: the storage dtype of its factors.
    """

    adapter: LoRAAdapter
    ranks: Mapping[str, int]
    dtype: str


@door
def to_lora(
    adapter: LoTRAdapter, *, ranks: Literal["uniform", "minimal"] = "uniform", dtype: str = "auto"
) -> Export:
    """Write every U G_l Vᵀ as its own pair of LoRA factors.

    Each core is diagonalised, so a module gets the rank that its update has, at most min(r1, r2)
    and no more than the LoRA it came from. What is cut off is rounding of the stored cores.

    Args:
        adapter: a LoTR adapter.
        ranks: `uniform` pads all modules with zeros to one rank, which every loader takes;
            `minimal` keeps each module's own, which needs a loader that knows rank_pattern.
        dtype: storage dtype of the factors, or `auto`: the one that the original LoRA had where its
            rounding stays invisible beside the certified error, else float32 or float64.

    Returns:
        The LoRA adapter; its alpha equals its rank, and targets are listed in full.

    Raises:
        OptionError: the dtype is unknown.
        FormatError: float16 was asked for, and an entry is too large for it.

    Cost: O((m + n)·r²) flops a group and O((m + n)·r_l·r) a layer; memory of the result.
    """
    chosen = _export_dtype(adapter) if dtype == "auto" else dtype
    require_dtype(chosen)
    modules = [m for group in adapter.groups.values() for m in own_factors(group)]
    return portable_lora(
        modules,
        json.loads(adapter.config_text),
        adapter.extras,
        ranks=ranks,
        dtype=chosen,
        may_widen=dtype == "auto",
    )


def as_lora_adapter(adapter: Adapter) -> LoRAAdapter:
    """Any adapter as a LoRA, each module in its own rank."""
    if isinstance(adapter, LoRAAdapter):
        return adapter
    return to_lora(adapter, ranks="minimal").adapter


def portable_lora(
    modules: list[LoRAModule],
    config: Mapping[str, Any],
    extras: Mapping[str, RawTensor],
    *,
    ranks: Literal["uniform", "minimal"] = "uniform",
    dtype: str,
    may_widen: bool = False,
) -> Export:
    """Updates, scale inside, as a LoRA adapter in the form that every loader reads alike.

    With `may_widen` float32 is taken where float16 would lose digits.
    """
    if ranks == "uniform":
        rank = _common_rank(modules)
        modules = [_padded(module, rank) for module in modules]
    modules = [_tiled(module) for module in modules]
    if may_widen and dtype == "float16" and not all(map(fits_float16, modules)):
        dtype = "float32"
    by_name = {module.target.name: module.target.rank for module in modules}
    config = portable_config(config, by_name, max(by_name.values()))
    stored = tuple(as_dtype(module, dtype) for module in modules)
    lora = LoRAAdapter(stored, extras, config, config_text(config))
    return Export(lora, by_name, dtype)


def _export_dtype(adapter: LoTRAdapter) -> str:
    errors = [
        group.certificate.relative_error
        for group in adapter.groups.values()
        if group.certificate is not None
    ]
    smallest = min((error for error in errors if error > 0), default=0.0)
    own = str(adapter.origin.get("dtype", "float32"))
    for dtype in (own, "float32"):
        if dtype in UNIT_ROUNDOFF and UNIT_ROUNDOFF[dtype] <= EXPORT_MARGIN * smallest:
            return dtype
    return "float64" if adapter.dtype == "float64" else "float32"


def _common_rank(modules: list[LoRAModule]) -> int:
    """The smallest rank that holds every module and divides by every conv's groups."""
    needed = max(module.target.rank * module.target.layout.groups for module in modules)
    step = math.lcm(*(module.target.layout.groups for module in modules))
    return math.ceil(needed / step) * step


def _padded(module: LoRAModule, rank: int) -> LoRAModule:
    target = module.target
    missing = rank // target.layout.groups - target.rank
    if not missing:
        return module
    up = np.pad(module.up, ((0, 0), (0, missing)))
    down = np.pad(module.down, ((0, missing), (0, 0)))
    return LoRAModule(replace(target, rank=target.rank + missing), up, down)


def _tiled(module: LoRAModule) -> LoRAModule:
    """For a grouped conv each group of outputs reads its own copy of the input factor."""
    target, groups = module.target, module.target.layout.groups
    if groups == 1:
        return module
    down = np.tile(module.down, (groups, 1))
    return LoRAModule(replace(target, rank=target.rank * groups), module.up, down)


def fits_float16(module: LoRAModule) -> bool:
    """Whether float16 keeps the precision of both factors."""
    return suits_float16(module.up) and suits_float16(module.down)


def as_dtype(module: LoRAModule, dtype: str) -> LoRAModule:
    """The module with both factors in a storage dtype."""
    up, down = narrow(module.up, dtype, xp=xp), narrow(module.down, dtype, xp=xp)
    return LoRAModule(module.target, up, down)


def portable_config(
    source: Mapping[str, Any], modules: Mapping[str, int], rank: int
) -> dict[str, Any]:
    """A configuration that every loader reads alike: scale inside the factors, so alpha = rank.

    Modules, by their full path, whose rank is another than `rank` get a pattern. All settings but
    those of ranks, scales and targets stay as they were, and so does how training began, unless
    PEFT, which begins anew before it loads, would ask something of a rank then.
    """
    pattern = {f"^{re.escape(name)}": r for name, r in modules.items() if r != rank}
    usual = {"bias": "none", "fan_in_fan_out": False, "inference_mode": True}
    if source.get("init_lora_weights") in ("orthogonal", "mica"):
        source = {**source, "init_lora_weights": True}
    return {**usual, **source} | {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "target_modules": sorted({name.split(".base_layer", 1)[0] for name in modules}),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def config_text(config: Mapping[str, Any]) -> str:
    """A configuration as PEFT writes it."""
    return json.dumps(config, indent=2, sort_keys=True)
