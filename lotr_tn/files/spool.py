"""Arrays that do not fit in memory together, put aside in one anonymous file."""

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from lotr_tn.adapters.raw_tensor import CODES, DTYPES
from lotr_tn.errors import CheckpointError

CHUNK = 1 << 20


@dataclass(frozen=True)
class Slot:
    """Where an array lies in a spool, and how to read it: `dtype` is a name, `bfloat16` too."""

    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return math.prod(self.shape) * DTYPES[CODES[self.dtype]][1] // 8


class Spool:
    """A temporary file of arrays: no name leads to it, so that nothing stays, even after a kill.

    Arrays are read into memory of their own and never mapped: what is released is gone. `folder`
    needs room for everything that is put.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._end = 0
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise CheckpointError(
                f"cannot make a temporary file in {folder} ({error.strerror or error}); choose "
                "another folder"
            ) from None

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the room on the disk back; slots are void from now on."""
        self._file.close()

    def put(self, array: np.ndarray) -> Slot:
        """Append an array; where the disk is full, what was put before can still be read."""
        name = array.dtype.name
        if name not in CODES:
            raise CheckpointError(f"arrays of dtype {name} cannot be stored; use float32")
        stored = array.astype(array.dtype.newbyteorder("<"), copy=False)
        data = np.ascontiguousarray(stored).reshape(-1).view(np.uint8).data
        try:
            self._file.seek(self._end)
            done = 0
            while done < data.nbytes:
                done += self._file.write(data[done:])
        except OSError as error:
            raise CheckpointError(
                f"cannot put {data.nbytes} bytes aside in {self._folder} "
                f"({error.strerror or error}); free some space or choose another folder"
            ) from None
        slot = Slot(self._end, tuple(array.shape), name)
        self._end += data.nbytes
        return slot

    def get(self, slot: Slot) -> np.ndarray:
        """An array, in memory of its own."""
        array = np.empty(slot.shape, np.dtype(slot.dtype))
        self._read(slot.offset, array.reshape(-1).view(np.uint8).data)
        return array

    def chunks(self, slot: Slot, size: int = CHUNK) -> Iterator[memoryview]:
        """The bytes of an array, at most `size` at a time, for copying."""
        for start in range(0, slot.nbytes, size):
            chunk = memoryview(bytearray(min(size, slot.nbytes - start)))
            self._read(slot.offset + start, chunk)
            yield chunk

    def _read(self, offset: int, target: memoryview) -> None:
        try:
            self._file.seek(offset)
            done = 0
            while done < target.nbytes:
                count = self._file.readinto(target[done:])
                if not count:
                    raise OSError(f"it ends {target.nbytes - done} bytes too early")
                done += count
        except OSError as error:
            raise CheckpointError(
                f"cannot read the temporary file in {self._folder} ({error.strerror or error}); "
                "run it again, or choose another folder"
            ) from None
