"""PEFT LoRA checkpoints: folders and single files, in and out."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lotr_tn.adapters.adapter import Layout, LoRAAdapter, LoRAModule, Target
from lotr_tn.adapters.as_lora import config_text
from lotr_tn.adapters.config_fields import OTHER_TENSORS
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.errors import CheckpointError
from lotr_tn.files.peft_config import module_rank_and_scale, parse_config
from lotr_tn.files.peft_keys import factor_key, pair_keys
from lotr_tn.files.tensors import read_pickle, read_safetensors, write_safetensors
from lotr_tn.files.writing import write_folder

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PICKLES = (".bin", ".pt", ".pth")


def load_peft(path: Path) -> LoRAAdapter:
    """Read a PEFT LoRA folder, or a weights file with its adapter_config.json beside it."""
    weights, config_path = _locate(path)
    text = _read_config(config_path, weights)
    config = parse_config(text, config_path)
    tensors = read_pickle(weights) if weights.suffix in PICKLES else read_safetensors(weights)[0]
    pairs = pair_keys(tensors, weights)
    if not pairs:
        raise CheckpointError(f"{weights} holds no lora_A and lora_B tensors; nothing to convert")
    modules = tuple(
        _module(name, pair, tensors, config, weights, config_path) for name, pair in pairs.items()
    )
    used = {key for pair in pairs.values() for key in pair.values()}
    extras = {key: tensor for key, tensor in tensors.items() if key not in used}
    return LoRAAdapter(modules, extras, config, text, path)


def _locate(path: Path) -> tuple[Path, Path]:
    """The weights file and the configuration of a path that a user named."""
    if path.is_dir():
        for name in WEIGHTS:
            if (path / name).exists():
                return path / name, path / CONFIG
        raise CheckpointError(f"{path} holds no {WEIGHTS[0]} or {WEIGHTS[1]}{_what_else(path)}")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    return path, path.parent / CONFIG


def _what_else(folder: Path) -> str:
    """What a folder without PEFT's weights holds instead, where that helps."""
    inner = sorted(p.parent.name for name in WEIGHTS for p in folder.glob(f"*/{name}"))
    if inner:
        return f"; its subfolders {', '.join(inner)} hold adapters: name one"
    for other in sorted(folder.glob("*.safetensors")):
        pair_keys(read_safetensors(other)[0], other)  # names the format, if it is foreign
        return f"; to read {other.name}, name the file itself"
    return ""


def _read_config(path: Path, weights: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # line ends stay as they are
    except FileNotFoundError:
        if weights.suffix == ".safetensors":
            pair_keys(read_safetensors(weights)[0], weights)  # names the format, if it is foreign
        raise CheckpointError(
            f"{weights} has no {CONFIG} beside it, so its scale (lora_alpha / r) is unknown; put "
            "the adapter's configuration in the same folder"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path} ({error})") from None


def _module(
    name: str,
    pair: Mapping[str, str],
    tensors: Mapping[str, RawTensor],
    config: Mapping[str, Any],
    weights: Path,
    config_path: Path,
) -> LoRAModule:
    embedding = "embedding_A" in pair
    down, up = (_finite(tensors[key], key, weights) for _, key in sorted(pair.items()))
    layout = _layout(name, down.shape, up.shape, embedding, weights)
    rank = down.shape[0]
    wanted, scale = module_rank_and_scale(config, name, config_path)
    if rank != wanted:
        raise CheckpointError(
            f"{weights}: module {name} has rank {rank}, but {config_path.name} gives it {wanted}; "
            "file and configuration do not belong together"
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
    if not np.isfinite(array.astype(np.float32) if array.itemsize < 4 else array).all():
        raise CheckpointError(f"{path}: {key} holds NaN or infinite entries; the adapter is broken")
    return array


def _layout(
    name: str, a: tuple[int, ...], b: tuple[int, ...], embedding: bool, path: Path
) -> Layout:
    """What the shapes of A and B say, or an error where they say nothing sensible."""
    problem = CheckpointError(
        f"{path}: module {name} has lora_A of shape {a} and lora_B of shape {b}; needed (r, in) "
        "and (out, r), or (r, in, k…) and (out, r / groups, 1…)"
    )
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
            tensors[key] = RawTensor.of(array)
    text = adapter.config_text
    if not extras:
        text = config_text(dict(adapter.config) | OTHER_TENSORS)
    write_peft_folder(path, tensors, text, force=force)


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
