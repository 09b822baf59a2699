"""Panels of curves: singular values by rank, and error by parameters."""

from itertools import chain
from statistics import median
from typing import Any

from matplotlib.axes import Axes

from lotr_tn.analysis.forms import LORA, LOTR, Look
from lotr_tn.report.forms import (
    BESIDE,
    IN_BITS,
    RATE,
    candidate_of,
    is_kept,
    is_pairs,
    label_of,
    look_of,
)
from lotr_tn.report.numbers import count, counted, error, rank_range, times
from lotr_tn.report.plots.scales import (
    BYTES_LABEL,
    ERROR_LABEL,
    PARAMS_LABEL,
    log_axis,
    plain_number,
    positive,
    short_count,
)
from lotr_tn.report.plots.style import (
    ASKED,
    BAND,
    BEST,
    BLACK,
    BLUE,
    VERMILLION,
    line_of,
    shortened,
)

MEDIAN = Look(BLACK, marker="D", dashes=(1, 1))
OUTPUTS = Look(BLUE, marker="o", dashes=())
INPUTS = Look(VERMILLION, marker="s", dashes=(5, 1.5))
NAME, LABEL = 18, 26  # characters of a group's name in a title, and of a format's in a legend
ROUNDING = 1e-12  # errors below this are off the panel
NEAR = 2.5  # candidates of more than so many times the LoRA's parameters are off the panel
SEEN = 1e-4  # singular values below this share of the largest are off the panel


def draw_spectra(ax: Axes, group: dict[str, Any]) -> None:
    """Singular values of both sides of the stack, and the range and median of its layers'."""
    layers, m, n = group["shape"]
    span = rank_range(group["layer_ranks"]).replace("-", " to ")
    stack = f"{counted(layers, group['member'])} of {m} × {n}, rank {span}"
    ax.set_title(f"{shortened(group['name'], NAME)}\n{stack}")
    ax.set_xlabel("rank index (largest first)")
    ax.set_ylabel("singular value of ΔW")
    spectra = group["spectra"]
    left, right = spectra["left"], spectra["right"]
    top = max([*left, *right])
    smallest = min(positive(chain(left, right, *spectra["layers"])))
    low = min(max(smallest, SEEN * top) / 1.3, top / 10)
    depth = max(map(len, spectra["layers"]))
    columns = [[s[k] if k < len(s) else 0.0 for s in spectra["layers"]] for k in range(depth)]
    least, most = ([max(f(c), low / 10) for c in columns] for f in (min, max))
    index = range(1, depth + 1)
    ax.fill_between(index, least, most, color=BAND, lw=0, label="range of layers")
    if depth == 1:
        ax.vlines(1, least, most, color=BAND, lw=6)
    sides = {
        "median of layers": ([median(column) for column in columns], MEDIAN),
        "outputs, all layers": (left, OUTPUTS),
        "inputs, all layers": (right, INPUTS),
    }
    for label, (values, look) in sides.items():
        _draw_spectrum(ax, values, look, label, low)
    ax.set_yscale("log")
    ax.set_ylim(low, top * 1.3)
    log_axis(ax.yaxis, low, top * 1.3, plain_number)
    last = max([depth, *(sum(v > low for v in side) for side in (left, right))])
    ax.set_xscale("log")
    ax.set_xlim(0.9, last * 1.15 + 0.2)
    log_axis(ax.xaxis, 0.9, last * 1.15 + 0.2, plain_number, whole=True)


def _draw_spectrum(ax: Axes, values: list[float], look: Look, label: str, low: float) -> None:
    """A line with some markers where it is seen; values off the scale lead out of the panel."""
    seen = [i for i, value in enumerate(values) if value > low]
    ax.plot(
        range(1, len(values) + 1),
        [max(value, low / 10) for value in values],
        **line_of(look),
        marker=look.marker,
        markerfacecolor="white" if look is INPUTS else look.colour,
        markevery=_spread(seen),
        label=label,
    )


def _spread(places: list[int], most: int = 8) -> list[int]:
    """At most so many of some places, evenly spread on a logarithmic axis."""
    steps = range(most)
    return sorted({places[round(len(places) ** (i / (most - 1))) - 1] for i in steps if places})


def error_floor(group: dict[str, Any], question: dict[str, Any]) -> float:
    """The least error drawn: well below what was asked or found, above what rounding leaves."""
    best = candidate_of(group)
    found = positive([best["relative_error"]]) if best else []
    if question["kind"].endswith("error") and question["value"] > 0:
        found = [question["value"], *(e for e in found if e > question["value"] / 100)]
    points = (point["relative_error"] for point in (*group["front"], *group["candidates"]))
    drawn = positive(chain(points, *(curve["relative_error"] for curve in group["curves"])))
    floor = max(min([*found, 0.1]) / 4, ROUNDING)
    return min(max(floor, min(drawn, default=floor) / 1.3), 0.1)


def draw_errors(
    ax: Axes, group: dict[str, Any], question: dict[str, Any], number: int | None = None
) -> None:
    """What each format loses at each size, with the LoRA's own size and the question.

    In bytes where bits are drawn beside numbers, which take so many bytes each.
    """
    ax.set_title(f"{shortened(group['name'], NAME)}: {_answer(group, candidate_of(group))}")
    ax.set_xlabel(PARAMS_LABEL)
    ax.set_ylabel(ERROR_LABEL)
    if number is not None and group.get("in_bits"):
        ax.set_xlabel(BYTES_LABEL)
        group = _in_bytes(group, number)
    best = candidate_of(group)
    low = error_floor(group, question)
    sizes = [group["params"], *(c["params"] for c in group["candidates"])]
    near = [size for size in sizes if size <= NEAR * group["params"]]
    right = 1.3 * max([*near, best["params"] if best else 0])
    if group["front"]:
        sizes += _draw_front(ax, group["front"], _label(group, LOTR.name), low)
    for curve in group["curves"]:
        if not is_pairs(curve["format"]) or not group["front"]:
            sizes += _draw_curve(ax, curve, _label(group, curve["format"]), low, right)
    for curve in _beside(group.get("in_bits")):
        sizes += _draw_curve(ax, curve, label_of(curve["format"]), low, right)
    drawn = {curve["format"] for curve in group["curves"]}
    drawn |= {LOTR.name} if group["front"] else set()
    _draw_candidates(ax, group, drawn, low, right)
    ax.axvline(group["params"], **line_of(LORA.look), lw=1.1, label="LoRA as it is")
    if question["kind"].endswith("error") and question["value"] > 0:
        together = ", all groups together" if question["kind"] == "total_error" else ""
        ax.axhline(question["value"], color=ASKED, lw=1.1, label=f"asked error{together}", zorder=1)
    if best:
        _draw_best(ax, best, low, "best in numbers" if group.get("in_bits") else "recommended")
    ax.set_xscale("log")
    ax.set_yscale("log")
    left = min(positive(sizes), default=1) / 1.2
    right = max(right, 2 * left)
    ax.set_xlim(left, right)
    log_axis(ax.xaxis, left, right, short_count)
    ax.set_ylim(low, 1.3)
    log_axis(ax.yaxis, low, 1.3, plain_number)


def _in_bytes(group: dict[str, Any], number: int) -> dict[str, Any]:
    """The group with bytes in place of all numbers of parameters."""

    def of(part: dict[str, Any]) -> dict[str, Any]:
        return part | {"params": part["bytes"] if "bytes" in part else number * part["params"]}

    curves = [c | {"params": [number * size for size in c["params"]]} for c in group["curves"]]
    lists = {key: [of(part) for part in group[key]] for key in ("candidates", "front")}
    return of(group) | lists | {"curves": curves}


def _beside(found: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The curves of bits and of a Gaussian model, as those of formats are."""
    if found is None:
        return []
    sizes = {IN_BITS: found["bytes"], RATE: found["rate"]}
    return [
        {"format": k, "params": v, "relative_error": found["relative_error"]}
        for k, v in sizes.items()
    ]


def _answer(group: dict[str, Any], best: dict[str, Any] | None) -> str:
    """What is recommended, in two lines of a title."""
    if best is None:
        return "no format meets the question\n"
    label, loss = shortened(best["label"], LABEL), f"error {error(best['relative_error'])}"
    if is_kept(best["format"]):
        return f"{label}\n{count(best['params'])} parameters, {loss}"
    size = f"{count(best['params'])} of {count(group['params'])} parameters"
    return f"{label}\n{size} ({times(best['params'], group['params'])}), {loss}"


def _label(group: dict[str, Any], form: str) -> str:
    found = candidate_of(group, form)
    return shortened(found["label"] if found else label_of(form), LABEL)


def _draw_curve(ax: Axes, curve: dict[str, Any], label: str, low: float, right: float) -> list[int]:
    """A format's curve, with a marker where only one point of it is seen; the sizes drawn."""
    look = look_of(curve["format"])
    pairs = zip(curve["params"], curve["relative_error"], strict=True)
    points = [(size, value) for size, value in pairs if size > 0 and value is not None]
    seen = [i for i, (size, value) in enumerate(points) if size <= right and value > low]
    ax.plot(
        [size for size, _ in points],
        [max(value, low / 10) for _, value in points],
        **line_of(look),
        label=label,
        marker="" if curve["format"] in BESIDE else look.marker,
        markevery=seen if len(seen) == 1 else [],
    )
    return [size for size, _ in points]


def _draw_front(ax: Axes, front: list[dict[str, Any]], label: str, low: float) -> list[int]:
    """The LoTR front, and the bound below which no LoTR of these ranks gets; the sizes drawn."""
    look = LOTR.look
    points = [p for p in front if p["params"] > 0 and p["relative_error"] is not None]
    sizes = [point["params"] for point in points]
    errors = [max(point["relative_error"], low / 10) for point in points]
    bounds = [max(point["lower_bound"] or 0.0, low / 10) for point in points]
    ax.fill_between(sizes, bounds, errors, color=look.colour, alpha=0.18, lw=0)
    alone = len(points) == 1
    ax.plot(
        sizes,
        errors,
        **line_of(look),
        marker=look.marker,
        markevery=[0] if alone else [],
        label=label,
    )
    ax.plot(
        sizes,
        bounds,
        color=look.colour,
        lw=0.8,
        ls=(0, (4, 2)),
        marker="_" if alone else "",
        label="lower bound, any LoTR",
    )
    return sizes


def _draw_candidates(
    ax: Axes, group: dict[str, Any], drawn: set[str], low: float, right: float
) -> None:
    """Where each format answers the question; those without a curve are named here."""
    for candidate in group["candidates"]:
        value = candidate["relative_error"]
        if is_kept(candidate["format"]) or value is None or not 0 < candidate["params"] < right:
            continue
        look = look_of(candidate["format"])
        ax.plot(
            [candidate["params"]],
            [max(value, low)],
            color=look.colour,
            ls="none",
            marker=look.marker,
            markeredgecolor="white",
            markeredgewidth=0.5,
            markersize=5.5,
            label=None if candidate["format"] in drawn else _label(group, candidate["format"]),
            zorder=3,
            clip_on=value > low,
            in_layout=False,
        )


def _draw_best(ax: Axes, best: dict[str, Any], low: float, label: str) -> None:
    value = best["relative_error"] or 0.0
    ax.plot(
        [max(best["params"], 1)],
        [max(value, low)],
        ls="none",
        marker="*",
        markersize=11,
        color=BEST,
        markeredgecolor=BLACK,
        markeredgewidth=0.7,
        label=label,
        zorder=4,
        clip_on=False,
        in_layout=False,
    )
