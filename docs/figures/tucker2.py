"""Draw the picture of the Tucker-2 page: `python docs/figures/tucker2.py` writes tucker2.svg.

The same input always gives the same bytes: no date, no version, and fixed identifiers.
"""

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# middle tones, so that everything can be read on white and on dark slate
INK, PAPER = "#7f8792", "#ffffff"
UPDATE, FACTOR_U, CORE, FACTOR_V = "#757d93", "#1a9083", "#d06e2e", "#587cd2"

M, N, R1, R2 = 4.2, 3.2, 1.1, 0.9  # drawn sizes of m, n, r1 and r2
LAYERS, STEP = 4, 0.26  # sheets in a stack, and how far each one lies behind the one before


def sheets(ax: Axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    """A stack of `LAYERS` matrices whose front sheet has its lower left corner at (x, y)."""
    for depth in reversed(range(LAYERS)):
        matrix(ax, x + depth * STEP, y + depth * STEP, width, height, colour)


def matrix(ax: Axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    """One matrix."""
    ax.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor=PAPER, lw=1.4))


def size(ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str) -> None:
    """A dimension line: left of its text where it is flat, or right of it where it stands."""
    ax.annotate("", start, end, arrowprops={"arrowstyle": "<->", "color": INK, "lw": 1.1})
    flat = start[1] == end[1]
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    ax.annotate(
        text,
        middle,
        xytext=(0, -9) if flat else (-7, 0),
        textcoords="offset points",
        ha="center" if flat else "right",
        va="top" if flat else "center",
        color=INK,
        fontsize=15,
    )


def label(
    ax: Axes, x: float, y: float, text: str, colour: str = INK, fontsize: float = 17, **how: str
) -> None:
    """Text centred at a point, unless told otherwise."""
    ax.text(x, y, text, color=colour, fontsize=fontsize, **({"ha": "center", "va": "center"} | how))


def draw(ax: Axes) -> None:
    """All L updates on the left; U, the L cores and the flat Vᵀ on the right."""
    middle, back = M / 2, (LAYERS - 1) * STEP

    sheets(ax, 0, 0, N, M, UPDATE)
    label(ax, N / 2, middle, r"$\Delta W_1$", PAPER, 22)
    label(ax, N + back + 0.12, M + back + 0.05, r"$\Delta W_L$", va="bottom", ha="right")
    size(ax, (-0.3, 0), (-0.3, M), "$m$")
    size(ax, (0, -0.3), (N, -0.3), "$n$")

    x = N + back + 0.75
    label(ax, x, middle, "=", fontsize=28)

    x += 1.35
    matrix(ax, x, 0, R1, M, FACTOR_U)
    label(ax, x + R1 / 2, middle, "$U$", PAPER, 23)
    size(ax, (x - 0.3, 0), (x - 0.3, M), "$m$")
    size(ax, (x, -0.3), (x + R1, -0.3), "$r_1$")
    label(ax, x + R1 / 2, M + 0.62, "one, shared", FACTOR_U, 14)

    x += R1 + 1.5
    bottom = middle - R1 / 2
    sheets(ax, x, bottom, R2, R1, CORE)
    label(ax, x + R2 / 2, middle, "$G_1$", PAPER, 19)
    label(ax, x + R2 + back + 0.1, bottom + R1 + back, "$G_L$", CORE, ha="left", va="bottom")
    size(ax, (x - 0.3, bottom), (x - 0.3, bottom + R1), "$r_1$")
    size(ax, (x, bottom - 0.3), (x + R2, bottom - 0.3), "$r_2$")
    label(ax, x + (R2 + back) / 2, M + 0.62, "one for each layer", CORE, 14)

    x += R2 + back + 1.55
    bottom = middle - R2 / 2
    matrix(ax, x, bottom, N, R2, FACTOR_V)
    label(ax, x + N / 2, middle, r"$V^\mathsf{T}$", PAPER, 23)
    size(ax, (x - 0.3, bottom), (x - 0.3, bottom + R2), "$r_2$")
    size(ax, (x, bottom - 0.3), (x + N, bottom - 0.3), "$n$")
    label(ax, x + N / 2, M + 0.62, "one, shared", FACTOR_V, 14)

    ax.set_xlim(-0.95, x + N + 0.15)
    ax.set_ylim(-1.05, M + back + 0.75)


def main(target: Path) -> None:
    """Write the picture."""
    mpl.rcParams |= {"svg.hashsalt": "tucker2", "mathtext.fontset": "cm", "svg.fonttype": "path"}
    figure = Figure(figsize=(11, 4.35))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_aspect("equal")
    draw(ax)
    figure.savefig(target, transparent=True, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
