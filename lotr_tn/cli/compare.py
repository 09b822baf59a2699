"""The command `lotr compare`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from lotr_tn.adapters import Adapter
from lotr_tn.cli.console import REPLACE, Output, missed
from lotr_tn.cli.questions import MapPrefixOption, asked_prefixes
from lotr_tn.cli.values import share
from lotr_tn.doors import load_adapter
from lotr_tn.doors.sources import named_adapters
from lotr_tn.errors import OptionError
from lotr_tn.inspection import compare_adapters
from lotr_tn.inspection.likeness import compare_many, modules_of
from lotr_tn.report.likeness import likeness_record, likeness_text
from lotr_tn.report.plots import refuse_plot
from lotr_tn.report.records import comparison_record
from lotr_tn.report.text import comparison_text

EVERY = typer.Option("--all", help="Show every module; of many, all cosines and overlaps.")


def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Adapters of one base, LoRA or LoTR. Of two, the first is the reference.",
        ),
    ],
    max_rel_error: Annotated[
        float | None,
        typer.Option(
            metavar="E", parser=share, help="Of two: exit with status 3 when the error is larger."
        ),
    ] = None,
    map_prefix: MapPrefixOption = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of three or more: draw a figure: .png, .svg or .pdf."),
    ] = None,
    *,
    out: Annotated[Output, {"all": EVERY, "force": REPLACE}],
) -> None:
    """Measure how far two adapters lie apart, whatever their formats and ranks.

    Of three or more it shows how alike they are, each with each: cosines, and overlaps of the
    subspaces that they write to and read from.
    """
    same = len(paths) == 2 and paths[0] == paths[1]  # one name would stand for both
    adapters: Mapping[str, Adapter]
    adapters = {s: load_adapter(paths[0]) for s in "AB"} if same else _named(paths, map_prefix)
    if len(adapters) < 2:
        found = ", ".join([str(len(adapters)), *adapters])
        raise OptionError(f"there must be two adapters or more; found {found}")
    if len(adapters) == 2:
        if plot is not None:
            raise OptionError("--plot draws three adapters or more; found 2: leave it out")
        a, b = adapters.values()
        _compare_two(a, b, max_rel_error, out)
        return
    if max_rel_error is not None:
        raise OptionError(
            f"--max-rel-error is a limit for two adapters; found {len(adapters)}: leave it out"
        )
    _compare_many(adapters, plot, out)


def _named(paths: list[Path], map_prefix: list[str] | None) -> Mapping[str, Adapter]:
    return named_adapters(paths, prefixes=asked_prefixes(map_prefix))


def _compare_two(a: Adapter, b: Adapter, max_rel_error: float | None, out: Output) -> None:
    comparison = compare_adapters(a, b)
    out.show(comparison_record(comparison), lambda record: comparison_text(record, out.all))
    if max_rel_error is not None and comparison.relative_error > max_rel_error:
        missed(
            f"relative error {comparison.relative_error:.4g} is above the {max_rel_error:g} allowed"
        )


def _compare_many(adapters: Mapping[str, Adapter], plot: Path | None, out: Output) -> None:
    if plot is not None:
        refuse_plot(plot, force=out.force)
    with out.progress(len(modules_of(adapters))) as step:
        record = likeness_record(compare_many(adapters, progress=step))
    if plot is not None:
        from lotr_tn.report.plots.likeness import save_likeness_plot

        save_likeness_plot(record, plot, force=out.force)
    written = [] if plot is None else [plot]
    out.show(record, lambda record: likeness_text(record, written, show_all=out.all))
