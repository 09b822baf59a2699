"""Configurations and tensors that are no updates: each once, and packed in a bank in bits."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lotr_tn.adapters.raw_tensor import DTYPES, RawTensor
from lotr_tn.coding.lossless import pack, unpack
from lotr_tn.errors import CheckpointError, FormatError
from lotr_tn.files.bank_tensor import BankTensor
from lotr_tn.files.container import Entry
from lotr_tn.files.header import sequence
from lotr_tn.files.packed_tensors import bytes_of, described_of, require_room
from lotr_tn.files.spool import Spool

LEAST = 256
"""Bytes of a tensor below which the header would take what packing saves."""


@dataclass(frozen=True, eq=False)
class PackedContent(BankTensor):
    """A tensor whose bytes are packed: its entry tells what it takes, all else what it is."""

    code: str
    full: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """The dtype's name, of what comes back."""
        return DTYPES[self.code][0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""
        return self.full

    def whole(self) -> RawTensor:
        """It, unpacked; anew each time, since there may be many."""
        try:
            (data,) = unpack(self.raw().data, [bytes_of(self.code, self.full)])
        except FormatError as error:
            raise CheckpointError(f"another tensor of the bank: {error}") from None
        return RawTensor(self.code, self.full, data)

    def description(self) -> list[Any]:
        """What a header says of it."""
        return [self.code, list(self.full)]

    @staticmethod
    def of_description(tensor: BankTensor, said: Any) -> "PackedContent":
        """The one that a header tells of, by its bytes."""
        code, shape = sequence("a packed tensor", said)
        full = described_of("a packed tensor", code, shape)
        require_room("a packed tensor", tensor.entry.nbytes, [full])
        return PackedContent(tensor.entry, tensor.raw, *full)


@dataclass(eq=False)
class Contents:
    """The contents of a bank that is made, by what they hold."""

    packs: bool  # whether they are packed where that takes less
    tensors: list[BankTensor] = field(default_factory=list)
    known: dict[str, int] = field(default_factory=dict)

    def add(self, raw: RawTensor, spool: Spool | None) -> int:
        """Where a tensor stands; it is added, and spooled where there is a spool, if it is new."""
        stored = _packed(raw) if self.packs else None
        tensor = raw if stored is None else stored
        digest = hashlib.sha256(np.ascontiguousarray(tensor.data).data).hexdigest()
        key = _key(raw.code, raw.shape, digest)
        if key not in self.known:
            self.known[key] = len(self.tensors)
            kept = BankTensor.of_raw(tensor) if spool is None else _spooled(tensor, spool)
            if stored is not None:
                kept = PackedContent(kept.entry, kept.raw, raw.code, raw.shape)
            self.tensors.append(kept)
        return self.known[key]

    @staticmethod
    def of(tensors: Sequence[BankTensor], *, packs: bool) -> "Contents":
        """Those of a file, known by their checksums."""
        known = {}
        for place, tensor in enumerate(tensors):
            entry = tensor.entry
            digest = entry.checksum or hashlib.sha256(tensor.raw().data.data).hexdigest()
            code = tensor.code if isinstance(tensor, PackedContent) else entry.code
            known[_key(code, tensor.shape, digest)] = place
        return Contents(packs, list(tensors), known)


def _packed(raw: RawTensor) -> RawTensor | None:
    if raw.nbytes < LEAST:
        return None
    data = pack([(bytes_of(raw.code, raw.shape)[0], raw.data)])
    return None if data is None or len(data) >= raw.nbytes else RawTensor.of_bytes(data)


def _key(code: str, shape: tuple[int, ...], digest: str) -> str:
    return f"{code} {list(shape)} {digest}"


def _spooled(raw: RawTensor, spool: Spool) -> BankTensor:
    slot = spool.put(raw.data)
    entry = Entry(raw.code, raw.shape, lambda: spool.chunks(slot))
    return BankTensor(entry, lambda: RawTensor(raw.code, raw.shape, spool.get(slot)))
