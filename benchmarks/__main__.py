"""`python -m benchmarks NAME`."""

from typing import Annotated, Literal

import typer

from benchmarks import (
    adapter,
    algebra,
    analyze,
    apply,
    bank,
    coding,
    cp,
    group,
    large_group,
    mixed_batch,
    peers,
    training,
    trains,
    truncation,
)

BENCHMARKS = {
    "group": group.run,
    "large-group": large_group.run,
    "peers": peers.run,
    "algebra": algebra.run,
    "apply": apply.run,
    "truncation": truncation.run,
    "adapter": adapter.run,
    "analyze": analyze.run,
    "training": training.run,
    "mixed-batch": mixed_batch.run,
    "bank": bank.run,
    "coding": coding.run,
    "cp": cp.run,
    "trains": trains.run,
}

LARGE = ("bank",)
"""Those that have larger sizes, of several minutes."""


def main(
    name: Annotated[
        Literal[
            "group",
            "large-group",
            "peers",
            "algebra",
            "apply",
            "truncation",
            "adapter",
            "analyze",
            "training",
            "mixed-batch",
            "bank",
            "coding",
            "cp",
            "trains",
            "all",
        ],
        typer.Argument(help="What to measure."),
    ],
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Tiny sizes, to see that it runs.")
    ] = False,
    large: Annotated[
        bool, typer.Option("--large", help="Larger sizes, where a benchmark has them: bank.")
    ] = False,
) -> None:
    """Measure against floors and peers; prints a table and writes benchmarks/results/NAME.json."""
    for chosen in BENCHMARKS if name == "all" else [name]:
        size = "large" if large and chosen in LARGE else "full"
        BENCHMARKS[chosen]("smoke" if smoke else size)


if __name__ == "__main__":
    typer.run(main)
