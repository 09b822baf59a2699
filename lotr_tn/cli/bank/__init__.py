"""`lotr bank`: many adapters in one file."""

import typer

from lotr_tn.cli.bank.add import add
from lotr_tn.cli.bank.compact import compact
from lotr_tn.cli.bank.drop import drop
from lotr_tn.cli.bank.export import export
from lotr_tn.cli.bank.make import PANELS, make
from lotr_tn.cli.bank.merge import merge
from lotr_tn.cli.bank.rename import rename
from lotr_tn.cli.bank.show import show
from lotr_tn.cli.bank.verify import verify
from lotr_tn.cli.commands import register

__all__ = ["app"]

app = typer.Typer(
    name="bank",
    help="Banks: many adapters of one base in one file, from which each can be taken out.",
    no_args_is_help=True,
)
RUN = "run.lotr.safetensors"

register(app, make, f"lotr bank make run --rel-error 0.05 -o {RUN}", panels=PANELS)
register(app, show, f"lotr bank show {RUN}")
register(app, export, f"lotr bank export {RUN} checkpoint-500 -o best")
register(app, merge, f"lotr bank merge {RUN} --weights checkpoint-500=1,checkpoint-1000=1 -o mean")
register(app, add, f"lotr bank add {RUN} run/checkpoint-4500")
register(app, drop, f"lotr bank drop {RUN} checkpoint-500 checkpoint-1000")
register(app, rename, f"lotr bank rename {RUN} checkpoint-4500 final")
register(app, compact, f"lotr bank compact {RUN} --rel-error 0.1")
register(app, verify, f"lotr bank verify {RUN}")
