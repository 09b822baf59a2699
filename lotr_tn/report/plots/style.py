"""Colours, lines and markers that differ without colour too, and text as it may be drawn."""

from typing import Any

from lotr_tn.analysis.forms import Look

# the palette of Okabe and Ito (2008), told apart with every common colour blindness
BLACK, GREY = "#000000", "#8a8a8a"
ORANGE, YELLOW, BLUE, VERMILLION = "#E69F00", "#F0E442", "#0072B2", "#D55E00"

ASKED, BAND, BEST = ORANGE, "#c4c4c4", YELLOW
MAP = "cividis"

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "figure.titlesize": 9,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # where matplotlib finds it too, after measuring all that might be above
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.title_fontsize": 8,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.4,
    "grid.color": "#dddddd",
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "savefig.dpi": 300,
    "savefig.facecolor": "white",
    "text.parse_math": False,  # a dollar in a path is a dollar
    "svg.fonttype": "none",
    "svg.hashsalt": "lotr-tn",
    "pdf.fonttype": 42,
}
"""What differs from matplotlib's own defaults."""


def line_of(look: Look) -> dict[str, Any]:
    """Colour and dashes of a line as matplotlib takes them."""
    return {"color": look.colour, "ls": (0, look.dashes) if look.dashes else "solid"}


def shortened(text: str, most: int) -> str:
    """Text that can be drawn, at most so many characters of it: the end of a path says most.

    Examples:
        >>> shortened("model.layers.self_attn.q_proj", 12)
        '…attn.q_proj'
    """
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain if len(plain) <= most else "…" + plain[len(plain) + 1 - most :]
