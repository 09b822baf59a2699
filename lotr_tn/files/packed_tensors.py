"""Tensors that are no updates, all in one stream that loses nothing."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lotr_tn.adapters.raw_tensor import DTYPES, RawTensor
from lotr_tn.coding.lossless import may_hold, pack, unpack
from lotr_tn.files.container import TENSOR_ENTRY
from lotr_tn.files.header import require, sequence, text, whole_numbers

PACKING = 1
"""The way in which they are packed, as it is written and read."""

Described = tuple[str, tuple[int, ...]]
"""A dtype by its code, and a shape."""


@dataclass(frozen=True, eq=False)
class PackedTensors(Mapping[str, RawTensor]):
    """Tensors by their keys, which come out of the stream when the first of them is used.

    Attributes:
        described: the dtype and the shape of each.
        copies: the keys of tensors that are the same as another, and its key.
        stream: the bytes of all others.
    """

    described: Mapping[str, Described]
    copies: Mapping[str, str]
    stream: RawTensor

    @cached_property
    def _tensors(self) -> dict[str, RawTensor]:
        keys = [key for key in self.described if key not in self.copies]
        parts = unpack(self.stream.data, [bytes_of(*self.described[key]) for key in keys])
        data = dict(zip(keys, parts, strict=True))
        return {
            key: RawTensor(code, shape, data[self.copies.get(key, key)])
            for key, (code, shape) in self.described.items()
        }

    def __getitem__(self, key: str) -> RawTensor:
        return self._tensors[key]

    def __contains__(self, key: object) -> bool:
        return key in self.described

    def __iter__(self) -> Iterator[str]:
        return iter(self.described)

    def __len__(self) -> int:
        return len(self.described)

    @staticmethod
    def of(tensors: Mapping[str, RawTensor]) -> "Mapping[str, RawTensor]":
        """The tensors packed; as they are where that takes no fewer bytes."""
        if isinstance(tensors, PackedTensors):
            return tensors
        described = {key: (one.code, tuple(one.shape)) for key, one in tensors.items()}
        copies = _copies(tensors)
        own = [key for key in tensors if key not in copies]
        stream = pack([(bytes_of(*described[key])[0], tensors[key].data) for key in own])
        if stream is None:
            return tensors
        packed = PackedTensors(described, copies, RawTensor.of_bytes(stream))
        plain = sum(one.nbytes + TENSOR_ENTRY for one in tensors.values())
        return packed if len(stream) + TENSOR_ENTRY < plain else tensors

    def description(self) -> dict[str, Any]:
        """What a header says of them."""
        tensors = [
            [key, code, list(shape), *([self.copies[key]] if key in self.copies else [])]
            for key, (code, shape) in self.described.items()
        ]
        return {"packing": PACKING, "tensors": tensors}

    @staticmethod
    def of_description(said: Mapping[str, Any], stream: RawTensor) -> "PackedTensors":
        """Those that a header tells of; refused where it makes no sense."""
        require(said["packing"] == PACKING, "other tensors are packed in an unknown way")
        described: dict[str, Described] = {}
        copies: dict[str, str] = {}
        for entry in sequence("the other tensors", said["tensors"]):
            key, code, shape, *same = sequence("another tensor", entry)
            require(text("a key", key) not in described, f"the tensor {key} is there twice")
            described[key] = described_of(key, code, shape)
            for other in same:
                first = text("a key", other)
                known = first in described and first not in copies and first != key
                require(
                    known and described[first] == described[key], f"{key} is no copy of {first!r}"
                )
                copies[key] = first
        own = [one for key, one in described.items() if key not in copies]
        require_room("the stream of other tensors", stream.nbytes, own)
        return PackedTensors(described, copies, stream)


def described_of(what: str, code: Any, shape: Any) -> Described:
    """A dtype and a shape as a header tells them; refused where they make no sense."""
    require(text("a dtype", code) in DTYPES, f"{what} has the unknown dtype {code!r}")
    return code, tuple(whole_numbers(f"the shape of {what}", shape))


def require_room(what: str, packed: int, tensors: Iterable[Described]) -> None:
    """Refuse tensors that so many packed bytes cannot hold."""
    size = sum(bytes_of(*one)[1] for one in tensors)
    require(may_hold(packed, size), f"{what} is too short")


def bytes_of(code: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """The bytes of an entry, at least one, and of all."""
    bits = DTYPES[code][1]
    return max(bits // 8, 1), math.prod(shape) * bits // 8


def _copies(tensors: Mapping[str, RawTensor]) -> dict[str, str]:
    """Tensors that are the same as an earlier one."""
    firsts: dict[tuple[Any, ...], str] = {}
    copies = {}
    for key, tensor in tensors.items():
        same = (
            tensor.code,
            tuple(tensor.shape),
            hashlib.sha256(np.ascontiguousarray(tensor.data).data).digest(),
        )
        first = firsts.setdefault(same, key)
        if first != key:
            copies[key] = first
    return copies
