"""LoTR and other trained forms as PEFT stores them, to go on training with `lotr_tn.peft`.

For LoTR, adapter_model.safetensors has for each group `base_model.lotr_factors.<group>.u` (m, r1)
and `.v` (n, r2), once, and for each module `base_model.model.<path>.lotr_core` (r1, r2), or
`.lotr_embedding_core` where it looks rows up. The update of a module is s U G Vᵀ, with
s = lotr_alpha / √(r1 r2), or 1 without alpha. Other forms have the names of their `Method`.
adapter_config.json names the groups' modules in stack order.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import array_api_compat.numpy as numpy_namespace
import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF, is_finite, narrow, to_numpy
from lotr_tn.adapters.adapter import Layout, LoRAGroup, LoTRAdapter, LoTRGroup, Target
from lotr_tn.adapters.as_lora import config_text
from lotr_tn.adapters.config_fields import require_plain_meaning
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.adapters.storage import group_form
from lotr_tn.catalogue.methods import LOTR, METHODS, Method, Site, Tensors, sites_of
from lotr_tn.decompose import hosvd, random_factors, regauge
from lotr_tn.errors import CheckpointError, LotrError, UnsupportedError
from lotr_tn.files.dialects.contents import Contents, read_config
from lotr_tn.files.dialects.peft import write_peft_folder
from lotr_tn.files.peft_keys import PREFIX
from lotr_tn.files.weights import CONFIG, WEIGHTS, read_weights
from lotr_tn.formats import Tucker2
from lotr_tn.linalg import RelativeError
from lotr_tn.linalg.ranks import ITEM_SIZES
from lotr_tn.ops.arithmetic import scale, subtract
from lotr_tn.ops.layers import layer_of
from lotr_tn.ops.moving import astype

KEPT = (
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "inference_mode",
    "modules_to_save", "revision", "task_type", "trainable_token_indices",
)  # fmt: skip
"""What a configuration says beside the method."""


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"inference_mode": True} | {name: config[name] for name in KEPT if name in config}


def is_lotr_peft(contents: Contents) -> bool:
    """Whether it is a folder that PEFT wrote for a known method, or the weights file in one."""
    return str(contents.config.get("peft_type")) in METHODS


def load_lotr_peft(path: str | os.PathLike[str]) -> LoTRAdapter:
    """Read an adapter that PEFT saved for LoTR or another known method, scale inside the stacks.

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
    tensors = read_weights(weights)
    listed = config.get("groups")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{folder / CONFIG} names no groups of modules; save it again")
    method = METHODS.get(str(config.get("peft_type")), LOTR)
    reader = _FolderReader(weights, tensors, method, config)
    try:
        groups = {name: reader.group(name, paths) for name, paths in listed.items()}
    except CheckpointError:
        raise
    except (LotrError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from None
    extras = {key: tensor for key, tensor in tensors.items() if key not in reader.used}
    strange = [key for key in extras if _is_of(method, key)]
    if strange:
        raise CheckpointError(f"{weights}: {strange[0]!r} belongs to no module of the groups")
    for key in extras:
        if not key.startswith(PREFIX):
            raise CheckpointError(
                f"{weights}: unknown key {key!r}; PEFT's keys begin with {PREFIX}"
            )
    dtype = min((g.dtype for g in groups.values()), key=lambda name: UNIT_ROUNDOFF[name])
    origin = {"format": "lotr-peft", "dtype": dtype, "group_by": config.get("group_by", "kind")}
    return LoTRAdapter(groups, extras, config_text(_as_lora(config, groups, method)), origin, path)


def _is_of(method: Method, key: str) -> bool:
    """Whether it is the name of a tensor that a method trains."""
    begin = f"{method.name}_"
    return key.startswith(f"base_model.{begin}") or key.rpartition(".")[2].startswith(begin)


@dataclass
class _FolderReader:
    """Tensors of a file, and which of them were used."""

    path: Path
    tensors: Mapping[str, RawTensor]
    method: Method
    config: Mapping[str, Any]
    used: set[str] = field(default_factory=set)

    def group(self, name: str, paths: list[str]) -> LoTRGroup:
        """A group with its scale inside."""
        stack: Any
        stack, lookups = self._stack(name, paths)
        held = (self._held(name, moved=True, looks_up=each) for each in (False, True))
        begins = (*held, f"{PREFIX}{paths[0]}.{self.method.name}_moved_")
        if any(key.startswith(begins) for key in self.tensors):
            stack = subtract(stack, self._stack(name, paths, moved=True)[0])
        targets = []
        for index, (path, looks_up) in enumerate(zip(paths, lookups, strict=True)):
            layer = layer_of(stack, index, xp=numpy_namespace)
            rank = min(layer.left.shape[1], layer.right.shape[1])  # that of a LoRA of this layer
            targets.append(Target(path, Layout("embedding" if looks_up else "linear"), rank))
        return LoTRGroup(name, tuple(targets), stack)

    def _held(self, group: str, **where: bool) -> str:
        """What the keys of a group's shared tensors begin with."""
        return f"base_model.{self.method.held(**where)}.{group}."

    def _stack(self, name: str, paths: list[str], *, moved: bool = False) -> tuple[Any, list[bool]]:
        """The stack of a group, or of what was moved out for it, and which layers look rows up."""
        method, whole = self.method, self._held(name, moved=moved, looks_up=True)
        all_look_up = any(key.startswith(whole) for key in self.tensors)
        held = self._held(name, moved=moved, looks_up=all_look_up)
        shared = {key: self._array(held + key) for key in method.shared}
        owns, lookups = [], []
        for path in paths:
            own, looks_up = {}, all_look_up
            for key, wanted in method.own(shared).items():
                plain, stored = (
                    f"{PREFIX}{path}.{method.kept(key, moved=moved, looks_up=each)}"
                    for each in (False, True)
                )
                looks_up = stored in self.tensors
                own[key] = self._array(stored if looks_up else plain)
                if wanted not in (None, own[key].shape):
                    raise CheckpointError(
                        f"{self.path}: the {key} of {path} has shape {own[key].shape}; its group "
                        f"needs {wanted}"
                    )
            owns.append(own)
            lookups.append(looks_up)
        return self._scaled(shared, owns, sites_of(paths)), lookups

    def _scaled(self, shared: Tensors, owns: list[Tensors], sites: tuple[Site, ...]) -> Any:
        """The stack in the dtype that holds all of its tensors; a scale is rounded with it."""
        method, config = self.method, self.config
        names = {x.dtype.name for part in (shared, *owns) for x in part.values()}
        dtype = min(names, key=lambda name: UNIT_ROUNDOFF[name])
        alpha = config.get(f"{method.name}_alpha", config.get("alpha"))
        wide = dtype if alpha is None else "float64"
        parts = [
            {key: narrow(x, wide, xp=numpy_namespace) for key, x in part.items()}
            for part in (shared, *owns)
        ]
        stack = method.stack(parts[0], parts[1:], sites)
        if alpha is None:
            return stack
        root = bool(config.get("use_rslora"))
        return astype(scale(stack, method.scale(alpha, method.options(stack), root=root)), dtype)

    def _array(self, key: str) -> np.ndarray:
        self.used.add(key)
        if key not in self.tensors or not self.tensors[key].is_float:
            raise CheckpointError(f"{self.path} has no tensor {key} of floats; save it again")
        array = self.tensors[key].array()
        if not is_finite(array):
            raise CheckpointError(f"{self.path}: {key} holds NaN or infinite entries")
        return array


def _as_lora(
    config: Mapping[str, Any], groups: Mapping[str, LoTRGroup], method: Method
) -> dict[str, Any]:
    """What the configuration of a LoRA of these updates would say."""
    targets = [target for group in groups.values() for target in group.targets]
    rank = max(target.rank for target in targets)
    return _kept(config) | {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(target.name for target in targets),
        "bias": str(config.get("bias", "none")).replace(f"{method.name}_", "lora_"),
        "fan_in_fan_out": bool(config.get("fan_in_fan_out", False)),
    }


def save_lotr_peft(
    adapter: LoTRAdapter, path: str | os.PathLike[str], *, force: bool = False
) -> None:
    """Write a folder that PEFT loads and trains, with `lotr_tn.peft` imported.

    Factors are balanced, as suits a training, and the scale is inside the cores; of 16 bits by
    powers of two, so that nothing is rounded again. Groups that are no Tucker-2 become one,
    exactly, at the ranks that this needs, in float32 or wider.

    Raises:
        UnsupportedError: an update of a convolution, or one that means more than its factors say.
        CheckpointError: the target exists, or writing failed; then nothing was changed.
    """
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
    require_plain_meaning(json.loads(adapter.config_text), "LoTR in PEFT")
    tensors: dict[str, RawTensor] = dict(adapter.extras)
    ranks: dict[str, tuple[int, int]] = {}
    for name, group in adapter.groups.items():
        stack = _trainable(group)
        ranks[name] = stack.ranks
        shared, owns = LOTR.apart(stack)
        for key, factor in shared.items():
            tensors[f"base_model.{LOTR.held()}.{name}.{key}"] = RawTensor.of_finite(factor, name)
        for target, own in zip(group.targets, owns, strict=True):
            for key, core in own.items():
                stored = LOTR.kept(key, looks_up=target.layout.kind == "embedding")
                tensors[f"{PREFIX}{target.name}.{stored}"] = RawTensor.of_finite(core, target.name)
    _require_other_tensors(adapter.extras, tensors, Path(path))
    write_peft_folder(Path(path), tensors, config_text(_as_lotr(adapter, ranks)), force=force)


def _require_other_tensors(
    extras: Mapping[str, RawTensor], written: Mapping[str, RawTensor], path: Path
) -> None:
    """Refuse names that would not be read again as those of other tensors."""
    for key, tensor in extras.items():
        if written[key] is not tensor or _is_of(LOTR, key) or not key.startswith(PREFIX):
            raise CheckpointError(
                f"{path} was not written, as the name {key!r} of another tensor could not be read "
                f"again; needed {PREFIX} and a module of the base, as PEFT has it"
            )


def _trainable(group: LoTRGroup | LoRAGroup) -> Tucker2:
    """A group's updates as a balanced Tucker-2 on NumPy, of ranks above 0."""
    is_narrow = ITEM_SIZES[group.dtype] < ITEM_SIZES["float32"]
    if group_form(group).pairs:
        stack = cast("Tucker2", group.stack)
    else:  # of 16 bits, factors that are found anew would lose digits of an error that is known
        dtype = "float32" if is_narrow else group.dtype
        stack = hosvd(group.stack, RelativeError(0), dtype=dtype)
    if 0 in stack.ranks:
        return random_factors(stack.shape, (1, 1), dtype=group.dtype)
    stack = Tucker2(to_numpy(stack.u), to_numpy(stack.core), to_numpy(stack.v))
    if is_narrow:
        return _balanced_exactly(stack)
    stack = regauge(stack, "balanced")
    return Tucker2(to_numpy(stack.u), to_numpy(stack.core), to_numpy(stack.v))


def _balanced_exactly(stack: Tucker2) -> Tucker2:
    """Columns by powers of two, so that nothing is rounded; as they are, where that would.

    A direction of size σ has about √σ in its column, as in the gauge "balanced".
    """
    u, core, v = (x.astype(np.float64) for x in (stack.u, stack.core, stack.v))
    left, right = np.linalg.norm(u, axis=0), np.linalg.norm(v, axis=0)
    whole = core * left[:, None] * right
    a = _powers(np.sqrt(np.linalg.norm(whole, axis=(0, 2))), left)
    b = _powers(np.sqrt(np.linalg.norm(whole, axis=(0, 1))), right)
    wide = u * a, core / a[:, None] / b, v * b
    u, core, v = (x.astype(stack.core.dtype) for x in wide)
    back = (x.astype(np.float64) for x in (u, core, v))
    exact = all((x == y).all() for x, y in zip(wide, back, strict=True))
    return Tucker2(u, core, v) if exact else stack


def _powers(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The powers of two that bring sizes nearest to others; 1 where one of them is zero."""
    both = (wanted > 0) & (found > 0)
    ratios = np.divide(wanted, found, out=np.ones_like(wanted), where=both)
    return np.exp2(np.round(np.log2(ratios)))


def _as_lotr(adapter: LoTRAdapter, ranks: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    source = json.loads(adapter.config_text)
    usual = Counter(ranks.values()).most_common(1)[0][0]
    groups = {name: [t.name for t in group.targets] for name, group in adapter.groups.items()}
    by = adapter.origin.get("group_by", "kind")
    return _kept(source) | {
        "peft_type": LOTR.kind,
        "r": list(usual),
        "group_ranks": {name: list(pair) for name, pair in ranks.items() if pair != usual} or None,
        "group_by": by,
        "groups": groups,
        "target_modules": sorted(name for names in groups.values() for name in names),
        "bias": str(source.get("bias", "none")).replace("lora", "lotr"),
        "fan_in_fan_out": bool(source.get("fan_in_fan_out", False)),
    }
