"""The whole figure: a title, a legend over each column, a row for each group."""

from collections.abc import Sequence
from pathlib import PurePath
from textwrap import wrap
from typing import Any, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from lotr_tn.report.forms import number_bytes
from lotr_tn.report.numbers import byte_size, count, error, times
from lotr_tn.report.plots.curves import NAME, draw_errors, draw_spectra
from lotr_tn.report.plots.maps import draw_layers, write
from lotr_tn.report.plots.style import shortened

Box: TypeAlias = tuple[float, float, float, float]

ROWS = 8  # groups drawn; the others are counted in the title
WIDTH, HEIGHT, LEGEND, TITLE = 3.4, 2.4, 1.0, 0.18
"""Inches of a panel, of the legends and of a line of the title."""

MORE = 0.15  # inches for what the legend says of bits

MARGINS = {
    "left": 0.62,
    "right": 0.12,
    "top": 0.36,
    "bottom": 0.42,
    "bar": 0.72,
    "gap": 0.06,
    "thickness": 0.09,
}
"""Inches around a panel: right of one with a colour bar is `bar`, of which the bar has a part."""

HEADING: dict[str, Any] = {"ha": "left", "va": "top", "size": 9}
LINE = 130  # characters of a line of the title
NAMED = 3  # adapters named in the title
COLUMNS = "Singular values", "Error against {}", "Error of each layer"


def draw(record: dict[str, Any]) -> Figure:
    """The figure of an analysis, laid out and not yet written."""
    groups = _shown(record["groups"])
    title = _title(record)
    bits = any(group.get("in_bits") for group in groups)
    legend = LEGEND + (MORE if bits else 0)
    head = TITLE * len(title) + legend
    figure = Figure(figsize=(3 * WIDTH, head + HEIGHT * len(groups)))
    figure.text(0.01, 1 - 0.05 / figure.get_figheight(), "\n".join(title), **HEADING)
    rows = []
    for group in groups:
        rows.append([figure.add_subplot() for _ in COLUMNS])
        _draw_row(rows[-1], group, record)
    columns = [[row[place] for row in rows] for place in range(len(COLUMNS))]
    for place, (heading, column) in enumerate(zip(COLUMNS, columns, strict=True)):
        left = MARGINS["left"] + place * WIDTH
        corner = (left, figure.get_figheight() - head, WIDTH - left + place * WIDTH, legend)
        heading = heading.format("bytes" if bits else "parameters")
        _draw_legend(figure.add_axes(_share(figure, corner)), heading, column)
    for row, panels in enumerate(rows):
        for place, ax in enumerate(panels):
            cell = (place * WIDTH, figure.get_figheight() - head - HEIGHT * (row + 1))
            _place(figure, ax, cell)
    return figure


def _share(figure: Figure, box: Box) -> Box:
    """Left, bottom, width and height in inches as shares of the figure."""
    (left, bottom, width, height), (wide, high) = box, figure.get_size_inches()
    return left / wide, bottom / high, width / wide, height / high


def _place(figure: Figure, ax: Axes, cell: tuple[float, float]) -> None:
    """Put a panel, and the colour bar that it may have, into its cell of the figure.

    Margins are measured only where names stand on an axis: matplotlib's own layouts draw every
    text of the figure several times, which takes longer than all else here.
    """
    left, bottom = MARGINS["left"], MARGINS["bottom"]
    maps = [*ax.images, *ax.collections]
    bar = next((found.colorbar for found in maps if found.colorbar is not None), None)
    if bar is not None:
        left = max(left, 0.3 + max(_extent(label).width for label in ax.get_yticklabels()))
    if ax.images:
        bottom = max(bottom, 0.3 + max(_extent(label).height for label in ax.get_xticklabels()))
    x, y = cell[0] + left, cell[1] + bottom
    width = WIDTH - left - (MARGINS["bar"] if bar is not None else MARGINS["right"])
    height = HEIGHT - bottom - MARGINS["top"]
    ax.set_position(_share(figure, (x, y, width, height)))
    if bar is not None:
        box = (x + width + MARGINS["gap"], y, MARGINS["thickness"], height)
        bar.ax.set_position(_share(figure, box))


def _extent(label: Text) -> Bbox:
    """What a text takes, in inches."""
    figure = label.get_figure(root=True)
    assert figure is not None
    return label.get_window_extent().transformed(figure.dpi_scale_trans.inverted())


def _shown(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The largest groups, in the order that they have."""
    largest = sorted(range(len(groups)), key=lambda i: (-groups[i]["params"], i))[:ROWS]
    return [groups[i] for i in sorted(largest)]


def _draw_row(panels: Sequence[Axes], group: dict[str, Any], record: dict[str, Any]) -> None:
    """The three panels of a group, or a sentence where all its updates are zero."""
    if not group["norm"]:
        for ax in panels:
            ax.set_title(f"{shortened(group['name'], NAME)}\n")
            write(ax, "nothing to keep:\nall updates of this group are zero")
        return
    spectra, errors, layers = panels
    draw_spectra(spectra, group)
    draw_errors(errors, group, record["question"], number_bytes(record))
    draw_layers(layers, group, record["question"])


def _draw_legend(ax: Axes, heading: str, column: list[Axes]) -> None:
    """One legend for a column, with each thing that any of its panels shows."""
    ax.set_axis_off()
    found: dict[str, Any] = {}
    for panel in column:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    ax.legend(
        list(found.values()),
        list(found),
        title=heading,
        loc="upper left",
        alignment="left",
        ncols=2 if len(found) > 3 else 1,
        bbox_to_anchor=(-0.2 if len(found) > 3 else 0.0, 1.0),
        borderpad=0,
        handlelength=2.2,
        columnspacing=1.0,
    )


def _title(record: dict[str, Any]) -> list[str]:
    """Which adapters, what was asked, what was found, and what is not shown."""
    names = _short_names(record["sources"])
    listed = ", ".join(names[:NAMED])
    if len(names) > NAMED:
        listed += f" and {len(names) - NAMED} more"
    kind = "LoRA adapter" if len(names) == 1 else f"{len(names)} LoRA adapters:"
    base = f", base {shortened(record['base_model'], 40)}" if record["base_model"] else ""
    lines = [f"{kind} {listed}{base}, {record['dtype']}", *_outcome(record)]
    total = len(record["groups"])
    if (left := total - ROWS) > 0:
        lines.append(f"Shown: the {ROWS} largest of {total} groups by parameters; {left} left out.")
    return [part for line in lines for part in wrap(line, LINE)]


def _short_names(sources: list[str]) -> list[str]:
    """The last two parts of each path, or as many as tell them apart."""
    parts = [PurePath(source).parts or (source,) for source in sources]
    depth = 2
    while depth < max(map(len, parts)) and len({p[-depth:] for p in parts}) < len(set(parts)):
        depth += 1
    return [shortened(str(PurePath(*p[-depth:])), 40) for p in parts]


def _outcome(record: dict[str, Any]) -> list[str]:
    """The question and its answer."""
    question, best = record["question"], record["recommended"]
    value = question["value"]
    asked = {
        "rel_error": f"relative error at most {value:.4g} in each group",
        "total_error": f"relative error at most {value:.4g}, all groups together",
        "max_params": f"at most {value:,} parameters",
        "max_bytes": f"at most {byte_size(value)}",
    }[question["kind"]]
    lines = [f"Asked: {asked}{'' if record['met'] else ' (not met)'}."]
    if best is not None:
        which = "Best in numbers" if record.get("in_bits") else "Recommended"
        lines.append(
            f"{which}: {count(best['params'])} of {count(record['params'])} parameters "
            f"({times(best['params'], record['params'])}, {byte_size(best['bytes'])}), "
            f"relative error {error(best['relative_error'])} (Frobenius)."
        )
    if (found := record.get("in_bits")) is not None:
        lines.append(
            f"In bits: {byte_size(found['bytes'])}, relative error "
            f"{error(found['relative_error'])} (Frobenius)."
        )
    return lines
