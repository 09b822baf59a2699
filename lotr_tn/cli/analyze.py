"""The command `lotr analyze`."""

from pathlib import Path
from typing import Annotated

import typer

from lotr_tn.adapters import group_modules
from lotr_tn.cli.console import (
    NOT_MET,
    DebugFlag,
    ForceFlag,
    JsonFlag,
    QuietFlag,
    progress,
    show,
)
from lotr_tn.cli.questions import (
    DtypeOption,
    MaxBytesOption,
    MaxParamsOption,
    MaxRankOption,
    MinRankOption,
    RelErrorOption,
    TotalErrorOption,
    asked_limits,
    asked_rule,
)
from lotr_tn.doors import load_adapter
from lotr_tn.files.writing import refuse_existing, write_file
from lotr_tn.inspection.analyze import analyze_adapters
from lotr_tn.report.advice import question_text
from lotr_tn.report.analysis import analysis_record, with_surfaces
from lotr_tn.report.analysis_text import analysis_text
from lotr_tn.report.page import page_html
from lotr_tn.report.plots import refuse_plot, save_plot

__all__ = ["analyze"]


def analyze(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="One adapter, or several of one base model."),
    ],
    rel_error: RelErrorOption = None,
    total_error: TotalErrorOption = None,
    max_params: MaxParamsOption = None,
    max_bytes: MaxBytesOption = None,
    min_rank: MinRankOption = None,
    max_rank: MaxRankOption = None,
    group_by: Annotated[
        str, typer.Option(metavar="RULE", help="kind, shape, or a regular expression.")
    ] = "kind",
    group: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this group; may be repeated.")
    ] = None,
    stack_all: Annotated[
        bool, typer.Option("--stack-all", help="Measure ways of stacking however large they are.")
    ] = False,
    dtype: DtypeOption = "auto",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a figure: .png, .svg or .pdf.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page to explore in a browser.")
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show every group's candidates.")] = False,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Show what each format, rank and way of stacking would cost and lose, before converting.

    Ask for an error or a size; without a question, 5% error in each group. What is recommended is
    what `lotr convert --format auto` with the same question writes.
    """
    rule = asked_rule(
        rel_error=rel_error,
        total_error=total_error,
        max_params=max_params,
        max_bytes=max_bytes,
    )
    if plot is not None:
        refuse_plot(plot, force=force)
    if html is not None:
        refuse_existing(html, force=force)
    adapters = [load_adapter(source) for source in sources]
    groups = [name for adapter in adapters for name in group_modules(adapter, group_by)]
    limits = asked_limits(min_rank, max_rank, groups)
    with progress(len(groups), quiet=quiet or as_json) as step:
        analysis = analyze_adapters(
            adapters,
            rule,
            group_by=group_by,
            groups=group or (),
            dtype=dtype,
            limits=limits,
            stack_all=stack_all,
            progress=step,
        )
    record = analysis_record(analysis)
    if plot is not None:
        save_plot(record, plot, force=force)
    if html is not None:
        page = page_html(with_surfaces(record, analysis))
        write_file(html, lambda path: path.write_text(page, encoding="utf-8"), force=force)
    written = [path for path in (plot, html) if path is not None]
    show(
        record,
        lambda: analysis_text(record, written, show_all=show_all),
        as_json=as_json,
        quiet=quiet,
    )
    if not analysis.met:
        typer.echo(
            f"lotr: {analysis.dtype} cannot hold {question_text(record['question'])}; use --dtype "
            "auto or a wider dtype",
            err=True,
        )
        raise typer.Exit(NOT_MET)
