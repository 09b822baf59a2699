"""Banks as files: what the header says, and which tensors hold what."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lotr_tn._arguments import door
from lotr_tn.analysis.forms import known_form
from lotr_tn.banks.bank import Bank, BankAdapter
from lotr_tn.banks.checking import require_sense
from lotr_tn.banks.coded import CODED, CodedBasis
from lotr_tn.banks.group import DRIFT, LENGTH, SCALE, BankGroup, Part
from lotr_tn.errors import CheckpointError
from lotr_tn.files.bank_tensor import BankTensor
from lotr_tn.files.container import (
    TENSOR_ENTRY,
    Container,
    Entry,
    container_size,
    is_container,
    read_container,
    verify_container,
    write_digested,
)
from lotr_tn.files.dialects.native import room_for_figures, tool_version
from lotr_tn.files.header import (
    CODING,
    SCHEMA,
    SenseError,
    described_layout,
    layout_of,
    modules_of,
    read_header_of,
    require,
    require_known_coding,
    table,
    text,
    told_apart,
    told_once,
    whole_number,
    whole_numbers,
)

INDEX, FIGURES = "index", "figures"
"""The tensors with a row for each layer, of all parts one after another."""

COLUMNS = {"I32": LENGTH + 1, "F64": SCALE + 1}
"""Columns of index and figures."""

FRESH = (0, 1)
"""Drift and scale of what nothing was added to, and which is no LoRA that is kept."""


def is_bank(path: Path) -> bool:
    """Whether a path is a bank."""
    return is_container(path)


@door
def load_bank(path: str | Path) -> Bank:
    """Open a bank; its tensors stay mapped until they are used.

    Args:
        path: the file.

    Returns:
        The bank, a mapping of names to adapters.

    Raises:
        CheckpointError: it is no bank, its header is damaged, or it is of a later schema.

    Cost: the header alone is read.
    """
    container = read_container(Path(path))
    return read_header_of(container, "a bank", lambda header: _bank(container, header))


@door
def verify_bank(path: str | Path) -> list[str]:
    """The tensors of a bank whose bytes are not those that were written.

    Raises:
        CheckpointError: it is no bank, or its header is damaged.

    Cost: every byte is read once.
    """
    return verify_container(read_container(Path(path)))


def save_bank(bank: Bank, path: Path, *, force: bool) -> None:
    """Write a bank, all or nothing; a tensor that is copied may turn out to be damaged."""
    try:
        require_sense(bank)
    except SenseError as error:
        raise CheckpointError(f"{path} was not written, since {error}") from None
    write_digested(path, *_written(bank), force=force)


def bank_size(bank: Bank) -> int:
    """The bytes of the file that `save_bank` writes."""
    return container_size(*_written(bank))


def _written(bank: Bank) -> tuple[dict[str, Entry], str]:
    """The tensors of a bank's file, and its text."""
    entries, header = _described(bank)
    return entries, json.dumps(header, separators=(",", ":")) + room_for_figures(bank.explanation)


def _described(bank: Bank) -> tuple[dict[str, Entry], dict[str, Any]]:
    tensors = {f"contents.{at}": content for at, content in enumerate(bank.contents)}
    for group in bank.groups.values():
        tensors |= _tensors(group)
    index, figures = _rows(bank)
    tensors |= {INDEX: BankTensor.of(index), FIGURES: BankTensor.of(figures)}
    each, groups = told_apart(list(map(_describe_group, bank.groups.values())))
    keys: dict[tuple[str, ...], int] = {}
    adapters = [_describe_adapter(adapter, keys) for adapter in bank.adapters]
    header = {
        "schema": SCHEMA,
        "tool": tool_version(),
        "asked": dict(bank.asked),
        "stacking": bank.stacking,
        "explanation": dict(bank.explanation),
        "adapters": adapters,
        "keys": [list(names) for names in keys],
        "contents": len(bank.contents),
        "each": each,
        "groups": dict(zip(bank.groups, groups, strict=True)),
    }
    return {name: tensor.entry for name, tensor in tensors.items()}, header


def _rows(bank: Bank) -> tuple[np.ndarray, np.ndarray]:
    """The index and the figures of all parts, without last columns that say nothing."""
    parts = [part for _, part in bank.parts]
    index = np.concatenate([part.index for part in parts]).astype(np.int32)
    figures = np.concatenate([part.figures for part in parts]).astype(np.float64)
    coded = any(part.is_coded for part in parts)
    told = (figures[:, DRIFT:] != FRESH).any()
    return index if coded else index[:, :LENGTH], figures if told else figures[:, :DRIFT]


def _tensors(group: BankGroup) -> dict[str, BankTensor]:
    """Each in numbers by itself; all in bits as one, whose name takes more than some of them."""
    prefix, found, bits = f"groups.{group.name}", {}, _in_bits(group)
    for side in ("outputs", "inputs"):
        for at, segment in enumerate(getattr(group, side)):
            found[f"{prefix}.{side}.{at}"] = segment
    for at, part in enumerate(group.parts):
        for name in part.names:
            found[f"{prefix}.parts.{at}.{name}"] = part.tensors[name]
    found = {name: tensor for name, tensor in found.items() if tensor not in bits}
    return {**found, f"{prefix}.{CODED}": BankTensor.joined(bits)} if bits else found


def _in_bits(group: BankGroup) -> list[BankTensor]:
    """All that is in bits, in the order in which it is written."""
    bases = [one for one in (*group.outputs, *group.inputs) if isinstance(one, CodedBasis)]
    return [*bases, *(part.tensors[CODED] for part in group.parts if part.is_coded)]


def _describe_group(group: BankGroup) -> dict[str, Any]:
    return {
        "shape": list(group.shape),
        **told_once([{"name": name, **described_layout(layout)} for name, layout in group.modules]),
        "segments": len(group.outputs),
        "cluster": group.cluster,
        "parts": [
            {
                "format": part.format,
                "segments": part.segments,
                "method": part.method,
                "layers": len(part.index),
                **({"coding": CODING} if part.is_coded else {}),
            }
            for part in group.parts
        ],
        **_described_bits(group),
    }


def _described_bits(group: BankGroup) -> dict[str, Any]:
    """How many bytes all that is in bits has, and how many columns each basis; null in numbers."""
    if not (bits := _in_bits(group)):
        return {}
    sides = (group.outputs, group.inputs)
    widths = [[x.full[1] if isinstance(x, CodedBasis) else None for x in side] for side in sides]
    return {"coding": CODING, "columns": widths, "bytes": [one.entry.nbytes for one in bits]}


def _describe_adapter(adapter: BankAdapter, keys: dict[tuple[str, ...], int]) -> dict[str, Any]:
    names = tuple(adapter.extras)
    return {
        "name": adapter.name,
        "config": adapter.config,
        "keys": keys.setdefault(names, len(keys)),
        "extras": [adapter.extras[name] for name in names],
        "dtype": adapter.dtype,
        "parameters": adapter.parameters,
        "cluster": adapter.cluster,
    }


def _bank(container: Container, header: Mapping[str, Any]) -> Bank:
    reader = _HeaderReader(container)
    each = table("what is alike in all groups", header.get("each", {}))
    count = whole_number("the number of contents", header["contents"])
    adapters = tuple(_adapter(entry, header["keys"], count) for entry in header["adapters"])
    contents = tuple(reader.tensor(f"contents.{at}") for at in range(count))
    groups = {
        name: reader.group(name, {**each, **entry}) for name, entry in header["groups"].items()
    }
    said = header["asked"], header["stacking"], header["explanation"]
    bank = Bank(adapters, groups, contents, *said, container.path)
    require_sense(bank)
    reader.require_all_rows()
    return bank


def _adapter(entry: Mapping[str, Any], keys: Sequence[Sequence[str]], contents: int) -> BankAdapter:
    at = whole_number("the place of an adapter's keys", entry["keys"], len(keys))
    places = [whole_number("the place of a tensor", x, contents) for x in entry["extras"]]
    return BankAdapter(
        text("the name of an adapter", entry["name"]),
        whole_number("the place of a configuration", entry["config"], contents),
        dict(zip([text("a key", key) for key in keys[at]], places, strict=True)),
        text("a dtype", entry["dtype"]),
        whole_number("the number of parameters", entry["parameters"]),
        whole_number("a cluster", entry["cluster"]),
    )


def bank_overhead(
    adapters: Sequence[BankAdapter],
    contents: Sequence[BankTensor],
    layers: int,
) -> int:
    """Bytes, about, that a bank takes beside its stacks; `layers` counts all updates."""
    keys: dict[tuple[str, ...], int] = {}
    described = [_describe_adapter(adapter, keys) for adapter in adapters]
    text = len(json.dumps(json.dumps([described, *keys])))
    numbers = layers * (4 * 4 + 2 * 8)
    held = sum(content.entry.nbytes + TENSOR_ENTRY for content in contents)
    return text + numbers + held


def _next(bits: Iterator[BankTensor]) -> BankTensor:
    """What comes next of a group in bits."""
    found = next(bits, None)
    if found is None:
        raise SenseError("more is in bits than bytes are told of")
    return found


class _HeaderReader:
    """The tensors of a container as a bank's."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.layers = 0  # of parts that were read

    def tensor(self, key: str) -> BankTensor:
        """One tensor."""
        if key not in self.container.tensors:
            raise CheckpointError(f"{self.container.path} lacks the tensor {key}")
        return BankTensor.of_file(self.container, key)

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
