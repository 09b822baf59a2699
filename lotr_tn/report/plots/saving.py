"""Figures to files: refused early, drawn in a style of their own, written all or nothing."""

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lotr_tn.errors import BackendError, OptionError
from lotr_tn.files.writing import refuse_existing, write_file

METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""What matplotlib would write of dates and versions, by ending."""


def refuse_plot(path: Path, *, force: bool) -> None:
    """Refuse a figure that could not be written, before anything is computed for it.

    Raises:
        OptionError: the ending is not .png, .svg or .pdf.
        CheckpointError: the target exists and `force` is false, or its folder does not exist.
        BackendError: matplotlib is not installed.
    """
    if _ending(path) not in METADATA:
        found = f"ends in {path.suffix}" if path.suffix else "has no ending"
        raise OptionError(
            f"a figure is written as .png, .svg or .pdf; {path} {found}: give it one of these "
            "endings"
        )
    refuse_existing(path, force=force)
    if find_spec("matplotlib") is None:
        raise BackendError(
            "figures need matplotlib, which is not installed; install the extra plot: "
            'python -m pip install "lotr-tn[plot]"'
        )


def save_plot(record: dict[str, Any], path: Path, *, force: bool) -> None:
    """Draw the figure of an analysis and write it; the same record gives the same bytes.

    One row for each group (the eight largest by parameters), and three panels in each: singular
    values of both sides and of single layers, error against parameters for every format, and the
    error of every layer along the LoTR front. Panels are 3.4 inches wide, a paper's column.

    In a .svg text stays text.

    Raises:
        LotrError: as for `refuse_plot`.
        CheckpointError: writing failed; the target is then what it was before.
    """
    refuse_plot(path, force=force)
    from lotr_tn.report.plots.figure import draw

    write_figure(lambda: draw(record), path, force=force)


def write_figure(draw: Callable[[], Any], path: Path, *, force: bool) -> None:
    """Draw a figure in the style of all, and write it without dates and versions."""
    from matplotlib.style import context

    from lotr_tn.report.plots.style import STYLE

    kind = _ending(path)
    with warnings.catch_warnings(), context(STYLE, after_reset=True):
        # a name in a script that the font lacks is drawn as boxes
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        figure = draw()
        write_file(
            path,
            lambda partial: figure.savefig(partial, format=kind, metadata=METADATA[kind]),
            force=force,
        )


def _ending(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()
