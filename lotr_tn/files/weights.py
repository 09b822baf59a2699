"""Where the weights of an adapter lie, in one file or in parts with an index, and reading them."""

import re
from pathlib import Path

from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.errors import CheckpointError, listed
from lotr_tn.files.json_text import json_object, json_text
from lotr_tn.files.tensors import read_safetensors
from lotr_tn.files.torch_file import read_pickle

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
INDEX = ".index.json"
PICKLES = (".bin", ".pt", ".pth")

_PART = re.compile(r"(.+)-\d{5}-of-\d{5}(\.safetensors|\.bin)")


def weights_in(folder: Path) -> Path | None:
    """The file of an adapter's weights in a folder, or the index of its parts; None for neither."""
    for name in WEIGHTS:
        for found in (folder / name, folder / f"{name}{INDEX}"):
            if found.exists():
                return found
    return None


def require_whole(path: Path) -> None:
    """Refuse a file that is one of the parts of an adapter."""
    if match := _PART.fullmatch(path.name):
        index = path.parent / f"{match[1]}{match[2]}{INDEX}"
        what = f"name its folder {path.parent}" if index.exists() else f"{index.name} is missing"
        raise CheckpointError(f"{path} is one part of an adapter in several files: {what}")


def files_of(weights: Path) -> list[Path]:
    """The files that hold the tensors: the file itself, or the parts that an index names."""
    return [weights.parent / name for name in dict.fromkeys(_index(weights).values())] or [weights]


def file_size(path: Path) -> int:
    """Bytes of a file, or of an adapter folder's weights."""
    weights = path if path.is_file() else weights_in(path)
    return 0 if weights is None else sum(part.stat().st_size for part in files_of(weights))


def read_weights(weights: Path) -> dict[str, RawTensor]:
    """All tensors of a file, or of the parts that an index names."""
    index = _index(weights)
    tensors: dict[str, RawTensor] = {}
    if not index:
        safe = weights.suffix not in PICKLES
        tensors = read_safetensors(weights)[0] if safe else read_pickle(weights)
        for key, tensor in tensors.items():
            if tensor.size == 0:
                raise CheckpointError(
                    f"{weights}: {key} is empty, of shape {tensor.shape}, as DeepSpeed's ZeRO-3 "
                    "leaves what it has not gathered: gather the parameters, and save it again"
                )
        return tensors
    for part in files_of(weights):
        if not part.exists():
            raise CheckpointError(f"{weights} names the part {part.name}, which is not there")
        for key, tensor in read_weights(part).items():
            if index.get(key) != part.name:
                raise CheckpointError(
                    f"{part} holds {key}, which {weights.name} does not say; copy all parts again"
                )
            tensors[key] = tensor
    if missing := [key for key in index if key not in tensors]:
        raise CheckpointError(
            f"{weights} names {listed(missing, 2)}, which no part holds; copy all parts again"
        )
    return tensors


def _index(weights: Path) -> dict[str, str]:
    """The part of each tensor, by an index; nothing for a file of weights."""
    if not weights.name.endswith(INDEX):
        return {}
    found = json_object(json_text(weights), weights).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{weights} has no weight_map, which names the part of each tensor")
    for name in found.values():
        if not isinstance(name, str) or Path(name).name != name or name.endswith(INDEX):
            raise CheckpointError(f"{weights}: {name!r} is no file beside it; copy it again")
    return found
