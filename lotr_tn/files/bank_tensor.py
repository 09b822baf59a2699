"""A tensor of a bank, wherever it lies: in memory, in a file, or spooled."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lotr_tn.adapters.raw_tensor import DTYPES, RawTensor
from lotr_tn.files.container import Container, Entry
from lotr_tn.files.spool import Slot, Spool


@dataclass(frozen=True, eq=False)
class BankTensor:
    """One tensor, to be used or to be written."""

    entry: Entry  # how it is written
    # it with its bytes: mapped, where it lies in a file; read, where it was spooled
    raw: Callable[[], RawTensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""
        return tuple(self.entry.shape)

    @property
    def dtype(self) -> str:
        """The dtype's name."""
        return DTYPES[self.entry.code][0]

    @property
    def array(self) -> np.ndarray:
        """Its entries; a view of the file where it lies in one."""
        return self.raw().array()

    @staticmethod
    def of(array: np.ndarray) -> "BankTensor":
        """One in memory."""
        return BankTensor.of_raw(RawTensor.of(array))

    @staticmethod
    def of_raw(raw: RawTensor) -> "BankTensor":
        """One with its bytes."""
        return BankTensor(Entry.of_raw(raw), lambda: raw)

    @staticmethod
    def of_file(container: Container, name: str) -> "BankTensor":
        """One of an open file."""
        return BankTensor(container.entry(name), lambda: container.tensors[name])

    @staticmethod
    def of_slot(spool: Spool, slot: Slot) -> "BankTensor":
        """One that was spooled."""
        return BankTensor(Entry.of_slot(spool, slot), lambda: RawTensor.of(spool.get(slot)))

    def continued(self, other: "BankTensor") -> "BankTensor":
        """This one with another's rows after its own; both of one dtype and row shape."""
        first, second = self.entry, other.entry
        known = first.checksum is not None and first.nbytes > 0
        begins = first.begins or (first if known else None)
        shape = (first.shape[0] + second.shape[0], *first.shape[1:])

        def chunks() -> Iterator[bytes | memoryview]:
            yield from first.chunks()
            yield from second.chunks()

        def raw() -> RawTensor:
            parts = [np.ascontiguousarray(one.raw().data) for one in (self, other)]
            return RawTensor(first.code, shape, np.concatenate(parts))

        return BankTensor(Entry(first.code, shape, chunks, begins=begins), raw)

    def rows(self, kept: np.ndarray) -> "BankTensor":
        """Some of the rows, by their places in order."""
        if len(kept) == self.shape[0]:
            return self
        shape = (len(kept), *self.shape[1:])

        def raw() -> RawTensor:
            whole = self.raw()
            each = whole.data.nbytes // self.shape[0]
            taken = whole.data.reshape(self.shape[0], each)[kept]
            return RawTensor(whole.code, shape, np.ascontiguousarray(taken).reshape(-1))

        def chunks() -> Iterator[bytes | memoryview]:
            yield raw().data.data

        return BankTensor(Entry(self.entry.code, shape, chunks), raw)
