"""How alike many adapters are: the record for `--json`, and text for a terminal of 80 columns."""

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lotr_tn.inspection.likeness import Likeness
from lotr_tn.report.text import plain_table

GROUP_COSINE = 0.5  # the least cosine of every two adapters of a group
COLUMNS = 12  # columns of numbers beside each other; the most adapters shown without --all
MATRICES = "cosine", "overlap_out", "overlap_in", "chance_out", "chance_in"
PAIRS = 6
SHOWN_GROUPS = 8
NAME, PAIR_NAME = 44, 23  # cells of a name in a list, and beside another


def likeness_record(likeness: Likeness) -> dict[str, Any]:
    """What `lotr compare --json` prints of three or more adapters, with None where nothing is."""
    names = likeness.names
    return {
        "adapters": [
            {"name": name, "norm": float(norm)}
            for name, norm in zip(names, likeness.norms, strict=True)
        ],
        "modules": list(likeness.modules),
        **{key: [_numbers(row) for row in getattr(likeness, key)] for key in MATRICES},
        "common_modules": likeness.common.tolist(),
        "chance": _numbers(likeness.chance),
        "order": [names[place] for place in likeness.order],
        "groups": [[names[place] for place in group] for group in likeness.groups(GROUP_COSINE)],
        "group_cosine": GROUP_COSINE,
    }


def _numbers(values: Sequence[float] | np.ndarray) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]


def likeness_text(
    record: dict[str, Any], written: Sequence[Path] = (), *, show_all: bool
) -> RenderableType:
    """The outcome of `lotr compare` of three or more adapters; files were written beside."""
    names = [adapter["name"] for adapter in record["adapters"]]
    places = [names.index(name) for name in record["order"]]
    pairs = _pairs(record, places)
    parts: list[RenderableType] = [_head(record, pairs)]
    whole = show_all or len(names) <= COLUMNS
    if whole:
        parts += [_legend(record, places), Text("Cosines", style="bold")]
        parts += _matrix(record["cosine"], places)
    if show_all:
        title = "Overlaps: outputs below the diagonal, inputs above"
        parts += [Text(title, style="bold"), *_matrix(_overlaps(record, places), places)]
    parts += _groups(record, numbered=whole)
    labels = _numbered(names, places) if whole else [_short(name, PAIR_NAME) for name in names]
    parts += _closest(pairs, labels, ends=not whole)
    if not show_all and len(pairs) > PAIRS:
        parts.append(Text("--all shows all cosines and overlaps, --json everything."))
    parts += [Text(f"Written         {path}") for path in written]
    return Group(*parts)


def _pairs(record: dict[str, Any], places: list[int]) -> list[dict[str, Any]]:
    """All pairs, those of the highest cosine first and those without one last."""
    found = [
        {"pair": (a, b), **{key: record[key][a][b] for key in MATRICES}}
        for a, b in itertools.combinations(places, 2)
    ]
    return sorted(found, key=lambda p: math.inf if p["cosine"] is None else -p["cosine"])


def _head(record: dict[str, Any], pairs: list[dict[str, Any]]) -> Text:
    """How many, and the range of each figure over all pairs."""
    count = len(record["adapters"])
    lines = [f"Adapters        {count}, {_modules(record)}"]
    for key, label in zip(MATRICES[:3], ("Cosine", "Output overlap", "Input overlap"), strict=True):
        values = [pair[key] for pair in pairs if pair[key] is not None]
        if not values:
            lines.append(f"{label:16}-")
            continue
        low, high = two_digits(min(values)), two_digits(max(values))
        line = f"{label:16}{low} to {high}, mean {sum(values) / len(values):.3f}"
        if key != "cosine":
            chances = [pair[key.replace("overlap", "chance")] for pair in pairs]
            known = [chance for chance in chances if chance is not None]
            line += f"; chance {sum(known) / len(known):.3f}"
        lines.append(line)
    zero = [adapter["name"] for adapter in record["adapters"] if not adapter["norm"]]
    if zero:
        more = f" and {len(zero) - 1} more" if len(zero) > 1 else ""
        lines.append(f"Zero            {_short(zero[0], NAME)}{more}: no angle, no subspace")
    return Text("\n".join(lines))


def _modules(record: dict[str, Any]) -> str:
    """How many modules the adapters update."""
    total = len(record["modules"])
    own = {
        record["common_modules"][place][place]
        for place, adapter in enumerate(record["adapters"])
        if adapter["norm"]
    }
    if own <= {total}:
        return f"all of the same {total} modules"
    some = "each" if len(own) == 1 else f"{min(own)} to"
    return f"{some} {max(own)} of {total} modules; one that is lacking counts as zero"


def two_digits(value: float | None) -> str:
    """A cosine or overlap: 0.58, -0.12; a dash where there is none.

    Examples:
        >>> two_digits(0.9999), two_digits(-0.001), two_digits(None)
        ('1.00', '0.00', '-')
    """
    return "-" if value is None else f"{value:.2f}".replace("-0.00", "0.00")


def _short(name: str, most: int) -> str:
    """A name in at most so many cells of the terminal, of which the end says most."""
    plain = "".join(c if c.isprintable() else "?" for c in name)
    if cell_len(plain) <= most:
        return plain
    while cell_len(plain) > most - 1:
        plain = plain[1:]
    return "…" + plain


def _legend(record: dict[str, Any], places: list[int]) -> Table:
    """The number of each adapter, in the order of the tree, and which other is closest to it."""
    number = {place: str(index) for index, place in enumerate(places, 1)}
    table = plain_table("", "Adapter", "Norm", "Closest")
    table.columns[0].justify, table.columns[1].justify = "right", "left"
    for place in places:
        adapter, row = record["adapters"][place], record["cosine"][place]
        others = [other for other in places if other != place and row[other] is not None]
        closest = max(others, key=lambda other: row[other], default=None)
        table.add_row(
            number[place],
            Text(_short(adapter["name"], NAME)),
            f"{adapter['norm']:#.4g}".removesuffix(".") if adapter["norm"] else "0",
            "-" if closest is None else f"{number[closest]} ({two_digits(row[closest])})",
        )
    return table


def _matrix(cosine: list[list[float | None]], places: list[int]) -> list[RenderableType]:
    """The matrix of cosines, in stretches of columns that fit."""
    tables: list[RenderableType] = []
    for first in range(0, len(places), COLUMNS):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0), header_style="bold")
        table.add_column("", justify="right", no_wrap=True, min_width=3)
        shown = places[first : first + COLUMNS]
        # cells of one width are one column, which is drawn far faster
        table.add_column(_cells(map(str, range(first + 1, first + 1 + len(shown)))), no_wrap=True)
        for number, place in enumerate(places, 1):
            row = map(two_digits, (cosine[place][other] for other in shown))
            table.add_row(Text(str(number), style="bold"), _cells(row))
        tables.append(table)
    return tables


def _cells(texts: Iterable[str]) -> str:
    return " ".join(f"{text:>5}" for text in texts)


def _overlaps(record: dict[str, Any], places: list[int]) -> list[list[float | None]]:
    """The overlaps of both sides in one matrix, in the order of the tree."""
    number = {place: index for index, place in enumerate(places)}
    pairs = zip(record["overlap_out"], record["overlap_in"], strict=True)
    return [
        [out[at] if number[at] <= number[place] else into[at] for at in range(len(places))]
        for place, (out, into) in enumerate(pairs)
    ]


def _groups(record: dict[str, Any], *, numbered: bool) -> list[RenderableType]:
    """Which adapters are alike, where that is more than nothing and less than all."""
    groups = record["groups"]
    several = [group for group in groups if len(group) > 1]
    alike = f"have a cosine of at least {record['group_cosine']:g}"
    if not several or len(groups) == 1:
        return [Text(f"{'Every' if several else 'No'} two {alike}.\n")]
    title = f"Groups in which every two {alike}"
    if numbered:
        number = {name: index for index, name in enumerate(record["order"], 1)}
        ranges = [_range(number[group[0]], number[group[-1]]) for group in groups]
        return [Text(f"{title}:\n{', '.join(ranges)}\n")]
    alone = len(groups) - len(several)
    shown = sorted(several, key=len, reverse=True)[:SHOWN_GROUPS]
    table = plain_table("Adapters", "Such as")
    table.columns[0].justify, table.columns[1].justify = "right", "left"
    for group in shown:
        table.add_row(str(len(group)), Text(_such_as(group)))
    notes = []
    if len(several) > len(shown):
        notes.append(f"{len(several) - len(shown)} smaller groups are not shown.")
    if alone:
        notes.append(f"{alone} {'is' if alone == 1 else 'are'} in no group.")
    rest = [Text(" ".join(notes) + "\n")] if notes else []
    return [Text(f"\n{title}", style="bold"), table, *rest]


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _such_as(group: list[str]) -> str:
    """The first two names and the last, in the order of the tree."""
    if len(group) <= 3:
        return ", ".join(_short(name, PAIR_NAME - 2) for name in group)
    first, last = _short(group[0], PAIR_NAME), _short(group[-1], PAIR_NAME)
    return f"{first} … {last}"


def _numbered(names: list[str], places: list[int]) -> list[str]:
    """Names behind the numbers that they have in the order of the tree."""
    digits = len(str(len(names)))
    number = {place: index for index, place in enumerate(places, 1)}
    return [
        f"{number[place]:{digits}} {_short(name, PAIR_NAME - digits - 1)}"
        for place, name in enumerate(names)
    ]


def _closest(pairs: list[dict[str, Any]], names: list[str], *, ends: bool) -> list[RenderableType]:
    """The closest pairs, and where the matrix is not shown the farthest ones."""
    known = [pair for pair in pairs if pair["cosine"] is not None]
    if not known:
        return []
    few = len(known) <= PAIRS
    title = "Pairs, closest first" if few else f"The {PAIRS} closest of {len(known):,} pairs"
    parts: list[RenderableType] = [Text(title, style="bold"), _pair_table(known[:PAIRS], names)]
    if ends and not few:
        title = f"The {PAIRS} of the lowest cosine"
        parts += [Text(title, style="bold"), _pair_table(known[: -PAIRS - 1 : -1], names)]
    return parts


def _pair_table(pairs: list[dict[str, Any]], names: list[str]) -> Table:
    table = plain_table("Adapter", "and", "Cosine", "Outputs", "Inputs")
    table.columns[1].justify = "left"
    for pair in pairs:
        a, b = (Text(names[place]) for place in pair["pair"])
        sides = pair["overlap_out"], pair["overlap_in"]
        overlaps = ["-" if overlap is None else f"{overlap:.3f}" for overlap in sides]
        table.add_row(a, b, f"{pair['cosine']:.4f}", *overlaps)
    return table
