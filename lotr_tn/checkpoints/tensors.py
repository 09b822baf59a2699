"""Tensors of a file as they are stored, read without copying.

Safetensors files are checked by the safetensors library and then mapped into memory: a tensor costs
nothing until it is used, in any dtype, without torch. Pickles are opened only through torch's
weights-only loader, which runs no code.
"""

import json
import math
import pickle
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file

from lotr_tn._arrays import STORAGE_DTYPES, to_numpy
from lotr_tn.errors import CheckpointError

__all__ = [
    "CODES",
    "DTYPES",
    "RawTensor",
    "map_tensors",
    "read_header",
    "read_metadata",
    "read_pickle",
    "read_safetensors",
    "write_safetensors",
]

DTYPES = {
    "BOOL": ("bool", 8),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "I16": ("int16", 16),
    "U16": ("uint16", 16),
    "I32": ("int32", 32),
    "U32": ("uint32", 32),
    "I64": ("int64", 64),
    "U64": ("uint64", 64),
    "F4": ("float4_e2m1fn_x2", 4),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "F32": ("float32", 32),
    "F64": ("float64", 64),
    "C64": ("complex64", 64),
}
"""By safetensors' code: the name that its writer takes, and the bits of one entry."""

CODES = {name: code for code, (name, _) in DTYPES.items()}
"""Safetensors' code by the dtype's name."""

_FLOATS = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}


@dataclass(frozen=True, eq=False)
class RawTensor:
    """One stored tensor: its dtype by safetensors' code, its shape, and its bytes."""

    code: str
    shape: tuple[int, ...]
    data: np.ndarray  # uint8, little endian, perhaps a view of a mapped file

    @property
    def is_float(self) -> bool:
        """Whether the entries are of a dtype that this package computes with."""
        return self.code in _FLOATS

    @property
    def dtype(self) -> str:
        """The dtype's name: `float32`, `bfloat16`, `int64`."""
        return DTYPES[self.code][0]

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    def array(self) -> np.ndarray:
        """The entries as a read-only array; only where `is_float`."""
        return self.data.view(_FLOATS[self.code]).reshape(self.shape)

    @staticmethod
    def of(array: np.ndarray) -> "RawTensor":
        """A NumPy array of floats as it would be stored."""
        flat = np.ascontiguousarray(array).reshape(-1)
        return RawTensor(CODES[flat.dtype.name], tuple(array.shape), flat.view(np.uint8))


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file.

    Raises:
        CheckpointError: the file is not valid safetensors, or cannot be read.
    """
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
    """The header of a safetensors file, with its `__metadata__`, and all of the data, mapped.

    Both are of one file, even where another is renamed to `path` meanwhile.

    Raises:
        CheckpointError: the file is not valid safetensors, or cannot be read.
    """
    read_metadata(path)
    mapped = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    (length,) = struct.unpack("<Q", mapped[:8].tobytes())
    header: dict[str, Any] = json.loads(mapped[8 : 8 + length].tobytes())
    return header, mapped[8 + length :]


def map_tensors(path: Path, header: Mapping[str, Any], data: np.ndarray) -> dict[str, RawTensor]:
    """The tensors that a header describes, as views of the data.

    Raises:
        CheckpointError: a dtype is unknown.
    """
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
    """All tensors of a file, mapped, and its metadata.

    Raises:
        CheckpointError: the file is not valid safetensors, or cannot be read.
    """
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
    """All tensors of a torch file, by torch's weights-only loader.

    Raises:
        CheckpointError: torch is absent, the file is damaged, or it holds more than tensors.
    """
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
