"""The parts of the page that are plain HTML, and so are there without its script."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lotr_tn.files.places import name_of
from lotr_tn.report.forms import candidate_of
from lotr_tn.report.numbers import byte_size, count, error, percent, rank_range, ratio_text, times
from lotr_tn.report.text import shape_text

MOST_NAMES = 3  # adapters that a title names; more are counted
SHOWN_RUNS = 12  # ranges of a cluster's layers that are named before the rest is counted


def title(record: dict[str, Any]) -> str:
    """What the page is about: the adapters by their names, or how many there are."""
    sources = record["sources"]
    names = [name_of(Path(source)) for source in sources]
    if len(sources) > MOST_NAMES:
        return f"{len(sources)} adapters"
    return ", ".join(names if len(set(names)) == len(names) else sources)


def saving(record: dict[str, Any]) -> str:
    """What the recommended forms store and lose, in figures to be seen first."""
    best, bits = record["recommended"], record.get("in_bits")
    before = f"of {byte_size(record['bytes'])}"
    kept = f"{count(best['params'])} of {count(record['params'])}"
    figures = [
        ("Parameters", times(best["params"], record["params"]), kept),
        ("Size", byte_size(best["update_bytes"]), before),
    ]
    if bits:
        in_numbers = f"{byte_size(best['update_bytes'])} in numbers"
        figures = [
            ("In bits", times(bits["update_bytes"], record["bytes"]), before),
            ("Size", byte_size(bits["update_bytes"]), in_numbers),
        ]
    lost = percent((bits or best)["relative_error"])
    figures.append(("Relative error", lost, "of all updates"))
    return "".join(
        f"<div><dt>{name}</dt><dd><strong>{figure}</strong> <span>{more}</span></dd></div>"
        for name, figure, more in figures
    )


def question(record: dict[str, Any]) -> str:
    """What was asked, and whether it could be met."""
    value = record["question"]["value"]
    match record["question"]["kind"]:
        case "rel_error":
            asked = f"each group within a relative error of {value:g}"
        case "total_error":
            asked = f"all groups together within a relative error of {value:g}"
        case "max_params":
            asked = f"at most {value:,} parameters in all"
        case "max_bytes":
            asked = f"at most {byte_size(value)} in all"
        case kind:
            asked = f"{kind}: {value}"
    found = "met" if record["met"] else "not met"
    mark = "✓" if record["met"] else "✗"
    return f"Asked: {escape(asked)}. <strong>{mark} {found}</strong>"


def verdict_html(record: dict[str, Any]) -> str:
    """The sentences that a reader needs first."""
    return "\n".join(f"<p>{escape(sentence)}</p>" for sentence in record["verdict"])


def facts(record: dict[str, Any]) -> str:
    """The adapters, as they are and as recommended."""
    best = record["recommended"]
    sources = "".join(f"<li>{escape(source)}</li>" for source in record["sources"])
    groups = record["groups"]
    modules = sum(len(group["modules"]) for group in groups)
    which, in_bits = "Recommended", []
    if bits := record.get("in_bits"):
        file = f"a file of {byte_size(bits['bytes'])}, error {error(bits['relative_error'])}"
        which, in_bits = "Best in numbers", [("In bits", file)]
    rows = [
        ("Adapters" if len(record["sources"]) > 1 else "Adapter", f"<ul>{sources}</ul>"),
        ("Base model", escape(record["base_model"] or "not named")),
        ("LoRA as it is", _amount(record)),
        (which, f"{_amount(best)}, {times(best['params'], record['params'])}"),
        ("Its relative error", error(best["relative_error"])),
        *in_bits,
        ("Stored as", escape(record["dtype"])),
        ("Updates", f"{_plural(modules, 'module')} in {_plural(len(groups), 'group')}"),
    ]
    return _definitions(rows)


def summary(record: dict[str, Any]) -> str:
    """One row for each group: what to do with it."""
    rows = []
    for group in record["groups"]:
        best, shown = candidate_of(group), ["-"] * 5
        if best:
            figures = error(best["relative_error"]), f"{best['params']:,}"
            shown = [best["label"], *figures, ratio_text(best["ratio"]), str(best["ranks"])]
        rows.append((group["name"], *shown, shape_text(group["shape"])))
    head = ("Group", "Best form", "Error", "Parameters", "Of LoRA", "Ranks", "Stack")
    return _table("What to do with each group", head, rows, figures=2)


def group_sections(record: dict[str, Any]) -> str:
    """The facts, candidates and clusters of every group."""
    sections = [_group_section(i, group) for i, group in enumerate(record["groups"])]
    return "\n".join(sections) or "<p>This analysis has no groups.</p>"


def _group_section(index: int, group: dict[str, Any]) -> str:
    name = escape(group["name"])
    return f"""<section class="group" id="group-{index}" aria-labelledby="group-{index}-name">
<h3 id="group-{index}-name">{name}</h3>
<p class="advice">{escape(group["advice"] or "")}</p>
{_group_facts(group)}
{_candidates(group)}
{_clusters(group)}
</section>"""


def _group_facts(group: dict[str, Any]) -> str:
    (layers, m, n), member = group["shape"], group["member"]
    fewest = group["break_even_layers"]
    rows = [
        ("Stack", f"{_plural(layers, member)} of {m} x {n} (out x in)"),
        ("Ranks of the LoRA", rank_range(group["layer_ranks"]) if group["layer_ranks"] else "-"),
        ("Its parameters", _amount(group)),
        ("Norm of the updates", error(group["norm"])),
        ("Stable rank, out and in", ", ".join(map(error, group["stable_ranks"]))),
        ("Numerical rank, out and in", ", ".join(str(rank) for rank in group["numerical_ranks"])),
        (
            "LoTR pays from",
            f"no number of {member}s" if fewest is None else _plural(fewest, member),
        ),
    ]
    return _definitions(rows)


def _candidates(group: dict[str, Any]) -> str:
    most = max((c["params"] for c in group["candidates"]), default=0)
    head = ("Form", "Error", "Parameters", "Of LoRA", "Size", "Ranks")
    rows = []
    for candidate in group["candidates"]:
        best = candidate["format"] == group["recommended"]
        label = escape(candidate["label"])
        badge = ' <span class="badge">✓ recommended</span>' if best else ""
        cells = (
            error(candidate["relative_error"]),
            f"{candidate['params']:,}{_bar(candidate['params'], most)}",
            ratio_text(candidate["ratio"]),
            byte_size(candidate["bytes"]),
            escape(str(candidate["ranks"])),
        )
        key = f'<span class="key" data-form="{escape(candidate["format"])}"></span>'
        row = f'<th scope="row">{key}{label}{badge}</th>' + _cells(cells, figures=0)
        rows.append(f'<tr class="best">{row}</tr>' if best else f"<tr>{row}</tr>")
    return _framed(f"Candidates for {group['name']}", _head(head, figures=1), rows)


def _clusters(group: dict[str, Any]) -> str:
    if not group["clusters"]:
        return ""
    labels = {c["format"]: c["label"] for c in group["candidates"]}
    rows = [
        (
            _layers(group["labels"], cluster["layers"]),
            labels.get(cluster["format"], cluster["format"]),
            f"{cluster['params']:,}",
        )
        for cluster in group["clusters"]
    ]
    members = f"{group['member'].capitalize()}s"
    head = (f"{members} (how many)", "Best form", "Parameters")
    return _table(f"{members} of {group['name']} that belong together", head, rows, figures=2)


def stackings(record: dict[str, Any]) -> str:
    """Other ways to put the same modules on top of each other."""
    rows = []
    for way in record["stackings"]:
        measured = way["params"] is not None
        rows.append(
            (
                way["label"] + (" ✓ chosen" if way["chosen"] else ""),
                error(way["relative_error"]),
                f"{way['params']:,}" if measured else "-",
                byte_size(way["bytes"]) if measured else "-",
                str(way["stacks"]),
                way["note"] or "",
            )
        )
    if not rows:
        return "<p>No other way of stacking was tried.</p>"
    head = ("Stacked by", "Error", "Parameters", "Size", "Stacks", "Note")
    return _table("Ways of stacking, for the same question", head, rows, figures=1, words=5)


def _amount(thing: dict[str, Any]) -> str:
    return f"{thing['params']:,} parameters, {byte_size(thing['bytes'])}"


def _plural(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _layers(labels: Sequence[str], kept: Sequence[int]) -> str:
    """Labels of some layers: neighbours as a range, and of many ranges only the first ones."""
    runs: list[list[int]] = []
    for layer in sorted(kept):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    words = [
        f"{labels[run[0]]} to {labels[run[-1]]}"
        if len(run) > 2
        else ", ".join(labels[i] for i in run)
        for run in runs
    ]
    left = len(words) - SHOWN_RUNS
    shown = words if left <= 0 else [*words[:SHOWN_RUNS], f"and {left} more ranges"]
    return f"{', '.join(shown)} ({len(kept)})"


def _bar(value: int, most: int) -> str:
    width = 100 * value / most if most else 0
    return (
        '<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{width:.4g}" height="4"/></svg>'
    )


def _definitions(rows: Iterable[tuple[str, str]]) -> str:
    pairs = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f'<dl class="facts">{pairs}</dl>'


def _table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    figures: int,
    words: int | None = None,
) -> str:
    """A table of text: columns from `figures` on hold numbers, those from `words` on text again."""
    lines = []
    for first, *rest in rows:
        cells = _cells([escape(cell) for cell in rest], figures - 1, words and words - 1)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return _framed(caption, _head(head, figures, words), lines)


def _framed(caption: str, head: str, rows: Iterable[str]) -> str:
    """A table in a frame of its own, in which a narrow screen can move it."""
    name = escape(caption)
    body = "\n".join(rows)
    return f"""<div class="frame" role="region" aria-label="{name}" tabindex="0">
<table><caption>{name}</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table></div>"""


def _head(names: Sequence[str], figures: int, words: int | None = None) -> str:
    end = len(names) if words is None else words
    return "".join(
        f'<th scope="col"{_figure(figures <= i < end)}>{name}</th>' for i, name in enumerate(names)
    )


def _cells(cells: Sequence[str], figures: int, words: int | None = None) -> str:
    end = len(cells) if words is None else words
    return "".join(f"<td{_figure(figures <= i < end)}>{cell}</td>" for i, cell in enumerate(cells))


def _figure(is_figure: bool) -> str:
    return ' class="figure"' if is_figure else ""
