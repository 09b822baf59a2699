"""Banks as files: what the header says, and which tensors hold what."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lotr_tn._arguments import door
from lotr_tn.analysis.forms import known_form
from lotr_tn.banks.bank import Bank, BankAdapter
from lotr_tn.banks.checking import require_sense
from lotr_tn.banks.coded import CODED, LENGTHS, CodedBasis
from lotr_tn.banks.group import BankGroup, Part
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
    text,
    told_once,
    whole_number,
)


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
    tensors: dict[str, BankTensor] = {}
    for at, content in enumerate(bank.contents):
        tensors[f"contents.{at}"] = content
    groups = {}
    for group in bank.groups.values():
        for side in ("outputs", "inputs"):
            for at, segment in enumerate(getattr(group, side)):
                tensors[f"groups.{group.name}.{side}.{at}"] = segment
        for at, part in enumerate(group.parts):
            for name, tensor in _tensors(part).items():
                tensors[f"groups.{group.name}.parts.{at}.{name}"] = tensor
        groups[group.name] = _describe_group(group)
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
        "groups": groups,
    }
    return {name: tensor.entry for name, tensor in tensors.items()}, header


def _tensors(part: Part) -> dict[str, BankTensor]:
    return {
        **{name: part.tensors[name] for name in part.names},
        "index": BankTensor.of(part.index.astype(np.int32)),
        "figures": BankTensor.of(part.figures.astype(np.float64)),
    }


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
                **({"coding": CODING} if part.is_coded else {}),
            }
            for part in group.parts
        ],
        **_described_bases(group),
    }


def _described_bases(group: BankGroup) -> dict[str, Any]:
    """How many columns each basis in bits has; null for one in numbers."""
    sides = (group.outputs, group.inputs)
    if not any(isinstance(one, CodedBasis) for side in sides for one in side):
        return {}
    widths = [[x.full[1] if isinstance(x, CodedBasis) else None for x in side] for side in sides]
    return {"coding": CODING, "columns": widths}


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
    count = whole_number("the number of contents", header["contents"])
    adapters = tuple(_adapter(entry, header["keys"], count) for entry in header["adapters"])
    contents = tuple(reader.tensor(f"contents.{at}") for at in range(count))
    groups = {name: reader.group(name, entry) for name, entry in header["groups"].items()}
    said = header["asked"], header["stacking"], header["explanation"]
    bank = Bank(adapters, groups, contents, *said, container.path)
    require_sense(bank)
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
    numbers = layers * (4 * 4 + 4 * 8)
    held = sum(content.entry.nbytes + TENSOR_ENTRY for content in contents)
    return text + numbers + held


class _HeaderReader:
    """The tensors of a container as a bank's."""

    def __init__(self, container: Container) -> None:
        self.container = container

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
        widths = entry["columns"] if self.is_coded(entry) else [[None] * count] * 2
        outputs, inputs = (
            tuple(
                self.basis(f"{prefix}.{side}.{at}", size, width)
                for at, width in zip(range(count), each, strict=True)
            )
            for side, size, each in zip(("outputs", "inputs"), (m, n), widths, strict=True)
        )
        parts = tuple(
            self.part(f"{prefix}.parts.{at}", part) for at, part in enumerate(entry["parts"])
        )
        cluster = whole_number("a cluster", entry["cluster"])
        return BankGroup(name, (m, n), modules, outputs, inputs, parts, cluster)

    def is_coded(self, entry: Mapping[str, Any]) -> bool:
        """Whether something is in bits, and in a way that is known."""
        if "coding" not in entry:
            return False
        require_known_coding(entry["coding"], str(self.container.path))
        return True

    def basis(self, key: str, size: int, width: Any) -> BankTensor:
        """One basis; in bits where its columns are told."""
        tensor = self.tensor(key)
        if width is None:
            return tensor
        require(tensor.entry.code == "U8" and len(tensor.shape) == 1, f"{key} is no bytes")
        return CodedBasis.of_tensor(tensor, (size, whole_number("a number of columns", width)))

    def part(self, prefix: str, entry: Mapping[str, Any]) -> Part:
        """One part."""
        form = known_form(entry["format"])
        if form is None:
            raise CheckpointError(
                f"{self.container.path} has layers in the unknown format {entry['format']!r}; "
                "upgrade lotr-tn, or install the package that the format is of"
            )
        index = self.numbers(f"{prefix}.index", "I32", np.int32)
        figures = self.numbers(f"{prefix}.figures", "F64", np.float64)
        names = (CODED, LENGTHS) if self.is_coded(entry) else form.own
        return Part(
            form.name,
            whole_number("the number of segments", entry["segments"]),
            text("a method", entry["method"]),
            {name: self.tensor(f"{prefix}.{name}") for name in names},
            index.astype(np.int64),
            figures,
        )

    def numbers(self, key: str, code: str, dtype: type) -> np.ndarray:
        """A small tensor that everything else hangs on."""
        raw = self.tensor(key).raw()
        if raw.code != code:
            raise SenseError(f"{key} is of {raw.dtype}")
        return raw.data.view(dtype).reshape(raw.shape)
