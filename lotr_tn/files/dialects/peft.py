"""PEFT LoRA checkpoints: folders and single files, in and out."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lotr_tn._arrays import is_finite
from lotr_tn.adapters.adapter import Layout, LoRAAdapter, LoRAModule, Target
from lotr_tn.adapters.as_lora import config_text
from lotr_tn.adapters.config_fields import OTHER_TENSORS
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.errors import CheckpointError, listed
from lotr_tn.files.experts import fused_experts, is_experts, require_no_experts
from lotr_tn.files.json_text import json_text
from lotr_tn.files.peft_config import ScaleRule, parse_config
from lotr_tn.files.peft_keys import factor_key, read_keys
from lotr_tn.files.tensors import read_safetensors, write_safetensors
from lotr_tn.files.weights import CONFIG, WEIGHTS, read_weights, require_whole, weights_in
from lotr_tn.files.writing import write_folder


def load_peft(path: Path) -> LoRAAdapter:
    """Read a PEFT LoRA folder, or a weights file with its adapter_config.json beside it."""
    weights = _weights(path)
    config_path = weights.parent / CONFIG
    text = _config_text(config_path, weights)
    config = parse_config(text, config_path)
    tensors = read_weights(weights)
    keys = read_keys(tensors, weights, own=_target_parts(config))
    if not keys.pairs:
        raise CheckpointError(f"{weights} holds no lora_A and lora_B tensors; nothing to convert")
    require_no_experts(keys.pairs, config, weights)
    rule = ScaleRule(config, config_path)
    modules = tuple(
        _module(name, pair, tensors, rule, weights, config_path)
        for name, pair in keys.pairs.items()
    )
    extras = {name: tensors[key] for name, key in keys.extras.items()}
    return LoRAAdapter(modules, extras, config, text, path, keys.notes)


def _weights(path: Path) -> Path:
    """The weights, or the index of their parts, of a path that a user named."""
    if path.is_dir():
        if (found := weights_in(path)) is not None:
            return found
        raise CheckpointError(f"{path} holds no {WEIGHTS[0]} or {WEIGHTS[1]}{_what_else(path)}")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    require_whole(path)
    return path


def _what_else(folder: Path) -> str:
    """What a folder without PEFT's weights holds instead, where that helps."""
    inner = sorted({p.parent.name for name in WEIGHTS for p in folder.glob(f"*/{name}")})
    if inner:
        return f"; its subfolders {listed(inner)} hold adapters: name one"
    others = sorted(folder.glob("*.safetensors"))
    if (folder / CONFIG).exists():
        _name_foreign(others)
        return f", but their {CONFIG}: download or copy the weights too"
    if (folder / "config.json").exists():
        return (
            ", but the config.json of a model: lotr reads adapters, so name the folder of a LoRA; "
            "of a fully trained model there is none"
        )
    _name_foreign(others)
    return f"; to read {others[0].name}, name the file itself" if others else ""


def _name_foreign(files: list[Path]) -> None:
    """Refuse the first of other weights by the name of the program whose keys it has."""
    for other in files[:1]:
        read_keys(read_safetensors(other)[0], other, configured=False)


def _config_text(path: Path, weights: Path) -> str:
    try:
        return json_text(path)
    except FileNotFoundError:
        read_keys(read_weights(weights), weights, configured=False)  # names a foreign format
        raise CheckpointError(
            f"{weights} has no {CONFIG} beside it, so its scale (lora_alpha / r) is unknown; put "
            "the adapter's configuration in the same folder"
        ) from None


def _target_parts(config: Mapping[str, Any]) -> set[str]:
    """The parts of the paths that the configuration names as targets."""
    targets = config.get("target_modules")
    named = targets if isinstance(targets, list) else [targets]
    return {part for name in named if isinstance(name, str) for part in re.split(r"[\\.]+", name)}


def _module(
    name: str,
    pair: Mapping[str, str],
    tensors: Mapping[str, RawTensor],
    rule: ScaleRule,
    weights: Path,
    config_path: Path,
) -> LoRAModule:
    embedding = "embedding_A" in pair
    a, b = (tensors[key] for _, key in sorted(pair.items()))
    layout = _layout(name, a.shape, b.shape, embedding, weights)
    down, up = (_finite(tensors[key], key, weights) for _, key in sorted(pair.items()))
    rank = down.shape[0]
    wanted, scale = rule.rank_and_scale(name)
    if rank != wanted:
        if is_experts(name) and rank % wanted == 0:
            raise fused_experts(weights, name, f"rank {rank}, {rank // wanted} times the {wanted}")
        raise CheckpointError(
            f"{weights}: module {name} has rank {rank}, but {config_path.name} gives it {wanted}; "
            "file and configuration do not belong together"
        )
    dtypes = {down.dtype.name, up.dtype.name, "float32"}
    wide = float(np.finfo("float64" if "float64" in dtypes else "float32").max)
    if abs(scale) > wide:
        raise CheckpointError(
            f"{config_path} gives module {name} the scale {scale:.3g}, more than "
            "float32 holds; give the lora_alpha that it was trained with"
        )
    return LoRAModule(
        Target(name, layout, rank), up.reshape(up.shape[0], -1), down.reshape(rank, -1), scale
    )


def _finite(tensor: RawTensor, key: str, path: Path) -> np.ndarray:
    if not tensor.is_float:
        raise CheckpointError(
            f"{path}: {key} has dtype {tensor.dtype}; needed bfloat16, float16, float32 or float64"
        )
    array = tensor.array()
    if isinstance(_owner(array), np.memmap):
        array = np.array(array)  # a file that is changed later changes no adapter
    if not is_finite(array):
        raise CheckpointError(f"{path}: {key} holds NaN or infinite entries; the adapter is broken")
    return array


def _owner(array: np.ndarray) -> np.ndarray:
    """The array whose memory this is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _layout(
    name: str, a: tuple[int, ...], b: tuple[int, ...], embedding: bool, path: Path
) -> Layout:
    """What the shapes of A and B say, or an error where they say nothing sensible."""
    problem = CheckpointError(
        f"{path}: module {name} has lora_A of shape {a} and lora_B of shape {b}; needed (r, in) "
        "and (out, r), or (r, in, k…) and (out, r / groups, 1…)"
    )
    if len(a) == len(b) == 3 and (a[0], a[1]) == (b[0], b[2]):
        raise fused_experts(path, name, f"lora_A of shape {a} and lora_B of shape {b}")
    if len(a) != len(b) or len(a) < 2 or 0 in a or 0 in b:
        raise problem
    if len(a) == 2:
        if a[0] != b[1]:
            raise problem
        return Layout("embedding" if embedding else "linear")
    groups, left = divmod(a[0], b[1])
    if embedding or left or b[0] % groups or math.prod(b[2:]) != 1:
        raise problem
    return Layout("conv", a[2:], groups)


def save_peft(adapter: LoRAAdapter, path: Path, *, force: bool, extras: bool = True) -> None:
    """Write a PEFT folder: every factor as it is, extras and configuration byte for byte.

    Without `extras` no tensor but the factors is written, and the configuration names none either.
    """
    tensors: dict[str, RawTensor] = dict(adapter.extras) if extras else {}
    for module in adapter.modules:
        for side, array in zip("AB", _stored(module), strict=True):
            key = factor_key(module.target.name, side, module.target.layout)
            tensors[key] = RawTensor.of_finite(array, key)
    text = adapter.config_text
    if not extras:
        text = config_text(dict(adapter.config) | OTHER_TENSORS)
    modules = {module.target.name for module in adapter.modules}
    _require_read_again(path, tensors, text, modules, set(adapter.extras) if extras else set())
    write_peft_folder(path, tensors, text, force=force)


def _require_read_again(
    path: Path, tensors: Mapping[str, RawTensor], text: str, modules: set[str], others: set[str]
) -> None:
    """Refuse names and settings that `load_peft` would refuse, or take for other modules."""
    try:
        keys = read_keys(tensors, path, own=_target_parts(parse_config(text, path / CONFIG)))
    except CheckpointError as error:
        raise CheckpointError(f"not written, as it could not be read again: {error}") from None
    wrong = sorted((modules ^ keys.pairs.keys()) | (others ^ keys.extras.keys()))
    if wrong:
        raise CheckpointError(
            f"{path} was not written, as {wrong[0]!r} would be read again as another tensor; "
            "needed names of modules and tensors as PEFT has them, each once"
        )


def write_peft_folder(
    path: Path, tensors: Mapping[str, RawTensor], text: str, *, force: bool
) -> None:
    """Write a folder as PEFT does: tensors, and the text of a configuration."""
    write_folder(
        path,
        {
            WEIGHTS[0]: lambda file: write_safetensors(file, tensors, {"format": "pt"}),
            CONFIG: lambda file: file.write_bytes(text.encode()),
        },
        force=force,
    )


def _stored(module: LoRAModule) -> tuple[np.ndarray, np.ndarray]:
    """A and B in the shapes that PEFT stores for the module's layout."""
    layout, up, down = module.target.layout, module.up, module.down
    if layout.kind != "conv":
        return down, up
    channels = down.shape[1] // math.prod(layout.kernel)
    a = down.reshape(down.shape[0], channels, *layout.kernel)
    return a, up.reshape(*up.shape, *(1,) * len(layout.kernel))
