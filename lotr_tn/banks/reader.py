"""What the header of a bank says of its tensors, read."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from lotr_tn.analysis.forms import known_form
from lotr_tn.banks.coded import CODED, CodedBasis
from lotr_tn.banks.contents import PackedContent
from lotr_tn.banks.group import LENGTH, SCALE, BankGroup, Part
from lotr_tn.errors import CheckpointError
from lotr_tn.files.bank_tensor import BankTensor
from lotr_tn.files.container import Container
from lotr_tn.files.header import (
    SenseError,
    layout_of,
    modules_of,
    require,
    require_known_coding,
    text,
    whole_number,
    whole_numbers,
)

INDEX, FIGURES = "index", "figures"
"""The tensors with a row for each layer, of all parts one after another."""

COLUMNS = {"I32": LENGTH + 1, "F64": SCALE + 1}
"""Columns of index and figures."""

FRESH = (0, 1)
"""Drift and scale of what nothing was added to, and which is no LoRA that is kept."""


def _next(bits: Iterator[BankTensor]) -> BankTensor:
    """What comes next of a group in bits."""
    found = next(bits, None)
    if found is None:
        raise SenseError("more is in bits than bytes are told of")
    return found


class HeaderReader:
    """The tensors of a container as a bank's."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.layers = 0  # of parts that were read

    def tensor(self, key: str) -> BankTensor:
        """One tensor."""
        if key not in self.container.tensors:
            raise CheckpointError(f"{self.container.path} lacks the tensor {key}")
        return BankTensor.of_file(self.container, key)

    def content(self, at: int, packed: Any) -> BankTensor:
        """A configuration or a tensor that is no update."""
        tensor = self.tensor(f"contents.{at}")
        return tensor if packed is None else PackedContent.of_description(tensor, packed)

    def group(self, name: str, entry: Mapping[str, Any]) -> BankGroup:
        """One group."""
        prefix = f"groups.{name}"
        count = whole_number("the number of segments", entry["segments"])
        modules = tuple(
            (text("the name of a module", one["name"]), layout_of(one))
            for one in modules_of(name, entry)
        )
        m, n = (whole_number("a size", size) for size in entry["shape"])
        bits = self.bits(f"{prefix}.{CODED}", entry)
        widths = entry["columns"] if "coding" in entry else [[None] * count] * 2
        outputs, inputs = (
            tuple(
                self.basis(f"{prefix}.{side}.{at}", size, width, bits)
                for at, width in zip(range(count), each, strict=True)
            )
            for side, size, each in zip(("outputs", "inputs"), (m, n), widths, strict=True)
        )
        parts = tuple(
            self.part(f"{prefix}.parts.{at}", part, bits) for at, part in enumerate(entry["parts"])
        )
        require(next(bits, None) is None, f"{name} has more in bits than bases and layers")
        cluster = whole_number("a cluster", entry["cluster"])
        return BankGroup(name, (m, n), modules, outputs, inputs, parts, cluster)

    def bits(self, key: str, entry: Mapping[str, Any]) -> Iterator[BankTensor]:
        """All of a group that is in bits, one after another."""
        if "coding" not in entry:
            return iter(())
        require_known_coding(entry["coding"], str(self.container.path))
        whole, sizes = self.tensor(key), whole_numbers("the bytes of bits", entry["bytes"])
        fits = whole.entry.code == "U8" and whole.shape == (sum(sizes),)
        require(fits, f"{key} has the shape {list(whole.shape)} for {sum(sizes)} bytes")
        return iter(whole.parted(sizes))

    def basis(self, key: str, size: int, width: Any, bits: Iterator[BankTensor]) -> BankTensor:
        """One basis; in bits where its columns are told."""
        if width is None:
            return self.tensor(key)
        return CodedBasis.of_tensor(_next(bits), (size, whole_number("a number of columns", width)))

    def part(self, prefix: str, entry: Mapping[str, Any], bits: Iterator[BankTensor]) -> Part:
        """One part."""
        form = known_form(entry["format"])
        if form is None:
            raise CheckpointError(
                f"{self.container.path} has layers in the unknown format {entry['format']!r}; "
                "upgrade lotr-tn, or install the package that the format is of"
            )
        index, figures = self.rows(prefix, entry)
        if "coding" in entry:
            require_known_coding(entry["coding"], str(self.container.path))
            tensors = {CODED: _next(bits)}
        else:
            tensors = {name: self.tensor(f"{prefix}.{name}") for name in form.own}
        return Part(
            form.name,
            whole_number("the number of segments", entry["segments"]),
            text("a method", entry["method"]),
            tensors,
            index,
            figures,
        )

    def rows(self, prefix: str, entry: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The index and figures of a part; earlier files have them by themselves."""
        if "layers" not in entry:
            index, figures = self.index(f"{prefix}.{INDEX}"), self.figures(f"{prefix}.{FIGURES}")
            return index, figures
        first = self.layers
        self.layers += whole_number("a number of layers", entry["layers"])
        rows = slice(first, self.layers)
        return self.all_index[rows], self.all_figures[rows]

    @cached_property
    def all_index(self) -> np.ndarray:
        """Of all parts."""
        return self.index(INDEX)

    @cached_property
    def all_figures(self) -> np.ndarray:
        """Of all parts."""
        return self.figures(FIGURES)

    def require_all_rows(self) -> None:
        """Refuse rows that no part has."""
        if self.layers:
            for what, rows in ((INDEX, self.all_index), (FIGURES, self.all_figures)):
                fits = len(rows) == self.layers
                require(fits, f"{what} has the shape {list(rows.shape)} for {self.layers} layers")

    def index(self, key: str) -> np.ndarray:
        """Rows of whole numbers."""
        return self.numbers(key, "I32", np.int32, (0,)).astype(np.int64)

    def figures(self, key: str) -> np.ndarray:
        """Rows of figures."""
        return self.numbers(key, "F64", np.float64, FRESH)

    def numbers(self, key: str, code: str, dtype: type, last: tuple[int, ...]) -> np.ndarray:
        """Rows that everything else hangs on; `last` stands where the last columns are left out."""
        raw = self.tensor(key).raw()
        if raw.code != code:
            raise SenseError(f"{key} is of {raw.dtype}")
        columns = COLUMNS[code]
        fits = len(raw.shape) == 2 and raw.shape[1] in (columns, columns - len(last))
        require(fits, f"{key} has the shape {list(raw.shape)}")
        found = raw.data.view(dtype).reshape(raw.shape)
        if found.shape[1] == columns:
            return found
        return np.column_stack([found, np.tile(np.array(last, dtype), (len(found), 1))])
