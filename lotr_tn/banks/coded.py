"""Tensors of a bank in bits: bases, and the bytes of one layer after another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lotr_tn.coding.cores import Columns, decode_columns, decode_core, encode_columns
from lotr_tn.coding.directions import decode_directions
from lotr_tn.files.bank_tensor import BankTensor

CODED = "coded"
"""The tensor of a part in bits: the bytes of all layers."""

DTYPE = "float32"
"""Of the numbers that come back out of bits."""


@dataclass(frozen=True, eq=False)
class CodedBasis(BankTensor):
    """A basis in bits: its entry tells what it takes, its shape and array what it stands for."""

    full: tuple[int, int]  # (m, k)

    @property
    def dtype(self) -> str:
        """The dtype's name, of what comes back."""
        return DTYPE

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""
        return self.full

    @cached_property
    def columns(self) -> Columns:
        """Its whole columns.

        Raises:
            FormatError: its bytes are damaged.
        """
        return decode_columns(self.raw().data.tobytes(), *self.full)

    @property
    def array(self) -> np.ndarray:
        """Its entries, decoded."""
        return self.columns.basis

    @staticmethod
    def of_columns(columns: Columns) -> "CodedBasis | None":
        """One in memory; None where a number has no code."""
        data = encode_columns(columns)
        if data is None:
            return None
        count, size = columns.whole.shape
        return CodedBasis.of_tensor(BankTensor.of_bytes(data), (size, count))

    @staticmethod
    def of_tensor(tensor: BankTensor, full: tuple[int, int]) -> "CodedBasis":
        """One whose bytes are a tensor."""
        return CodedBasis(tensor.entry, tensor.raw, full)


@dataclass(frozen=True, eq=False)
class CodedLayers:
    """The bytes of layers in bits, one after another.

    Attributes:
        tensor: all bytes.
        lengths: (L,) how many each layer has; they add up to all.
    """

    tensor: BankTensor
    lengths: np.ndarray

    @staticmethod
    def of(data: Sequence[bytes]) -> "CodedLayers":
        """Those in memory."""
        return CodedLayers(BankTensor.of_bytes(b"".join(data)), np.array(list(map(len, data))))

    def each(self, rows: slice) -> Iterator[bytes]:
        """The bytes of some layers."""
        data, ends = self.tensor.raw().data, np.concatenate([[0], np.cumsum(self.lengths)])
        for row in range(rows.start, rows.stop):
            yield data[ends[row] : ends[row + 1]].tobytes()

    def kept(self, stay: np.ndarray) -> "CodedLayers":
        """Some of the layers, bit for bit."""
        each = self.each(slice(0, len(stay)))
        return CodedLayers.of([one for one, kept in zip(each, stay, strict=True) if kept])


def decoded_cores(layers: CodedLayers, rows: slice, levels: np.ndarray) -> dict[str, np.ndarray]:
    """The cores of some layers in shared bases.

    Raises:
        FormatError: their bytes are damaged.
    """
    cores = [decode_core(data, levels) for data in layers.each(rows)]
    return {"core": np.stack(cores) if cores else np.zeros((0, *levels.shape), np.float32)}


def decoded_pairs(
    layers: CodedLayers, rows: slice, shape: tuple[int, int], terms: np.ndarray
) -> dict[str, np.ndarray]:
    """Both factors of some layers that share nothing, with a row for each rank term.

    Raises:
        FormatError: their bytes are damaged.
    """
    each = zip(layers.each(rows), terms, strict=True)
    pairs = [decode_directions(data, shape, int(rank)) for data, rank in each]
    ups, downs = [np.zeros((0, shape[0]), np.float32)], [np.zeros((0, shape[1]), np.float32)]
    ups += [up.T for up, _ in pairs]
    downs += [down for _, down in pairs]
    return {"up": np.concatenate(ups), "down": np.concatenate(downs)}
