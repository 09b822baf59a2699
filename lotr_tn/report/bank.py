"""What commands say of banks: records for `--json`, and their texts."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lotr_tn.analysis.forms import FORMS
from lotr_tn.banks.bank import Bank
from lotr_tn.banks.group import ADAPTER, BankGroup
from lotr_tn.banks.making.conversion import BankConversion
from lotr_tn.files.bank_tensor import BankTensor
from lotr_tn.report.emphasis import emphasised
from lotr_tn.report.numbers import byte_size, counted, error, file_growth, times
from lotr_tn.report.screen import most_rows, rows_of
from lotr_tn.report.text import more_text, plain_table

TABLE = 5  # rows about a second table
FEWEST = 2  # rows of each of two tables, at least
SHOWN = 12  # rows of a table that are shown unless all are asked for
HARDLY = (
    "These adapters hardly share anything: every layer keeps factors of its own, of lower "
    "rank where the error allows it. One bank takes no less than as many files would."
)
VISIBLE = 1e-4  # by how much more than the error a bound must be, relatively, to be shown beside it


def adapter_record(bank: Bank, name: str) -> dict[str, Any]:
    """One adapter of a bank."""
    figures = bank.figures(name)
    adapter = bank.adapters[bank.place(name)]
    return {
        "name": name,
        "relative_error": float(figures.relative_error),
        "bound": float(figures.bound),
        "own_bytes": figures.own_bytes,
        "other_bytes": figures.other_bytes,
        "modules": figures.modules,
        "formats": list(figures.formats),
        "dtype": adapter.dtype,
        "params": adapter.parameters,
        "cluster": adapter.cluster,
    }


def bank_conversion_record(
    conversion: BankConversion, destination: Path, sizes: tuple[int, int], seconds: float
) -> dict[str, Any]:
    """What `lotr bank make --json` prints; `sizes` are those of all files."""
    bank = conversion.bank
    return {
        **_errors(bank),
        "asked": dict(bank.asked),
        "adapters": [adapter_record(bank, name) for name in bank.names],
        "params_before": conversion.parameters_before,
        "params_after": conversion.parameters_after,
        "bytes_before": sizes[0],
        "bytes_after": sizes[1],
        "bytes_updates_before": conversion.bytes_updates_before,
        "bytes_stacks": _nbytes(_all_tensors(bank)),
        "bytes_separate": conversion.bytes_separate,
        "stacking": bank.stacking,
        "stackings": [
            {"stacking": way.stacking, "stacks": way.stacks, "bytes": way.bytes, "note": way.note}
            for way in conversion.stackings
        ],
        "routes": dict(conversion.routes),
        "formats": _formats(bank),
        "contents": _contents(bank),
        "dtype": bank.dtype,
        "coded": _coded(bank),
        "met": bool(conversion.met),
        "seconds": seconds,
        "destination": str(destination),
    }


def bank_record(bank: Bank, source: Path, size: int) -> dict[str, Any]:
    """What `lotr bank show --json` prints."""
    return {
        "source": str(source),
        "format": "bank",
        "dtype": bank.dtype,
        "coded": _coded(bank),
        "bytes": size,
        **_errors(bank),
        "asked": dict(bank.asked),
        "adapters": [adapter_record(bank, name) for name in bank.names],
        "stacking": bank.stacking,
        "formats": _formats(bank),
        "bytes_stacks": _nbytes(_all_tensors(bank)),
        "bytes_bases": _nbytes(t for g in bank.groups.values() for t in (*g.outputs, *g.inputs)),
        "groups": [_group_record(group) for group in bank.groups.values()],
        "contents": _contents(bank),
        "verified": None,
    }


def _coded(bank: Bank) -> list[str]:
    """The stacks that are in bits, all of them or in part."""
    return [name for name, g in bank.groups.items() if any(part.is_coded for part in g.parts)]


def _held_in(record: Mapping[str, Any]) -> str:
    """How updates are held: in a dtype, or in bits where these take less."""
    return "coded" if record["coded"] else record["dtype"]


def _contents(bank: Bank) -> dict[str, Any]:
    """What a bank holds beside updates, each once."""
    configs = {adapter.config for adapter in bank.adapters}
    extras = {at for adapter in bank.adapters for at in adapter.extras.values()}
    keys = dict.fromkeys(key for adapter in bank.adapters for key in adapter.extras)
    return {
        "configurations": len(configs),
        "tensors": len(extras),
        "keys": list(keys),
        "bytes": _nbytes(bank.contents[at] for at in sorted(configs | extras)),
    }


def _group_record(group: BankGroup) -> dict[str, Any]:
    tensors = _group_tensors(group)
    return {
        "name": group.name,
        "shape": list(group.shape),
        "modules": [name for name, _ in group.modules],
        "bases": [
            [int(tensor.shape[1]) for tensor in side] for side in (group.outputs, group.inputs)
        ],
        "bytes": _nbytes(tensors),
        "parts": [
            {
                "format": part.format,
                "layers": len(part.index),
                "adapters": len(set(part.index[:, ADAPTER].tolist())),
                "segments": part.segments,
                "method": part.method,
            }
            for part in group.parts
        ],
    }


def _errors(bank: Bank) -> dict[str, float]:
    figures = [bank.figures(name) for name in bank.names]
    return {
        "relative_error": float(bank.relative_error),
        "worst_error": max(float(one.relative_error) for one in figures),
        "worst_bound": max(float(one.bound) for one in figures),
    }


def _formats(bank: Bank) -> dict[str, int]:
    """How many layers are in each format."""
    return _by_format(
        (part.format, len(part.index)) for group in bank.groups.values() for part in group.parts
    )


def _by_format(parts: Iterable[tuple[str, int]]) -> dict[str, int]:
    found = Counter[str]()
    for form, layers in parts:
        found[form] += layers
    return dict(found)


def _all_tensors(bank: Bank) -> list[BankTensor]:
    return [tensor for group in bank.groups.values() for tensor in _group_tensors(group)]


def _group_tensors(group: BankGroup) -> list[BankTensor]:
    own = [tensor for part in group.parts for tensor in part.tensors.values()]
    return [*group.outputs, *group.inputs, *own]


def _nbytes(tensors: Iterable[BankTensor]) -> int:
    return sum(tensor.entry.nbytes for tensor in tensors)


def bank_question_text(asked: Mapping[str, Any]) -> str:
    """What a bank was asked for, in words."""
    if "relative_error" in asked:
        epsilon = asked["relative_error"]
        whose = "each adapter" if asked.get("each", True) else "all adapters together"
        return f"at most {epsilon:g} for {whose}" if epsilon else "exact, but for rounding"
    if "ranks" in asked:
        return "ranks " + ",".join(map(str, asked["ranks"]))
    if asked.get("params") is not None:
        return f"at most {asked['params']:,} parameters"
    size = asked.get("bytes")
    return f"at most {size:,} bytes" if isinstance(size, int) else f"at most {size}"


def _error_lines(record: Mapping[str, Any]) -> list[str]:
    worst, whole = error(record["worst_error"]), error(record["relative_error"])
    lines = [f"Relative error  {worst} at worst, {whole} of all together, measured"]
    if grown(record["worst_bound"], record["worst_error"]):
        bound = error(record["worst_bound"])
        lines.append(f"At most         {bound} for each, with what compacting has moved since")
    lines.append(f"Asked           {bank_question_text(record['asked'])}")
    return lines


def grown(bound: float, measured: float) -> bool:
    """Whether later changes can be seen in an error."""
    return bound > measured * (1 + VISIBLE)


def _cluster_lines(adapters: list[dict[str, Any]]) -> list[str]:
    sizes = Counter(one["cluster"] for one in adapters)
    if len(sizes) == 1:
        return []
    each = ", ".join(str(size) for _, size in sorted(sizes.items())[:SHOWN])
    more = ", ..." if len(sizes) > SHOWN else ""
    return [f"Clusters        {len(sizes)} with bases of their own, of {each}{more} adapters"]


def adapter_table(
    adapters: list[dict[str, Any]], *, show_all: bool, worst: bool = True, most: int = SHOWN
) -> list[RenderableType]:
    """Adapters, those of the largest errors or the first, and a line on those not shown."""
    shown = adapters
    if len(adapters) > most and not show_all:
        ordered = sorted(adapters, key=lambda one: -one["relative_error"]) if worst else adapters
        shown = ordered[:most]
    bounded = any(grown(one["bound"], one["relative_error"]) for one in adapters)
    apart = any(one["other_bytes"] for one in adapters)
    columns = ("Modules", "Error", *(("At most",) if bounded else ()), "Own size")
    table = plain_table("Adapter", *columns, *(("Other",) if apart else ()))
    for one in shown:
        more = (error(one["bound"]),) if bounded else ()
        figures = (str(one["modules"]), error(one["relative_error"]), *more)
        sizes = [one["own_bytes"] - one["other_bytes"], *([one["other_bytes"]] if apart else [])]
        table.add_row(Text(one["name"]), *figures, *map(byte_size, sizes))
    left_out = more_text(shown, adapters, "largest errors" if worst else "first adapters")
    return [table, *left_out, *([Text()] if left_out and worst else [])]


def bank_conversion_text(record: dict[str, Any], *, show_all: bool) -> RenderableType:
    """The outcome of `lotr bank make`."""
    before, after = record["params_before"], record["params_after"]
    lines = [
        *_error_lines(record),
        f"Parameters      {before:,} -> {after:,} ({times(after, before)})",
        *_stacking_lines(record),
        *_cluster_lines(record["adapters"]),
        f"Files           {file_growth(record['bytes_before'], record['bytes_after'])}, "
        f"{_held_in(record)}",
        f"Written         {record['destination']} in {record['seconds']:.1f} s",
    ]
    if record["contents"]["tensors"]:
        sizes = record["bytes_updates_before"], record["bytes_stacks"]
        lines.insert(-2, f"Updates         {file_growth(*sizes)}")
        lines.insert(-2, f"Carried along   {_contents_text(record['contents'])}, unchanged")
    hardly = not any(FORMS[name].shares for name in record["formats"])
    most = min(SHOWN, most_rows(rows_of("", *lines, *(["", HARDLY] if hardly else []))))
    parts = adapter_table(record["adapters"], show_all=show_all, most=most)
    parts.append(emphasised("\n".join(lines)))
    if hardly:
        parts.append(Text("\n" + HARDLY, style="yellow"))
    return Group(*parts)


def _stacking_lines(record: Mapping[str, Any]) -> list[str]:
    """How adapters are stacked, what other ways would take, and each on its own."""
    found = []
    for way in sorted(record["stackings"], key=lambda one: one["stacking"] != record["stacking"]):
        size = ", not measured" if way["note"] else ""
        size = size if way["bytes"] is None else f", {byte_size(way['bytes'])}"
        found.append(f"{way['stacking']} ({counted(way['stacks'], 'stack')}{size})")
    chosen, *others = found
    lines = [f"Stacked by      {chosen}"]
    if others:
        lines.append(f"Other ways      {', '.join(others)}")
    separate = record["bytes_separate"]
    if separate is not None:
        lines.append(
            f"Each alone      {byte_size(separate)} at this error, ranks cut: "
            f"{times(separate, record['bytes_stacks'])} as much"
        )
    grown = [name for name, route in record["routes"].items() if route not in ("whole", "apart")]
    if grown:
        routes = sorted({record["routes"][name] for name in grown})
        lines.append(
            f"Bases           {len(grown)} of {len(record['routes'])} stacks by route "
            f"{' and '.join(routes)}"
        )
    return lines


def bank_text(
    record: dict[str, Any], config: Mapping[str, Any], *, show_all: bool
) -> RenderableType:
    """The outcome of `lotr bank show`."""
    layers = ", ".join(f"{number:,} {form}" for form, number in record["formats"].items())
    lines = [
        f"{record['source']}",
        f"Format          bank of {counted(len(record['adapters']), 'adapter')}, "
        f"{_held_in(record)}, {byte_size(record['bytes'])}",
        f"Base model      {config.get('base_model_name_or_path') or 'not named'}",
        *_error_lines(record),
        f"Stacked by      {record['stacking']}: {counted(len(record['groups']), 'stack')} with "
        f"{byte_size(record['bytes_bases'])} of shared bases",
        *_cluster_lines(record["adapters"]),
        f"Layers          {layers}",
        f"Carried along   {_contents_text(record['contents'])}",
    ]
    adapters, groups = record["adapters"], record["groups"]
    room = most_rows(rows_of(*lines) + TABLE)
    most = max(room - min(len(groups), FEWEST), FEWEST)
    most += len(adapters) == most + 1  # then no line says how many are left
    stacks = max(room + (len(adapters) <= most) - min(len(adapters), most), FEWEST)
    return Group(
        Text("\n".join(lines)),
        *adapter_table(adapters, show_all=show_all, worst=False, most=most),
        *_group_table(groups, show_all=show_all, most=stacks),
    )


def verification_text(record: dict[str, Any]) -> RenderableType:
    """The outcome of `lotr bank verify`."""
    return Text(f"Verified        all {record['verified']:,} tensors are as written")


def _contents_text(contents: Mapping[str, Any]) -> str:
    configs, tensors = contents["configurations"], contents["tensors"]
    text = counted(configs, "configuration")
    if tensors:
        text += f" and {counted(tensors, 'other tensor')}"
    return f"{text}, {byte_size(contents['bytes'])}"


def _group_table(
    groups: list[dict[str, Any]], *, show_all: bool, most: int
) -> list[RenderableType]:
    shown = groups
    if len(groups) > most and not show_all:
        shown = sorted(groups, key=lambda group: -group["bytes"])[:most]
    table: Table = plain_table("Stack", "Matrix", "Bases", "Layers", "Size")
    for group in shown:
        sides = ["+".join(map(str, side)) for side in group["bases"]]
        layers = _by_format((part["format"], part["layers"]) for part in group["parts"])
        table.add_row(
            Text(group["name"]),
            "x".join(map(str, group["shape"])),
            ", ".join(sides) if any(sides) else "-",
            ", ".join(f"{number} {form}" for form, number in layers.items()),
            byte_size(group["bytes"]),
        )
    return [table, *more_text(shown, groups, "largest stacks")]
