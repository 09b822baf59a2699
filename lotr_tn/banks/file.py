"""Banks as files: what the header says, and which tensors hold what."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lotr_tn._arguments import door
from lotr_tn.banks.bank import Bank, BankAdapter
from lotr_tn.banks.checking import require_sense
from lotr_tn.banks.coded import CODED, CodedBasis
from lotr_tn.banks.contents import PackedContent
from lotr_tn.banks.group import DRIFT, LENGTH, BankGroup
from lotr_tn.banks.reader import FIGURES, FRESH, INDEX, HeaderReader
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
from lotr_tn.files.dialects.native import tool_version
from lotr_tn.files.header import (
    CODING,
    SCHEMA,
    SenseError,
    described_layout,
    read_header_of,
    require,
    table,
    text,
    told_apart,
    told_once,
    whole_number,
)
from lotr_tn.files.packed_tensors import PACKING
from lotr_tn.files.packing import packed

FIGURE = 24
"""Bytes of the longest float64, written in full."""


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
    """The tensors of a bank's file, and its text, which is packed where all else is in bits."""
    entries, header = _described(bank)
    text = json.dumps(header, separators=(",", ":"))
    if bank.in_bits:
        return entries, packed(text)
    return entries, text + _room_for_figures(bank.explanation)


def _room_for_figures(value: Any) -> str:
    """Blanks for what a JSON value's floats could be longer, so that last bits change no size."""
    short: list[int] = []
    json.loads(json.dumps(value), parse_float=lambda figure: short.append(FIGURE - len(figure)))
    return " " * sum(short)


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
        **_described_packed(bank.contents),
        "each": each,
        "groups": dict(zip(bank.groups, groups, strict=True)),
    }
    return {name: tensor.entry for name, tensor in tensors.items()}, header


def _described_packed(contents: Sequence[BankTensor]) -> dict[str, Any]:
    """What those contents are that are packed, by their places; nothing where none is."""
    found = {
        str(at): one.description()
        for at, one in enumerate(contents)
        if isinstance(one, PackedContent)
    }
    return {"packing": PACKING, "packed": found} if found else {}


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
    reader = HeaderReader(container)
    each = table("what is alike in all groups", header.get("each", {}))
    count = whole_number("the number of contents", header["contents"])
    adapters = tuple(_adapter(entry, header["keys"], count) for entry in header["adapters"])
    known = table("the packed contents", header.get("packed", {}))
    require(header.get("packing", PACKING) == PACKING, "contents are packed in an unknown way")
    contents = tuple(reader.content(at, known.get(str(at))) for at in range(count))
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
