"""Records as tables and sentences for a terminal of 80 columns."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lotr_tn.analysis.forms import FORMS
from lotr_tn.report.emphasis import FigureTable, emphasised
from lotr_tn.report.forms import is_pairs
from lotr_tn.report.numbers import byte_size, count, counted, error, file_growth, rank_range, times
from lotr_tn.report.screen import largest, most_rows, rows_of

WORST = 8
SHOWN_EXTRAS = 3
ALL_ZERO = "All updates are zero: there is nothing to keep."
"""Said of an adapter that changes nothing, wherever it is looked at."""


def plain_table(*columns: str) -> Table:
    """A plain table: the first column is text, the others are figures."""
    table = FigureTable(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    first, *figures = columns
    table.add_column(first, overflow="fold")
    for column in figures:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def shape_text(shape: list[int]) -> str:
    """A stack's sizes: 8 x 256x128."""
    return f"{shape[0]} x {shape[1]}x{shape[2]}"


def add_left_out(table: Table, shown: Sequence[Any], groups: Sequence[Any]) -> Table:
    """The table, with a line below it that counts the groups that are not shown."""
    if left := len(groups) - len(shown):
        table.caption = f" and {counted(left, 'more group')}; --all shows them"
        table.caption_justify, table.caption_style = "left", ""
    return table


def more_text(shown: Sequence[Any], of: Sequence[Any], which: str) -> list[Text]:
    """A line on rows that are not shown, beside those that are; none where all are."""
    left = len(of) - len(shown)
    return [Text(f"The {len(shown)} {which}; --all shows {left} more.")] if left else []


def next_text(command: str) -> Text:
    """What to do next: a command in one line, which the terminal breaks, so it can be copied."""
    return Text(f"Next            {command}", overflow="ignore", no_wrap=True)


def group_table(record: dict[str, Any], shown: Sequence[Any] | None = None) -> Table:
    """What a conversion made of each group, or of those that are shown."""
    mixed = _mixed(record)
    columns = ["Group", "Layers x matrix", "Ranks", "Error", "Worst", "LoRA", "LoTR", "Ratio"]
    if mixed:
        columns[1], columns[6] = "Format", "After"
    table = plain_table(*columns)
    groups: Sequence[Any] = record["groups"] if shown is None else shown
    unit, show = ("bytes", byte_size) if record["coded"] else ("params", count)
    for group in groups:
        before, after = group[f"{unit}_before"], group[f"{unit}_after"]
        form = "coded" if group["name"] in record["coded"] else group["format"]
        table.add_row(
            group["name"],
            form if mixed else shape_text(group["shape"]),
            ranks_text(group["format"], group["ranks"]),
            f"{group['relative_error']:.3g}",
            f"{group['worst_error']:.2g}",
            show(before),
            show(after),
            times(after, before),
        )
    return add_left_out(table, groups, record["groups"])


def stored_as(record: dict[str, Any]) -> str:
    """The dtype of what is stored, or that it is bits."""
    if not record["coded"]:
        return record["dtype"]
    return "coded" if len(record["coded"]) == len(record["groups"]) else "coded in part"


def _mixed(record: dict[str, Any]) -> bool:
    return not all(is_pairs(group["format"]) for group in record["groups"])


def _cut_to(record: dict[str, Any], ranks: tuple[int, int] | None) -> str:
    """Whether some group has no such ranks, where ranks were asked for."""
    if ranks is None or record["zero"]:
        return ""
    for group in record["groups"]:
        shared, each = FORMS[group["format"]].split(group["ranks"])
        found = (shared * 2)[:2] if shared else (max(each, default=0),)
        if any(has < wanted for has, wanted in zip(found, ranks, strict=False)):
            return ", cut to what there is"
    return ""


def conversion_text(
    record: dict[str, Any], asked: str, ranks: tuple[int, int] | None = None, *, show_all: bool
) -> RenderableType:
    """The outcome of `lotr convert`, for what was asked in words, and as ranks if these were."""
    mixed = _mixed(record)
    asked += _cut_to(record, ranks)
    before, after = record["params_before"], record["params_after"]
    updates = record["bytes_updates_before"], record["bytes_updates_after"]
    lines = [
        f"Relative error  {error(record['relative_error'])}, measured; asked: {asked}",
        f"Parameters      {before:,} -> {after:,} ({times(after, before)})",
        f"Updates         {file_growth(*updates)}, {stored_as(record)}",
        f"File            {byte_size(record['bytes_before'])} -> {byte_size(record['bytes_after'])}"
        f", {byte_size(max(record['bytes_after'] - updates[1], 0))} of it no updates",
        f"Written         {record['destination']} in {record['seconds']:.1f} s",
    ]
    if record["bound"] is not None:
        lines.insert(1, f"At best         {bound_text(record)}")
    if record["untouched"]:
        lines.insert(-1, carried_line(record))
    verdict = ALL_ZERO if record["zero"] else None if mixed else verdict_line(record)
    last = ["\n" + verdict] if verdict else []
    room = most_rows(rows_of(*lines, *last))
    shown = largest(record["groups"], _parameters_before, room, show_all=show_all)
    said = [Text(text, style="yellow") for text in last]
    return Group(group_table(record, shown), emphasised("\n".join(lines)), *said)


def _parameters_before(group: dict[str, Any]) -> int:
    return group["params_before"]


def _parameters(group: dict[str, Any]) -> int:
    return group["params"]


def bound_text(record: dict[str, Any]) -> str:
    """What no other division of the budget, or of the error, could go below."""
    *others, last = record["bound_forms"]
    forms = f"{', '.join(others)} and {last}" if others else last
    if record["bound_unit"] == "bytes":
        size = byte_size(record["bound"])
        return f"no choice of ranks in {forms} stores less than {size} of numbers"
    return f"no choice of ranks in {forms} of this size goes below {error(record['bound'])}"


def ranks_text(form: str, ranks: list[int]) -> str:
    """Ranks of a stored group: r1, r2; with low-rank cores how many terms; layers as a range."""
    shared, each = FORMS[form].split(ranks) if form in FORMS else (ranks, ())
    if not shared:
        return rank_range(each)
    text = ", ".join(map(str, shared))
    return f"{text}; {sum(each)} terms" if each else text


def verdict_line(record: dict[str, Any]) -> str | None:
    """One line when LoTR is not the cheapest form, with the numbers; None when it is."""
    before, after, cut = (record[f"params_{k}"] for k in ("before", "after", "truncated"))
    if after <= min(before, cut):
        return None
    size = f"{times(after, before)} the parameters of this LoRA ({after:,} against {before:,})"
    line = f"LoTR takes {size}"
    if after > cut:
        size = f"{times(cut, before)} ({cut:,}) at the same error"
        line += f"; cutting each layer's own rank would take {size}"
    if after > before:
        line += ": these layers hardly share a subspace"
    return line + "."


def carried_line(record: dict[str, Any]) -> str:
    """The tensors that are no updates, counted."""
    return f"Carried along   {counted(len(record['untouched']), 'other tensor')}, unchanged"


def export_text(record: dict[str, Any], uniform: bool) -> RenderableType:
    """The outcome of `lotr export`."""
    return Text(
        f"Modules         {export_ranks(record, uniform)}\n"
        f"Parameters      {record['params']:,}\n"
        f"File            {file_growth(record['bytes_before'], record['bytes_after'])}\n"
        f"Written         {record['destination']} in {record['seconds']:.1f} s"
    )


def export_ranks(record: dict[str, Any], uniform: bool) -> str:
    """How many modules an export has, of which ranks, and their dtype."""
    ranks = list(record["modules"].values())
    own = f"rank {rank_range(ranks)}" + (", the same for all" if uniform else ", each its own")
    return f"{len(ranks)}, {own}, {record['dtype']}"


def comparison_text(record: dict[str, Any], show_all: bool) -> RenderableType:
    """The outcome of `lotr compare`."""
    modules = sorted(record["modules"], key=lambda m: -m["relative_error"])
    shown = record["modules"] if show_all else modules[:WORST]
    table = plain_table("Module", "Error", "Cosine")
    for module in shown:
        table.add_row(module["name"], error(module["relative_error"]), f"{module['cosine']:.6f}")
    more = more_text(shown, modules, "largest errors")
    return Group(Text(comparison_lines(record)), table, *more)


def comparison_lines(record: dict[str, Any]) -> str:
    """How far two adapters lie apart as a whole, in two lines."""
    title = f"Relative error  {error(record['relative_error'])}   (norm of A - B over norm of A)\n"
    return title + f"Cosine          {record['cosine']:.8f}"


def inspection_text(
    record: dict[str, Any], config: dict[str, Any], *, show_all: bool = False
) -> RenderableType:
    """The outcome of `lotr inspect`."""
    lora = record["format"] == "peft-lora"
    modules = sum(len(group["modules"]) for group in record["groups"])
    lines = [
        f"{record['source']}",
        f"Format          {'PEFT LoRA' if lora else _kinds(record)}, {stored_as(record)}, "
        f"{byte_size(record['bytes'])}",
        f"Base model      {config.get('base_model_name_or_path') or 'not named'}",
        f"Updates         {modules} modules, {record['params']:,} parameters",
    ]
    if lora:
        lines.append(f"Scale           {_scale(config)}, multiplied in wherever factors are used")
    label = "Names" if lora else "Read as"
    lines += [f"{label:16}{note}" for note in record["notes"]]
    extras = list(record["untouched"])
    if extras:
        named = ", ".join(key.removeprefix("base_model.model.") for key in extras[:SHOWN_EXTRAS])
        rest = f" and {len(extras) - SHOWN_EXTRAS} more" if len(extras) > SHOWN_EXTRAS else ""
        lines.append(f"Carried along   {named}{rest}")
    if record["digests"] is False:
        lines.append("Digests         none: written by an earlier version, so damage is not seen")
    last = [ALL_ZERO] if record["zero"] else []
    room = most_rows(rows_of(*lines, *last))
    shown = largest(record["groups"], _parameters, room, show_all=show_all)
    table = _lora_table(shown) if lora else _lotr_table(shown)
    add_left_out(table, shown, record["groups"])
    return Group(Text("\n".join(lines)), table, *(Text(text, style="yellow") for text in last))


def _kinds(record: dict[str, Any]) -> str:
    """The formats of a native file."""
    found = dict.fromkeys(group["format"] for group in record["groups"])
    return "LoTR (Tucker-2)" if all(map(is_pairs, found)) else "LoTR file: " + ", ".join(found)


def _scale(config: dict[str, Any]) -> str:
    root = "√" if config.get("use_rslora") else ""
    text = f"alpha / {root}r = {config.get('lora_alpha')} / {root}{config.get('r')}"
    patterns = config.get("alpha_pattern") or config.get("rank_pattern")
    return text + (", with patterns" if patterns else "")


def _lora_table(groups: Sequence[dict[str, Any]]) -> Table:
    table = plain_table("Group", "Layers x matrix", "Ranks", "Scale", "Parameters")
    for group in groups:
        scales = sorted({f"{scale:.4g}" for scale in group["scales"]})
        table.add_row(
            group["name"],
            shape_text(group["shape"]),
            rank_range(group["ranks"]),
            scales[0] if len(scales) == 1 else "mixed",
            f"{group['params']:,}",
        )
    return table


def _lotr_table(groups: Sequence[dict[str, Any]]) -> Table:
    table = plain_table("Group", "Layers x matrix", "Ranks", "Error", "Worst", "Parameters", "By")
    table.collapse_padding = True  # or names would be folded on a terminal of 80 columns
    for group in groups:
        table.add_row(
            group["name"],
            shape_text(group["shape"]),
            ranks_text(group["format"], group["ranks"]),
            *(
                "-" if group[key] is None else f"{group[key]:.3g}"
                for key in ("relative_error", "worst_error")
            ),
            f"{group['params']:,}",
            group["method"] or "-",
        )
    return table
