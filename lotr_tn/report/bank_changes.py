"""What commands say that change a bank: records for `--json`, and their texts."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from lotr_tn.banks.changing.appending import Appended
from lotr_tn.banks.changing.compacting import Compacted
from lotr_tn.banks.changing.editing import Edited
from lotr_tn.report.bank import adapter_record, adapter_table
from lotr_tn.report.numbers import byte_size, error, file_growth
from lotr_tn.report.text import next_text

STRANGER = 0.1  # share of a squared norm in a bank's bases below which almost nothing is shared


def _change(
    done: Appended | Edited | Compacted, path: Path, before: int, seconds: float
) -> dict[str, Any]:
    """What all changes say; `before` counts adapters."""
    return {
        "adapters_before": before,
        "adapters_after": len(done.bank),
        "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after,
        "dtype": done.bank.dtype,
        "seconds": seconds,
        "destination": str(path),
    }


def appending_record(
    done: Appended, path: Path, rel_error: float | None, seconds: float
) -> dict[str, Any]:
    """What `lotr bank add --json` prints."""
    adapters = [adapter_record(done.bank, name) for name in done.names]
    asked = done.bank.asked.get("relative_error") if rel_error is None else rel_error
    return {
        "adapters": adapters,
        "worst_error": max(one["relative_error"] for one in adapters),
        "asked": asked,
        "new_directions": done.new_directions,
        "shared": list(done.shared),
        "met": bool(done.met),
        **_change(done, path, len(done.bank) - len(done.names), seconds),
    }


def appending_text(record: dict[str, Any], *, show_all: bool) -> RenderableType:
    """The outcome of `lotr bank add`."""
    each = (record["bytes_after"] - record["bytes_before"]) // len(record["adapters"])
    directions = record["new_directions"]
    lines = [
        f"Relative error  {error(record['worst_error'])} at worst, measured; asked: at most "
        f"{record['asked']:g}",
        _count(record),
        f"New directions  {directions:,}, added to the bases"
        if directions
        else "New directions  none: the bases hold what the new adapters need",
        f"Shared          {_shared(record['shared'])} of what is new lay in the bank's bases",
        f"{_file(record)}, {byte_size(each)} an adapter",
        _changed(record),
    ]
    parts = [
        *adapter_table(record["adapters"], show_all=show_all),
        Text("\n".join(lines)),
    ]
    pairs = zip(record["adapters"], record["shared"], strict=True)
    if strangers := [one["name"] for one, share in pairs if share < STRANGER]:
        named = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        sentence = f"{named}: almost nothing shared with this bank; a file apart takes no more."
        parts.append(Text(sentence, style="yellow"))
    return Group(*parts)


def _shared(shares: list[float]) -> str:
    """Shares of squared norms, as per cent."""
    least, most = (f"{100 * share:.3g}%" for share in (min(shares), max(shares)))
    return most if least == most else f"{least} to {most}"


def dropping_record(
    done: Edited, path: Path, names: Sequence[str], seconds: float
) -> dict[str, Any]:
    """What `lotr bank drop --json` prints."""
    dropped = list(dict.fromkeys(names))
    return {"dropped": dropped, **_change(done, path, len(done.bank) + len(dropped), seconds)}


def dropping_text(record: dict[str, Any]) -> RenderableType:
    """The outcome of `lotr bank drop`."""
    path = shlex.quote(record["destination"])
    lines = [
        f"Dropped         {', '.join(record['dropped'])}",
        _count(record),
        _file(record),
        _changed(record),
        "Bases           as they were; compacting makes them smaller",
    ]
    return Group(Text("\n".join(lines)), next_text(f"lotr bank compact {path}"))


def renaming_record(
    done: Edited, path: Path, names: tuple[str, str], seconds: float
) -> dict[str, Any]:
    """What `lotr bank rename --json` prints."""
    return {"old": names[0], "new": names[1], **_change(done, path, len(done.bank), seconds)}


def renaming_text(record: dict[str, Any]) -> RenderableType:
    """The outcome of `lotr bank rename`."""
    return Text(f"Renamed         {record['old']} -> {record['new']}\n{_changed(record)}")


def compacting_record(
    done: Compacted, path: Path, rel_error: float | None, seconds: float
) -> dict[str, Any]:
    """What `lotr bank compact --json` prints."""
    adapters = [adapter_record(done.bank, name) for name in done.bank.names]
    asked = done.bank.asked.get("relative_error") if rel_error is None else rel_error
    return {
        "adapters": adapters,
        "worst_error": max(one["relative_error"] for one in adapters),
        "worst_bound": max(one["bound"] for one in adapters),
        "asked": asked,
        "met": bool(done.met),
        **_change(done, path, len(done.bank), seconds),
    }


def compacting_text(record: dict[str, Any], *, show_all: bool) -> RenderableType:
    """The outcome of `lotr bank compact`."""
    bound, size = error(record["worst_bound"]), byte_size(record["bytes_after"])
    outcome = [_file(record), _changed(record)]
    if record["bytes_after"] == record["bytes_before"]:
        same = f"File            {size}, unchanged: nothing smaller was found"
        outcome = [same, f"Looked at       {_where(record)}"]
    lines = [
        f"Relative error  at most {bound} for each adapter, over all changes",
        f"Asked           at most {record['asked']:g}",
        *outcome,
    ]
    table = adapter_table(record["adapters"], show_all=show_all)
    return Group(*table, Text("\n".join(lines)))


def _count(record: dict[str, Any]) -> str:
    return f"Adapters        {record['adapters_before']} -> {record['adapters_after']}"


def _file(record: dict[str, Any]) -> str:
    return f"File            {file_growth(record['bytes_before'], record['bytes_after'])}"


def _changed(record: dict[str, Any]) -> str:
    return f"Changed         {_where(record)}"


def _where(record: dict[str, Any]) -> str:
    return f"{record['destination']} in {record['seconds']:.1f} s"
