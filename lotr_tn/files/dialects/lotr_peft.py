"""LoTR as PEFT stores it: a folder to go on training from, with `lotr_tn.peft` imported.

adapter_model.safetensors has for each group `base_model.lotr_factors.<group>.u` (m, r1) and `.v`
(n, r2), once, and for each module `base_model.model.<path>.lotr_core` (r1, r2), or
`.lotr_embedding_core` where it looks rows up. adapter_config.json names the groups' modules in
stack order. The update of a module is s U G Vᵀ, with s = lotr_alpha / √(r1 r2), or 1 without alpha.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import array_api_compat.numpy as numpy_namespace
import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF, narrow, to_numpy
from lotr_tn.adapters.adapter import (
    Layout,
    LoRAGroup,
    LoTRAdapter,
    LoTRGroup,
    Target,
)
from lotr_tn.adapters.as_lora import config_text
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.decompose import hosvd, random_factors, regauge
from lotr_tn.errors import CheckpointError, LotrError, UnsupportedError
from lotr_tn.files.dialects.contents import Contents, read_config
from lotr_tn.files.dialects.peft import CONFIG, WEIGHTS
from lotr_tn.files.peft_keys import PREFIX
from lotr_tn.files.tensors import read_pickle, read_safetensors, write_safetensors
from lotr_tn.files.writing import write_folder
from lotr_tn.formats import Tucker2
from lotr_tn.linalg import RelativeError

__all__ = ["is_lotr_peft", "load_lotr_peft", "save_lotr_peft"]

METHOD = "LOTR"
FACTORS, MOVED = "lotr_factors", "lotr_moved_factors"
CORES = {FACTORS: "lotr_core", MOVED: "lotr_moved_core"}
KEPT = ("auto_mapping", "base_model_name_or_path", "modules_to_save", "revision", "task_type")
"""What a configuration says beside the method."""


def is_lotr_peft(contents: Contents) -> bool:
    """Whether it is a folder that PEFT wrote for LoTR, or the weights file in one."""
    return contents.config.get("peft_type") == METHOD


def load_lotr_peft(path: str | os.PathLike[str]) -> LoTRAdapter:
    """Read a LoTR adapter that PEFT saved, scale inside the cores.

    For an adapter that began with the principal part of the weights, the updates are the trained
    part minus what was taken out of the base: they belong to the unchanged base model.

    Raises:
        CheckpointError: files are missing, damaged, or do not fit together.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    config, weights = read_config(path), Contents(path).weights
    if weights is None:
        raise CheckpointError(f"{folder} holds no {WEIGHTS[0]} or {WEIGHTS[1]}")
    tensors = (
        read_safetensors(weights)[0] if weights.suffix == ".safetensors" else read_pickle(weights)
    )
    listed = config.get("groups")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{folder / CONFIG} names no groups of modules; save it again")
    reader = _Reader(weights, tensors)
    try:
        groups = {name: reader.group(name, paths, config) for name, paths in listed.items()}
    except CheckpointError:
        raise
    except (LotrError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from None
    extras = {key: tensor for key, tensor in tensors.items() if key not in reader.used}
    if strange := [key for key in extras if _is_ours(key)]:
        raise CheckpointError(f"{weights}: {strange[0]!r} belongs to no module of the groups")
    dtype = min((g.dtype for g in groups.values()), key=lambda name: UNIT_ROUNDOFF[name])
    origin = {"format": "lotr-peft", "dtype": dtype, "group_by": config.get("group_by", "kind")}
    return LoTRAdapter(groups, extras, config_text(_as_lora(config, groups)), origin, path)


def _is_ours(key: str) -> bool:
    return key.startswith("base_model.lotr_") or key.rpartition(".")[2].startswith("lotr_")


class _Reader:
    """Tensors of a file, and which of them were used."""

    def __init__(self, path: Path, tensors: Mapping[str, RawTensor]) -> None:
        self.path, self.tensors = path, tensors
        self.used: set[str] = set()

    def group(self, name: str, paths: list[str], config: Mapping[str, Any]) -> LoTRGroup:
        """A group with its scale inside."""
        lookups = [f"{PREFIX}{path}.lotr_embedding_core" in self.tensors for path in paths]
        u, core, v = self._parts(name, paths, lookups, FACTORS, config)
        if f"base_model.{MOVED}.{name}.u" in self.tensors:
            u0, core0, v0 = self._parts(name, paths, lookups, MOVED, config)
            (_, a, b), (_, c, d) = core.shape, core0.shape
            both = np.zeros((len(paths), a + c, b + d), dtype=core.dtype)
            both[:, :a, :b], both[:, a:, b:] = core, -core0
            u, core, v = np.concatenate([u, u0], 1), both, np.concatenate([v, v0], 1)
        rank = min(core.shape[1:])
        targets = tuple(
            Target(path, Layout("embedding" if looks_up else "linear"), rank)
            for path, looks_up in zip(paths, lookups, strict=True)
        )
        return LoTRGroup(name, targets, Tucker2(u, core, v))

    def _parts(
        self, name: str, paths: list[str], lookups: list[bool], kind: str, config: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        u, v = (self._array(f"base_model.{kind}.{name}.{side}") for side in "uv")
        cores = []
        for path, looks_up in zip(paths, lookups, strict=True):
            stored = CORES[kind].replace("core", "embedding_core") if looks_up else CORES[kind]
            core = self._array(f"{PREFIX}{path}.{stored}")
            if core.shape != (u.shape[1], v.shape[1]):
                raise CheckpointError(
                    f"{self.path}: the core of {path} has shape {core.shape}; its group needs "
                    f"{(u.shape[1], v.shape[1])}"
                )
            cores.append(core)
        core = np.stack(cores)
        dtype = min((x.dtype.name for x in (u, core, v)), key=lambda d: UNIT_ROUNDOFF[d])
        scale = _scale(config, core.shape[1], core.shape[2])
        if scale != 1:
            core = core.astype(np.float64) * scale
        u, core, v = (narrow(x, dtype, xp=numpy_namespace) for x in (u, core, v))
        return u, core, v

    def _array(self, key: str) -> np.ndarray:
        self.used.add(key)
        if key not in self.tensors or not self.tensors[key].is_float:
            raise CheckpointError(f"{self.path} has no tensor {key} of floats; save it again")
        array = self.tensors[key].array()
        if not np.isfinite(array.astype(np.float32, copy=False)).all():
            raise CheckpointError(f"{self.path}: {key} holds NaN or infinite entries")
        return array


def _scale(config: Mapping[str, Any], r1: int, r2: int) -> float:
    alpha = config.get("lotr_alpha")
    if alpha is None:
        return 1.0
    r = math.sqrt(r1 * r2)
    return float(alpha) / (math.sqrt(r) if config.get("use_rslora") else r)


def _as_lora(config: Mapping[str, Any], groups: Mapping[str, LoTRGroup]) -> dict[str, Any]:
    """What the configuration of a LoRA of these updates would say."""
    rank = max(min(group.stack.core.shape[1:]) for group in groups.values())  # pyright: ignore[reportAttributeAccessIssue]
    names = [target.name for group in groups.values() for target in group.targets]
    return {name: config.get(name) for name in KEPT} | {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(names),
        "bias": str(config.get("bias", "none")).replace("lotr", "lora"),
        "fan_in_fan_out": bool(config.get("fan_in_fan_out", False)),
        "inference_mode": True,
    }


def save_lotr_peft(
    adapter: LoTRAdapter, path: str | os.PathLike[str], *, force: bool = False
) -> None:
    """Write a folder that PEFT loads and trains, with `lotr_tn.peft` imported.

    Factors are balanced, as suits a training, and the scale is inside the cores. Groups that are
    no Tucker-2 become one, exactly, at the ranks that this needs.

    Args:
        adapter: what to write.
        path: the folder to make.
        force: whether an existing folder may be replaced.

    Raises:
        UnsupportedError: an update of a convolution.
        CheckpointError: the target exists, or writing failed; then nothing was changed.
    """
    path = Path(path)
    convs = [
        target.name
        for group in adapter.groups.values()
        for target in group.targets
        if target.layout.kind == "conv"
    ]
    if convs:
        raise UnsupportedError(
            f"LoTR in PEFT adapts linear layers and embeddings; found convolutions: "
            f"{', '.join(convs[:4])}: write a .lotr.safetensors file instead"
        )
    tensors: dict[str, RawTensor] = dict(adapter.extras)
    ranks: dict[str, tuple[int, int]] = {}
    for name, group in adapter.groups.items():
        stack = _trainable(group)
        ranks[name] = stack.ranks
        for side, factor in (("u", stack.u), ("v", stack.v)):
            tensors[f"base_model.{FACTORS}.{name}.{side}"] = RawTensor.of(factor)
        for target, core in zip(group.targets, stack.core, strict=True):
            own = "lotr_core" if target.layout.kind == "linear" else "lotr_embedding_core"
            tensors[f"{PREFIX}{target.name}.{own}"] = RawTensor.of(core)
    text = config_text(_as_lotr(adapter, ranks))
    write_folder(
        path,
        {
            WEIGHTS[0]: lambda file: write_safetensors(file, tensors, {"format": "pt"}),
            CONFIG: lambda file: file.write_bytes(text.encode()),
        },
        force=force,
    )


def _trainable(group: LoTRGroup | LoRAGroup) -> Tucker2:
    """A group's updates as a balanced Tucker-2 on NumPy, of ranks above 0."""
    stack = group.stack
    if not isinstance(stack, Tucker2):
        stack = hosvd(stack, RelativeError(0), dtype=group.dtype)
    if 0 in stack.ranks:
        return random_factors(stack.shape, (1, 1), dtype=group.dtype)
    stack = regauge(Tucker2(stack.u, stack.core, stack.v), "balanced")
    return Tucker2(to_numpy(stack.u), to_numpy(stack.core), to_numpy(stack.v))


def _as_lotr(adapter: LoTRAdapter, ranks: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    source = json.loads(adapter.config_text)
    usual = Counter(ranks.values()).most_common(1)[0][0]
    groups = {name: [t.name for t in group.targets] for name, group in adapter.groups.items()}
    by = adapter.origin.get("group_by", "kind")
    return {name: source.get(name) for name in KEPT} | {
        "peft_type": METHOD,
        "r": list(usual),
        "group_ranks": {name: list(pair) for name, pair in ranks.items() if pair != usual} or None,
        "group_by": by,
        "groups": groups,
        "target_modules": sorted(name for names in groups.values() for name in names),
        "bias": str(source.get("bias", "none")).replace("lora", "lotr"),
        "fan_in_fan_out": bool(source.get("fan_in_fan_out", False)),
        "inference_mode": True,
    }
