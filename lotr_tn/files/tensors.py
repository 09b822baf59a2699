"""Tensors of a file as they are stored, read without copying.

Safetensors files are checked by the safetensors library and then mapped into memory: a tensor costs
nothing until it is used, in any dtype, without torch. Pickles are opened only through torch's
weights-only loader, which runs no code.
"""

import json
import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file

from lotr_tn._arrays import STORAGE_DTYPES, to_numpy
from lotr_tn.adapters.raw_tensor import CODES, DTYPES, RawTensor
from lotr_tn.errors import CheckpointError


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    try:
        with safe_open(path, framework="np") as file:  # checks header, offsets and file size
            return dict(file.metadata() or {})
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({error}); copy or download it again"
        ) from None


def read_header(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """A safetensors file's header and mapped data, of one file even if replaced meanwhile."""
    read_metadata(path)
    mapped = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    (length,) = struct.unpack("<Q", mapped[:8].tobytes())
    header: dict[str, Any] = json.loads(mapped[8 : 8 + length].tobytes())
    return header, mapped[8 + length :]


def map_tensors(path: Path, header: Mapping[str, Any], data: np.ndarray) -> dict[str, RawTensor]:
    """The tensors that a header describes, as views of the data."""
    tensors = {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(f"{path}: tensor {key} has the unknown dtype {entry['dtype']}")
        start, end = entry["data_offsets"]
        tensors[key] = RawTensor(entry["dtype"], tuple(entry["shape"]), data[start:end])
    return tensors


def read_safetensors(path: Path) -> tuple[dict[str, RawTensor], dict[str, str]]:
    """All tensors of a file, mapped, and its metadata."""
    header, data = read_header(path)
    return map_tensors(path, header, data), dict(header.get("__metadata__") or {})


def write_safetensors(
    path: Path, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors byte for byte. The caller sees to it that no half-written file stays."""
    kept = {key: np.ascontiguousarray(tensor.data) for key, tensor in tensors.items()}
    specs = {
        key: TensorSpec(
            dtype=DTYPES[tensor.code][0],
            shape=tensor.shape,
            data_ptr=kept[key].ctypes.data,
            data_len=kept[key].nbytes,
        )
        for key, tensor in tensors.items()
    }
    serialize_file(specs, str(path), metadata=dict(metadata))


def read_pickle(path: Path) -> dict[str, RawTensor]:
    """All tensors of a torch file, by torch's weights-only loader."""
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"{path} is a torch pickle, and torch is not installed; install 'lotr-tn[torch]', or "
            "save the adapter as safetensors"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about odd pickles: refused below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds more than tensors, or is damaged; it was not loaded, since a pickle can "
            "run code: ask for a safetensors file"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} is not a complete torch file ({reason}); copy or download it again"
        ) from None
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()
    ):
        raise CheckpointError(
            f"{path} holds a {type(loaded).__name__}, not a dictionary of named tensors as PEFT "
            "writes it"
        )
    return {key: _from_torch(path, key, value) for key, value in loaded.items()}


def _from_torch(path: Path, key: str, tensor: Any) -> RawTensor:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in CODES:
        raise CheckpointError(f"{path}: tensor {key} has the unsupported dtype {name}")
    if name in STORAGE_DTYPES:
        return RawTensor.of(to_numpy(tensor))
    import torch

    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return RawTensor(CODES[name], tuple(tensor.shape), data)
