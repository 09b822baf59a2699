"""`python -m benchmarks NAME`."""

from typing import Annotated, Literal

import typer

from benchmarks import adapter, group, peers

BENCHMARKS = {"group": group.run, "peers": peers.run, "adapter": adapter.run}


def main(
    name: Annotated[
        Literal["group", "peers", "adapter", "all"], typer.Argument(help="What to measure.")
    ],
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Tiny sizes, to see that it runs.")
    ] = False,
) -> None:
    """Measure against floors and peers; prints a table and writes benchmarks/results/NAME.json."""
    for chosen in BENCHMARKS if name == "all" else [name]:
        BENCHMARKS[chosen]("smoke" if smoke else "full")


if __name__ == "__main__":
    typer.run(main)
