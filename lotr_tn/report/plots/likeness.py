"""Three heat maps of many adapters: cosines, and overlaps of output and of input subspaces."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from lotr_tn.report.likeness import two_digits
from lotr_tn.report.plots.saving import refuse_plot, write_figure
from lotr_tn.report.plots.style import BAND, BLACK, MAP, shortened

DIVERGING = "RdBu_r"  # opposite blue, alike red: told apart with every common colour blindness
WRITTEN = 12  # adapters up to which each cell has its value written in
NAMED = 40  # adapters of which each has its name; of more every second, third … one
NAME, NUMBER = 28, 0.24  # characters of a name, and inches of a number
CELL, SMALLEST, LARGEST = 0.32, 2.4, 4.8
"""Inches of a cell, and of a panel at the least and at the most."""

LEFT, GAP, RIGHT, TOP, BOTTOM = 0.12, 0.42, 0.2, 0.42, 0.72  # inches around and between panels
NAME_GAP, NOTE, BAR_PLACE, BAR = 0.1, 0.2, 0.34, 0.09
"""Inches: between names and panel, of the note at the foot, up to the bars, and of a bar."""

GREY_NOTE = "grey: an adapter that is zero, or no module that both update"


def save_likeness_plot(record: dict[str, Any], path: Path, *, force: bool) -> None:
    """Draw how alike adapters are and write it, as `save_plot` does."""
    refuse_plot(path, force=force)
    write_figure(lambda: draw_likeness(record), path, force=force)


def draw_likeness(record: dict[str, Any]) -> Figure:
    """The figure of a likeness: adapters in the order of the tree, rows named and numbered."""
    names = [adapter["name"] for adapter in record["adapters"]]
    places = [names.index(name) for name in record["order"]]
    side = min(max(CELL * len(places), SMALLEST), LARGEST)
    figure = Figure(figsize=(1, 1))
    panels = [figure.add_subplot() for _ in range(3)]
    chance = record["chance"]
    images = [
        _draw(panels[0], record["cosine"], places, DIVERGING, -1.0),
        _draw(panels[1], record["overlap_out"], places, MAP, 0.0),
        _draw(panels[2], record["overlap_in"], places, MAP, 0.0),
    ]
    panels[0].set_title("cosine of the updates\nall modules together")
    panels[1].set_title(f"overlap of output subspaces{_chance(chance[0])}")
    panels[2].set_title(f"overlap of input subspaces{_chance(chance[1])}")
    _name(panels, record["order"], side)
    grey = any(np.ma.is_masked(image.get_array()) for image in images)
    _lay_out(figure, panels, images, side, NOTE if grey else 0.0)
    return figure


def _chance(value: float | None) -> str:
    return "" if value is None else f"\nmean squared cosine; chance {value:.3f}"


def _draw(
    ax: Axes, matrix: list[list[float | None]], places: list[int], colours: str, low: float
) -> AxesImage:
    values = np.array(matrix, dtype=float)[np.ix_(places, places)]
    image = ax.imshow(
        np.ma.masked_invalid(values),
        cmap=colours,
        vmin=low,
        vmax=1.0,
        aspect="auto",
        interpolation="nearest",
    )
    ax.set_facecolor(BAND)
    ax.grid(visible=False)
    if len(places) <= WRITTEN:
        _write(ax, values, colours, low)
    return image


def _write(ax: Axes, values: np.ndarray, colours: str, low: float) -> None:
    """The value of each cell, black on bright and white on dark."""
    shown = colormaps[colours](Normalize(low, 1.0)(np.nan_to_num(values, nan=low)))
    for (row, column), value in np.ndenumerate(values):
        known = math.isfinite(value)
        red, green, blue, _ = shown[row, column]
        dark = known and 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.45
        text = two_digits(float(value) if known else None)
        colour = "white" if dark else BLACK
        ax.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)


def _name(panels: list[Axes], order: list[str], side: float) -> None:
    """Numbers on all axes, and names beside those of the first panel."""
    rows = range(0, len(order), math.ceil(len(order) / NAMED))
    columns = range(0, len(order), math.ceil(len(order) * NUMBER / side))
    for ax in panels:
        ax.set_xticks(columns, [str(i + 1) for i in columns])
        ax.set_yticks(rows, [str(i + 1) for i in rows])
        ax.tick_params(length=2 if rows.step > 1 else 0)
    panels[0].set_yticks(rows, [f"{shortened(order[i], NAME)}  {i + 1}" for i in rows])


def _lay_out(
    figure: Figure, panels: list[Axes], images: list[AxesImage], side: float, note: float
) -> None:
    """Give everything its place in inches: names what they need, and a note its line."""
    boxes = [label.get_window_extent() for label in panels[0].get_yticklabels()]
    names = math.ceil(max(box.width for box in boxes) / figure.dpi * 50) / 50 + NAME_GAP
    first, below = LEFT + names, BOTTOM + note
    width, height = first + 3 * side + 2 * GAP + RIGHT, TOP + side + below
    figure.set_size_inches(width, height)
    for index, (ax, image) in enumerate(zip(panels, images, strict=True)):
        left = (first + index * (side + GAP)) / width
        ax.set_position((left, below / height, side / width, side / height))
        place = (left, (BAR_PLACE + note) / height, side / width, BAR / height)
        bar = figure.colorbar(image, cax=figure.add_axes(place), orientation="horizontal")
        bar.set_ticks([-1, -0.5, 0, 0.5, 1] if index == 0 else [0, 0.25, 0.5, 0.75, 1])
        bar.ax.tick_params(length=2)
    if note:
        figure.text(first / width, 0.07 / height, GREY_NOTE)
