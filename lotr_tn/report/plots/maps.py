"""Panels of colour: the error of every layer along the front, or how layers overlap."""

import re
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm
from matplotlib.patheffects import Normal, Stroke

from lotr_tn.report.forms import is_pairs
from lotr_tn.report.plots.curves import NAME, error_floor
from lotr_tn.report.plots.scales import PARAMS_LABEL, log_axis, plain_number, short_count
from lotr_tn.report.plots.style import BAND, BLACK, MAP, shortened

LABELS, LABEL = 14, 14  # layers named on an axis, and characters of each name


def draw_layers(ax: Axes, group: dict[str, Any], question: dict[str, Any]) -> None:
    """The picture by layer that the group has: errors, overlaps, or a sentence."""
    name, member = shortened(group["name"], NAME), group["member"]
    ax.grid(visible=False)
    if any(point["params"] > 0 for point in group["front"]):
        ax.set_title(f"{name}: error of each {member}\nLoTR by truncated HOSVD")
        _draw_errors(ax, group, error_floor(group, question))
    elif group.get("overlap") and group["shape"][0] > 1:
        ax.set_title(f"{name}: overlap of {member}s\noutputs below the diagonal, inputs above")
        _draw_overlap(ax, group)
    else:
        ax.set_title(f"{name}\n")
        write(ax, f"no LoTR front, and no second\n{member} to overlap with")


def write(ax: Axes, sentence: str) -> None:
    """A sentence in place of a panel."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, sentence, ha="center", va="center", transform=ax.transAxes)


def _draw_errors(ax: Axes, group: dict[str, Any], low: float) -> None:
    """Each point of the front holds until the next one: its cell reaches that far."""
    points = [point for point in group["front"] if point["params"] > 0]
    order = _order(group["labels"])
    errors = np.array([point["layer_errors"] for point in points], dtype=float).T[order]
    sizes = [float(point["params"]) for point in points]
    last = sizes[-1] ** 2 / sizes[-2] if len(sizes) > 1 else 2 * sizes[-1]
    edges = [*sizes, min(last, 1.2 * sizes[-1]) if len(sizes) > 1 else last]
    high = max(float(np.nanmax(errors, initial=0.0)), 1.0)
    shown = np.ma.masked_invalid(np.maximum(errors, low))
    mesh = ax.pcolormesh(
        edges,
        np.arange(len(errors) + 1) - 0.5,
        shown,
        cmap=MAP,
        norm=LogNorm(low, high),
        rasterized=True,
    )
    if np.ma.is_masked(shown):
        ax.set_facecolor(BAND)
        ax.fill_between([], [], color=BAND, label=f"{group['member']} without an update")
    ax.set_xscale("log")
    ax.set_xlim(edges[0], edges[-1])
    log_axis(ax.xaxis, edges[0], edges[-1], short_count)
    ax.set_xlabel(PARAMS_LABEL)
    ax.set_ylabel(group["member"])
    _name_layers(ax, [group["labels"][i] for i in order])
    _mark(ax, group["params"], "dotted", "LoRA as it is", edges)
    lotr = next((c for c in group["candidates"] if is_pairs(c["format"])), None)
    if lotr:
        _mark(ax, lotr["params"], "solid", "LoTR that answers the question", edges)
    below = float(np.nanmin(errors, initial=1.0)) < low
    extend = "min" if below else "neither"
    bar = _add_bar(ax, mesh, label=f"relative error of the {group['member']}", extend=extend)
    log_axis(bar.ax.yaxis, low, high, plain_number)


def _order(labels: list[str]) -> list[int]:
    """Places of the labels, 2 before 10."""
    parts = [re.split(r"([0-9]+)", label) for label in labels]
    keys = [[(int(p), "") if i % 2 else (0, p) for i, p in enumerate(found)] for found in parts]
    return sorted(range(len(labels)), key=keys.__getitem__)


def _mark(ax: Axes, size: float, style: str, label: str, edges: list[float]) -> None:
    """A line that is seen on dark and on bright cells."""
    if edges[0] <= size <= edges[-1]:
        outlined = [Stroke(linewidth=2.6, foreground=BLACK), Normal()]
        ax.axvline(size, color="white", lw=1.3, ls=style, label=label, path_effects=outlined)


def _name_layers(ax: Axes, labels: list[str], *, both: bool = False) -> None:
    step = -(-len(labels) // LABELS)
    places = range(0, len(labels), step)
    names = [shortened(labels[i], LABEL) for i in places]
    ax.set_yticks(places, names)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(axis="both", which="both", length=2)
    if both:
        ax.set_xticks(places, names, rotation=90 if max(map(len, names)) > 2 else 0)


def _draw_overlap(ax: Axes, group: dict[str, Any]) -> None:
    order = _order(group["labels"])
    both = (np.array(group["overlap"][side], dtype=float) for side in ("left", "right"))
    left, right = (overlap[np.ix_(order, order)] for overlap in both)
    shown = np.ma.masked_invalid(np.tril(left) + np.triu(right, 1))
    mesh = ax.imshow(shown, cmap=MAP, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    _name_layers(ax, [group["labels"][i] for i in order], both=True)
    ax.set_xlabel(group["member"])
    ax.set_ylabel(group["member"])
    _add_bar(ax, mesh, label="mean squared cosine")


def _add_bar(ax: Axes, mesh: ScalarMappable, **options: Any) -> Colorbar:
    figure = ax.get_figure()
    assert figure is not None
    return figure.colorbar(mesh, ax=ax, pad=0.03, **options)
