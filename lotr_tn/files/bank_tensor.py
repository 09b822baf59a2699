"""A tensor of a bank, wherever it lies: in memory, in a file, or spooled."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise

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

    def whole(self) -> RawTensor:
        """It with its bytes, as it was before it was packed."""
        return self.raw()

    @staticmethod
    def of(array: np.ndarray) -> "BankTensor":
        """One in memory."""
        return BankTensor.of_raw(RawTensor.of(array))

    @staticmethod
    def of_bytes(data: bytes) -> "BankTensor":
        """Bytes in memory."""
        return BankTensor.of(np.frombuffer(data, np.uint8))

    @staticmethod
    def joined(tensors: Sequence["BankTensor"]) -> "BankTensor":
        """The bytes of several, one after another, as one tensor to be written."""

        def chunks() -> Iterable[bytes | memoryview]:
            return chain.from_iterable(one.entry.chunks() for one in tensors)

        def raw() -> RawTensor:
            return RawTensor("U8", shape, np.concatenate([one.raw().data for one in tensors]))

        shape = (sum(one.entry.nbytes for one in tensors),)
        return BankTensor(Entry("U8", shape, chunks), raw)

    def parted(self, sizes: Sequence[int]) -> list["BankTensor"]:
        """Its bytes in pieces of these sizes; all are compared with their checksum for any."""

        def raw(start: int, end: int) -> RawTensor:
            return RawTensor("U8", (end - start,), self.raw().data[start:end])

        def chunks(start: int, end: int) -> Iterator[bytes | memoryview]:
            yield raw(start, end).data.data

        ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).tolist()
        return [
            BankTensor(
                Entry("U8", (end - start,), partial(chunks, start, end)), partial(raw, start, end)
            )
            for start, end in pairwise(ends)
        ]

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
