"""Tensors as a file stores them: a dtype's code, a shape, and bytes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import ml_dtypes
import numpy as np

from lotr_tn._arrays import is_finite
from lotr_tn.errors import CheckpointError

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

_FLOATS = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}


@dataclass(frozen=True, eq=False)
class RawTensor:
    """One stored tensor: its dtype by safetensors' code, its shape, and its bytes."""

    code: str
    shape: tuple[int, ...]
    stored: np.ndarray  # uint8, little endian, perhaps a view of a mapped file
    # raises where the bytes are not those that were written; asked once, before they are used
    require_intact: Callable[[np.ndarray], None] | None = None

    @cached_property
    def data(self) -> np.ndarray:
        """The bytes, compared with their digest where they have one."""
        if self.require_intact is not None:
            self.require_intact(self.stored)
        return self.stored

    @property
    def nbytes(self) -> int:
        """The number of bytes; none is read."""
        return self.stored.nbytes

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
    def of_finite(array: np.ndarray, name: str) -> "RawTensor":
        """The same of numbers that are to be read again: NaN and infinity are refused."""
        if not is_finite(array):
            raise CheckpointError(f"{name} holds NaN or infinite entries, which no reader takes")
        return RawTensor.of(array)

    @staticmethod
    def of(array: np.ndarray) -> "RawTensor":
        """A NumPy array of floats as it would be stored."""
        flat = np.ascontiguousarray(array).reshape(-1)
        return RawTensor(CODES[flat.dtype.name], tuple(array.shape), flat.view(np.uint8))

    @staticmethod
    def of_bytes(data: bytes) -> "RawTensor":
        """Bytes as they would be stored."""
        return RawTensor.of(np.frombuffer(data, np.uint8))
