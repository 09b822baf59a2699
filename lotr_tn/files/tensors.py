"""Tensors of a safetensors file as they are stored, in any dtype, without torch.

Small files are read at once, and large ones mapped: what is mapped costs nothing until it is used.
A file that changes while it is read is refused.
"""

import os
import stat
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import TensorSpec, serialize_file

from lotr_tn.adapters.raw_tensor import DTYPES, RawTensor
from lotr_tn.errors import CheckpointError
from lotr_tn.files.recognised import LOOKED_AT, what_it_is
from lotr_tn.files.safetensors_header import LONGEST, HeaderError, parse_header

MAPPED = 4 << 20
"""Bytes from which on a file is mapped, where no more than a part of it may be needed."""

WHOLE = 64 << 20
"""Bytes up to which an adapter's file is read at once: all of its factors are needed."""


def status(path: Path) -> os.stat_result:
    """The status of a file to read; refused where there is none, or something else."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path} ({reason(error)})") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise CheckpointError(f"{path} is {kind}, not a file; name the file of the weights")
    return found


def reason(error: Exception) -> str:
    """What the system, or Python, says of a path that it does not take."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def require_unchanged(path: Path, before: os.stat_result, now: os.stat_result) -> None:
    """Refuse a file whose size or time stamp is not what it was."""
    if (before.st_size, before.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
        raise CheckpointError(
            f"{path} was changed while it was read; wait until it is written, and try again"
        )


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    found = status(path)
    return dict(_metadata(path, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=4)
def _metadata(path: Path, size: int, changed: int) -> dict[str, str]:
    return read_header(path, only=True)[0].get("__metadata__") or {}


def read_header(
    path: Path, *, only: bool = False, whole: int | None = None
) -> tuple[dict[str, Any], np.ndarray]:
    """A safetensors file's header and data, of one file even if replaced meanwhile.

    The data are read, or mapped from `whole` bytes on, and left out with `only`.
    """
    whole = MAPPED if whole is None else whole
    status(path)
    try:
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())
            header, begin = _header(path, file, before.st_size)
            if only:
                data = np.empty(0, np.uint8)
            elif before.st_size >= whole:
                data = np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)[begin:]
            else:
                data = np.frombuffer(file.read(before.st_size - begin), np.uint8)
            require_unchanged(path, before, os.fstat(file.fileno()))
    except OSError as error:
        raise CheckpointError(f"cannot read {path} ({reason(error)})") from None
    return header, data


def _header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header of an open file, and where its data begin."""
    begin = file.read(8)
    if other := what_it_is(begin + file.read(LOOKED_AT)):
        raise CheckpointError(f"{path} {other}")
    file.seek(8)
    try:
        if len(begin) < 8:
            raise HeaderError("it ends in the length of its header")
        (length,) = struct.unpack("<Q", begin)
        if length > LONGEST:
            raise HeaderError("it says that its header is too large")
        if 8 + length > size:
            raise HeaderError("it ends in its header")
        return parse_header(file.read(length), size - 8 - length), 8 + length
    except HeaderError as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({error}); copy or download it again"
        ) from None


def map_tensors(path: Path, header: Mapping[str, Any], data: np.ndarray) -> dict[str, RawTensor]:
    """The tensors that a header describes, as views of the data."""
    tensors = {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        tensors[key] = RawTensor(entry["dtype"], tuple(entry["shape"]), data[start:end])
    return tensors


def read_safetensors(path: Path) -> tuple[dict[str, RawTensor], dict[str, str]]:
    """All tensors of a file, and its metadata."""
    header, data = read_header(path, whole=WHOLE)
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
    try:
        serialize_file(specs, str(path), metadata=dict(metadata))
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{error.object!r} holds half a character; rename it") from None
