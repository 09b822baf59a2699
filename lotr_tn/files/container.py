"""The bytes of a bank or of a native file: safetensors, written as it comes, that tells of damage.

The metadata has three keys. `lotr_bank`, or `lotr` in a native file, is a text whose meaning is the
caller's. `checksums` is a JSON text: the SHA-256 of every tensor's bytes, one after another in the
order in which the tensors lie, all together in base 64 (in earlier files an object with each by
name, in hex). `digest` is the SHA-256, in hex, of

    json.dumps([metadata without digest, header without __metadata__],
               sort_keys=True, separators=(",", ":"))

in ASCII, so that it covers every name, dtype, shape and place. Checking it costs a reading of the
header. A tensor is compared with its checksum when its bytes are first used, once for each opening.

Tensors lie without holes, wider entries first and else in the order in which they were given:
each then begins at a multiple of its entry's size.
"""

import base64
import hashlib
import json
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lotr_tn.adapters.raw_tensor import CODES, DTYPES, RawTensor
from lotr_tn.errors import CheckpointError
from lotr_tn.files.spool import Slot, Spool
from lotr_tn.files.tensors import map_tensors, read_header, read_metadata
from lotr_tn.files.writing import write_file

METADATA_KEY = "lotr_bank"

CHUNK = 1 << 21
"""Bytes that are held at a time."""

LONGEST_HEADER = 100_000_000
"""Bytes of a header that the safetensors library reads, at most."""

TENSOR_ENTRY = 140
"""Bytes of the header that one tensor's dtype, shape, place and checksum take, at most."""

_RESERVED = "__metadata__"
_BLANK = "0" * 64  # as long as any digest

Chunks = Callable[[], Iterable[bytes | memoryview]]


@dataclass(frozen=True, eq=False)
class Entry:
    """What is to be written for one tensor."""

    code: str  # the dtype, by safetensors' code
    shape: tuple[int, ...]  # the sizes of its axes
    chunks: Chunks  # gives the bytes, little endian, in pieces
    checksum: str | None = None  # the SHA-256 that the bytes must have, in hex, where it is known
    # the file that they come from, for the message when they have another
    source: Path | None = None
    # an entry with a checksum whose bytes come first: they are compared on the way
    begins: "Entry | None" = None

    @property
    def nbytes(self) -> int:
        """The number of bytes that dtype and shape ask for."""
        return math.prod(self.shape) * DTYPES[self.code][1] // 8

    @staticmethod
    def of_array(array: np.ndarray) -> "Entry":
        """An array in memory, of a dtype that safetensors has."""
        if array.dtype.name not in CODES:
            raise CheckpointError(
                f"arrays of dtype {array.dtype.name} cannot be stored; use float32"
            )
        stored = array.astype(array.dtype.newbyteorder("<"), copy=False)
        data = np.ascontiguousarray(stored).reshape(-1).view(np.uint8)
        return Entry(CODES[array.dtype.name], tuple(array.shape), lambda: _pieces(data))

    @staticmethod
    def of_raw(
        tensor: RawTensor, checksum: str | None = None, source: Path | None = None
    ) -> "Entry":
        """A tensor of another file, copied byte for byte and, with a checksum, compared with it."""
        data = np.ascontiguousarray(tensor.data if checksum is None else tensor.stored)
        return Entry(tensor.code, tensor.shape, lambda: _pieces(data), checksum, source)

    @staticmethod
    def of_slot(spool: Spool, slot: Slot) -> "Entry":
        """An array that was put aside."""
        return Entry(CODES[slot.dtype], slot.shape, lambda: spool.chunks(slot, CHUNK))


@dataclass(frozen=True, eq=False)
class Container:
    """An open file: the caller's text, tensors that are mapped until used, and their checksums."""

    path: Path
    text: str
    tensors: dict[str, RawTensor]  # compared with their checksums when they are first used
    checksums: dict[str, str]  # none in a native file of before there were any

    def entry(self, name: str) -> Entry:
        """A tensor as it goes into another file: unchanged, or refused where it is damaged."""
        return Entry.of_raw(self.tensors[name], self.checksums.get(name), self.path)


def write_digested(
    path: Path, entries: Mapping[str, Entry], text: str, *, force: bool, key: str = METADATA_KEY
) -> None:
    """Write a container all or nothing: beside `path`, flushed, then renamed to it.

    Entries may come from the file that is replaced. Who replaces a file by what was read from it
    holds `exclusive(path)` from before the reading until this has returned.
    """
    write_file(path, lambda partial: write_container(partial, entries, text, key), force=force)


def write_container(
    path: Path, entries: Mapping[str, Entry], text: str, key: str = METADATA_KEY
) -> dict[str, str]:
    """Write a new file in one pass, and give the SHA-256 of every tensor, in hex.

    The caller sees to it that no half of it stays after a CheckpointError or an OSError.
    """
    tensors, _ = _laid_out(entries)
    order, checksums = list(tensors), dict.fromkeys(tensors, _BLANK)
    blank = _encode(tensors, {key: text}, checksums)
    with open(path, "xb") as file:
        file.write(blank)
        for name in order:
            checksums[name] = _copy(file, name, entries[name])
        file.seek(0)
        header = _encode(tensors, {key: text}, checksums)
        assert len(header) == len(blank)
        file.write(header)
    return checksums


def container_size(entries: Mapping[str, Entry], text: str, key: str = METADATA_KEY) -> int:
    """The bytes of the file that `write_container` writes."""
    tensors, end = _laid_out(entries)
    return len(_encode(tensors, {key: text}, dict.fromkeys(tensors, _BLANK))) + end


def _laid_out(entries: Mapping[str, Entry]) -> tuple[dict[str, Any], int]:
    """What the header says of each tensor, in the order of the file, and the bytes of all."""
    tensors: dict[str, Any] = {}
    end = 0
    for name in sorted(entries, key=lambda name: -DTYPES[entries[name].code][1]):
        start, end = end, end + entries[name].nbytes
        tensors[name] = {
            "dtype": entries[name].code,
            "shape": list(entries[name].shape),
            "data_offsets": [start, end],
        }
    return tensors, end


def _encode(
    tensors: Mapping[str, Any], said: Mapping[str, str], checksums: Mapping[str, str]
) -> bytes:
    """The file up to its data; its length does not depend on what the checksums are."""
    if _RESERVED in tensors:
        raise CheckpointError(f"no tensor can be called {_RESERVED}; choose another name")
    together = b"".join(bytes.fromhex(checksums[name]) for name in tensors)
    metadata = {**said, "checksums": _compact(base64.b64encode(together).decode())}
    metadata["digest"] = _digest(metadata, tensors)
    try:
        header = _compact({_RESERVED: metadata, **tensors}).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"{error.object[error.start : error.end]!r} in a name or description is not a "
            "character; remove it"
        ) from None
    header += b" " * (-len(header) % 8)
    if len(header) > LONGEST_HEADER:
        raise CheckpointError(
            f"names and descriptions of all tensors take {len(header)} bytes, and safetensors "
            f"reads at most {LONGEST_HEADER}; write several smaller files"
        )
    return struct.pack("<Q", len(header)) + header


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Any]) -> str:
    said = {key: value for key, value in metadata.items() if key != "digest"}
    canonical = json.dumps([said, tensors], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _copy(file: BinaryIO, name: str, entry: Entry) -> str:
    """Write one entry; returns its checksum."""
    found, size = hashlib.sha256(), 0
    for chunk in _hashed(entry, found):
        file.write(chunk)
        size += memoryview(chunk).nbytes
    if size != entry.nbytes:
        raise CheckpointError(
            f"tensor {name} came with {size} bytes, and {entry.code} {list(entry.shape)} "
            f"needs {entry.nbytes}; write it again from its source"
        )
    digest = found.hexdigest()
    require_checksum(entry, digest, f"tensor {name}")
    return digest


def _hashed(entry: Entry, found: "hashlib._Hash") -> Iterator[bytes | memoryview]:
    """The bytes of an entry, added to a hash, with what it begins with compared to its checksum."""
    size, first = 0, entry.begins
    for chunk in entry.chunks():
        found.update(chunk)
        size += memoryview(chunk).nbytes
        if first is not None and size >= first.nbytes:
            require_checksum(first, found.hexdigest())
            first = None
        yield chunk


def require_checksum(entry: Entry, digest: str, what: str = "a tensor") -> None:
    """Refuse bytes whose digest is not the checksum of their entry, where that is known."""
    if entry.checksum not in (None, digest):
        raise damaged(entry.source or "the source", what)


def damaged(source: Path | str, what: str) -> CheckpointError:
    """What is said of bytes that are not those that were written."""
    return CheckpointError(
        f"{source} is damaged: the bytes of {what} do not match their checksum; restore it from a "
        "copy"
    )


def _pieces(data: np.ndarray) -> Iterator[memoryview]:
    """The bytes of an array in chunks; the pages of a mapped file are let go one after another."""
    for start in range(0, data.nbytes, CHUNK):
        yield data[start : start + CHUNK].data
        _release(data, start, min(start + CHUNK, data.nbytes))


def _release(data: np.ndarray, start: int, end: int) -> None:
    """Take pages of a mapped file out of this process's memory; another use reads them again."""
    owner = data
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    mapped = owner.base
    if not isinstance(owner, np.memmap) or owner.mode != "r" or not isinstance(mapped, mmap.mmap):
        return
    if hasattr(mmap, "MADV_DONTNEED"):
        place = data.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
        first = (place + start) // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, first, place + end - first)


def is_container(path: Path) -> bool:
    """Whether a path is a safetensors file that holds a bank; a damaged one is an error."""
    if path.suffix != ".safetensors" or not os.path.isfile(path):  # whatever the system says
        return False
    return METADATA_KEY in read_metadata(path)


def read_container(
    path: Path, key: str = METADATA_KEY, *, may_lack_digests: bool = False
) -> Container:
    """Open a file that is neither cut short nor altered in its header; tensors are mapped."""
    header, data = read_header(path)
    metadata = dict(header.pop(_RESERVED, None) or {})
    if key not in metadata:
        raise CheckpointError(
            f"{path} is not a bank, or its header is damaged, since it has no {key}; "
            "name a bank, or restore it from a copy"
        )
    tensors = map_tensors(path, header, data)
    if may_lack_digests and not {"digest", "checksums"} & metadata.keys():
        return Container(path, metadata[key], tensors, {})
    if metadata.get("digest") != _digest(metadata, header):
        raise CheckpointError(
            f"{path} is damaged: its header does not match its digest; restore it from a copy"
        )
    checksums = _checksums(metadata, header)
    if checksums.keys() != header.keys():
        raise CheckpointError(f"{path} has not one checksum for each tensor; write it again")
    known = {name: _compared(path, name, tensors[name], checksums[name]) for name in tensors}
    return Container(path, metadata[key], known, checksums)


def _checksums(metadata: Mapping[str, str], tensors: Mapping[str, Any]) -> dict[str, str]:
    """The checksums by tensor, in hex; none where the metadata hold something else."""
    try:
        found = json.loads(metadata["checksums"])
        if isinstance(found, dict):  # as they were written at first
            return found
        together = base64.b64decode(found, validate=True)
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    order = sorted(tensors, key=lambda name: tensors[name]["data_offsets"])
    size = len(hashlib.sha256().digest())
    if len(together) != size * len(order):
        return {}
    return {name: together[size * at :][:size].hex() for at, name in enumerate(order)}


def _compared(path: Path, name: str, tensor: RawTensor, checksum: str) -> RawTensor:
    """A tensor whose bytes are compared with its checksum before they are first used."""

    def require_intact(data: np.ndarray) -> None:
        if _sha256(data) != checksum:
            raise damaged(path, f"tensor {name}")

    return replace(tensor, require_intact=require_intact)


def _sha256(data: np.ndarray) -> str:
    found = hashlib.sha256()
    for chunk in _pieces(data):
        found.update(chunk)
    return found.hexdigest()


def verify_container(container: Container) -> list[str]:
    """The names of damaged tensors: all bytes are read and hashed, a chunk at a time."""
    known = container.checksums.items()
    return [name for name, known in known if _sha256(container.tensors[name].stored) != known]
