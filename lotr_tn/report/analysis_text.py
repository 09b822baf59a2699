"""An analysis as text for a terminal of 80 columns: tables, and the verdict last."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lotr_tn.analysis.forms import FORMS
from lotr_tn.report.advice import question_text
from lotr_tn.report.emphasis import emphasised
from lotr_tn.report.forms import is_kept
from lotr_tn.report.numbers import byte_size, count, counted, error, times
from lotr_tn.report.page.command import command_parts
from lotr_tn.report.screen import largest, most_rows, rows_of
from lotr_tn.report.text import add_left_out, bound_text, next_text, plain_table, shape_text

MORE = "More            --all: other errors, other stackings, every form of each group"


def analysis_text(
    record: dict[str, Any],
    written: list[Path],
    given: Mapping[str, Sequence[str]] | None = None,
    *,
    show_all: bool,
) -> RenderableType:
    """The outcome of `lotr analyze`; files were written, and other options given, beside."""
    head, parts = _head(record), list[RenderableType]()
    files = [Text(f"Written         {path}") for path in written]
    if not any(group["norm"] for group in record["groups"]):
        return Group(head, Text(), *files, *_verdict(record))
    more, following = Text(MORE), _next_step(record, given or {})
    told = [text.plain for text in (head, more, *files, Text(), following)]
    room = most_rows(rows_of(*told, *(f"  {words}" for words in record["verdict"])))
    parts.append(_groups(record, room, show_all))
    if show_all:
        parts.append(_at_errors(record))
        if (record.get("in_bits") or {}).get("within"):
            parts.append(_bits_at_errors(record))
        if len(record["stackings"]) > 1:
            parts.append(_stackings(record))
        parts += _candidates(record)
    else:
        parts.append(more)
    return Group(head, *parts, *files, Text(), *_verdict(record), following)


def sizes_text(record: dict[str, Any]) -> RenderableType:
    """The verdict of an analysis, and what each form would take at several errors."""
    return Group(*_verdict(record), _at_errors(record))


def _verdict(record: dict[str, Any]) -> list[RenderableType]:
    texts = [emphasised(words) for words in record["verdict"]]
    for text in texts:
        text.stylize("bold")
    return [Padding(text, (0, 0, 0, 2)) for text in texts]


def _head(record: dict[str, Any]) -> Text:
    sources = record["sources"]
    short = [Path(source).name for source in sources]
    shown = short if len(set(short)) == len(short) else sources
    named = sources[0] if len(sources) == 1 else f"{len(sources)} adapters: {', '.join(shown)}"
    modules = sum(len(group["modules"]) for group in record["groups"])
    bound = "" if record["bound"] is None else f"\nAt best         {bound_text(record)}"
    return Text(
        f"{named}\n"
        f"Base model      {record['base_model'] or 'not named'}\n"
        f"Updates         {modules} modules in {counted(len(record['groups']), 'group')}, "
        f"{record['params']:,} parameters, {byte_size(record['bytes'])}\n"
        f"Asked           {question_text(record['question'])}{bound}"
    )


def _groups(record: dict[str, Any], room: int, show_all: bool) -> Table:
    """The largest groups, as many as there is room for, each with its recommended form."""
    shown = largest(record["groups"], lambda group: group["params"], room, show_all=show_all)
    table = plain_table("Group", "Stack", "Best form", "Ranks", "Error", "Size")
    for group in shown:
        best = next(c for c in group["candidates"] if c["format"] == group["recommended"])
        table.add_row(
            group["name"],
            shape_text(group["shape"]).replace(" ", ""),
            best["format"],
            best["ranks"],
            error(best["relative_error"]),
            times(best["bytes"], group["bytes"]),
        )
    return add_left_out(table, shown, record["groups"])


def _at_errors(record: dict[str, Any]) -> Table:
    """Parameters of each form at other errors, by its curve; most shared first, then less."""
    within = record["groups"][0]["params_within"]
    formats = [name for name in within if name in FORMS and not is_kept(name)]
    formats.sort(key=lambda name: (bool(FORMS[name].shares), -len(FORMS[name].shares)))
    table = plain_table("Parameters at", *formats)
    for bound in next(iter(within.values())):
        sizes = [_least(record, form, bound) for form in formats]
        shown = ["-" if size is None else times(size, record["params"]) for size in sizes]
        table.add_row(bound, *shown)
    return table


def _bits_at_errors(record: dict[str, Any]) -> Table:
    """About the bytes of all updates at other errors of all of them, in numbers and in bits."""
    table = plain_table("Bytes at, together", "in numbers", "in bits", "rate of a Gaussian model")
    for bound, bits in record["in_bits"]["within"].items():
        sizes = [b["bytes"] for b in record["budgets"] if b["relative_error"] <= float(bound)]
        told = [bits["bytes"], bits["rate"]] if bits else [None, None]
        found = [min(sizes, default=None), *told]
        shown = ("-" if size is None else byte_size(size) for size in found)
        table.add_row(bound, *shown)
    return table


def _least(record: dict[str, Any], form: str, bound: str) -> int | None:
    """Parameters of all groups in one form within an error; None where a group has no point."""
    sizes = [group["params_within"].get(form, {}).get(bound) for group in record["groups"]]
    return None if None in sizes else sum(sizes)


def _stackings(record: dict[str, Any]) -> Table:
    several = len(record["sources"]) > 1  # of these no file is made but a bank
    size = "Of LoRA" if several else "File"
    table = plain_table("Way of stacking", "Stacks", "Parameters", size, "Error")
    for way in record["stackings"]:
        name = f"{way['label']} ({way['name']})" + (" *" if way["chosen"] else "")
        if way["params"] is None:
            table.add_row(f"{name}\n{way['note']}", str(way["stacks"]), "-", "-", "-")
            continue
        table.add_row(
            name,
            str(way["stacks"]),
            count(way["params"]),
            times(way["params"], record["params"]) if several else byte_size(way["bytes"]),
            error(way["relative_error"]),
        )
    return table


def _candidates(record: dict[str, Any]) -> list[RenderableType]:
    """The candidates of each group side by side, each with what they mean."""
    parts: list[RenderableType] = []
    for group in record["groups"]:
        parts += [Text(group["name"], style="bold"), Padding(Text(group["advice"]), (0, 0, 0, 2))]
        table = plain_table("Form", "Ranks", "Parameters", "Size", "Error")
        for candidate in group["candidates"]:
            mark = " *" if candidate["format"] == group["recommended"] else ""
            bound = "" if candidate["measured"] or candidate["least_params"] is None else "≤ "
            table.add_row(
                f"{candidate['format']}{mark}",
                candidate["ranks"],
                bound + count(candidate["params"]),
                times(candidate["bytes"], group["bytes"]),
                error(candidate["relative_error"]),
            )
        parts.append(table)
    legend = "* recommended."
    candidates = [c for group in record["groups"] for c in group["candidates"]]
    if any(c["least_params"] and not c["measured"] for c in candidates):
        legend += " ≤: by HOSVD; HOOI may need fewer, but not fewer than the recommended form."
    return [*parts, _vocabulary(candidates), Text(legend)]


def _vocabulary(candidates: Sequence[Mapping[str, Any]]) -> Table:
    """What each form is; all but the LoRA as it is can be asked for by these words."""
    table = plain_table("--format")
    table.add_column("What is stored")
    labels = {candidate["format"]: candidate["label"] for candidate in candidates}
    for name, label in labels.items():
        table.add_row(f"({name})" if is_kept(name) else name, label)
    return table


def _next_step(record: dict[str, Any], given: Mapping[str, Sequence[str]]) -> Text:
    """The command that does what is recommended, in one line to be copied."""
    question, parts = record["question"], command_parts(record, given)
    form = "" if len(record["sources"]) > 1 else "--format auto "
    option = "--" + question["kind"].replace("_", "-")
    value = f"{question['value']:g}" if "error" in question["kind"] else str(question["value"])
    asked = f"{form}{option} {value}"
    line = " ".join(filter(None, (parts["before"], asked, parts["limits"], parts["after"])))
    return next_text(line)
