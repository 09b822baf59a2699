"""The command `lotr analyze`."""

from pathlib import Path
from typing import Annotated

import typer

from lotr_tn.adapters.asked import Asked
from lotr_tn.adapters.paths import map_prefix as moved
from lotr_tn.analysis.forms import all_forms
from lotr_tn.cli.commands import told
from lotr_tn.cli.console import REPLACE, Output, missed
from lotr_tn.cli.questions import (
    BestGroupByOption,
    CodingOption,
    DtypeOption,
    EachLayerOption,
    HowMuch,
    MapPrefixOption,
    MaxRankOption,
    MinRankOption,
    asked_limits,
    asked_prefixes,
    require_error,
)
from lotr_tn.cli.words import typed_words
from lotr_tn.doors.sources import adapters_at
from lotr_tn.files.writing import refuse_existing, write_file
from lotr_tn.inspection.analyze import Analysing
from lotr_tn.report.advice import question_text
from lotr_tn.report.analysis import analysis_record, with_surfaces
from lotr_tn.report.analysis_text import analysis_text
from lotr_tn.report.page import page_html
from lotr_tn.report.plots import refuse_plot, save_plot

TOLD = (
    "each_layer",
    "group_by",
    "min_rank",
    "max_rank",
    "map_prefix",
    "dtype",
    "coding",
    "group",
    "formats",
)
EVERY = typer.Option("--all", help="Show other errors, stackings and forms too.")


def analyze(
    context: typer.Context,
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="Adapters of one base, a folder of them, or a bank."
        ),
    ],
    *,
    how_much: HowMuch,
    each_layer: EachLayerOption = False,
    min_rank: MinRankOption = None,
    max_rank: MaxRankOption = None,
    group_by: BestGroupByOption = "auto",
    group: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this group; may be repeated.")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Look at this form too, or at all that there are."),
    ] = None,
    stack_all: Annotated[
        bool, typer.Option("--stack-all", help="Measure ways of stacking however large they are.")
    ] = False,
    map_prefix: MapPrefixOption = None,
    dtype: DtypeOption = "auto",
    coding: CodingOption = "none",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a figure: .png, .svg or .pdf.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page to explore in a browser.")
    ] = None,
    out: Annotated[Output, {"all": EVERY, "force": REPLACE}],
) -> None:
    """Show what each format, rank and way of stacking would cost and lose, before converting.

    Ask for an error or a size; without a question, 5% error in each group. What is recommended is
    what `lotr convert --format auto`, or of several `lotr bank make`, writes for the same question.
    """
    limits = asked_limits(min_rank, max_rank)
    beside = all_forms() if "all" in (formats or ()) else tuple(formats or ())
    question, prefixes = how_much.question(), asked_prefixes(map_prefix)
    require_error(each_layer, question)
    asked = Asked(
        question,
        "auto",
        group_by=group_by,
        dtype=dtype,
        limits=limits,
        each_layer=each_layer,
        beside=beside,
        coding=coding,
    )
    if plot is not None:
        refuse_plot(plot, force=out.force)
    if html is not None:
        refuse_existing(html, force=out.force)
    found = [one for source in sources for one in adapters_at(source)]
    adapters = [moved(adapter, prefixes) for adapter in found]
    analysing = Analysing.of(adapters, asked, group or (), stack_all=stack_all)
    with out.progress(analysing.steps) as step:
        analysis = analysing.run(step)
    record = analysis_record(analysis)
    for way in record["stackings"]:
        way["note"] = way["note"] and typed_words(way["note"])
    if plot is not None:
        save_plot(record, plot, force=out.force)
    given = told(context, *TOLD)
    if html is not None:
        page = page_html(with_surfaces(record, analysis), given)
        write_file(html, lambda path: path.write_text(page, encoding="utf-8"), force=out.force)
    written = [path for path in (plot, html) if path is not None]
    out.show(record, lambda record: analysis_text(record, written, given, show_all=out.all))
    if not analysis.met:
        missed(
            f"{analysis.dtype} cannot hold {question_text(record['question'])}; use --dtype auto "
            "or a wider dtype"
        )
