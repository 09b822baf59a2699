"""The `lotr` program: its commands, and what becomes of errors."""

import sys
from typing import Annotated

import typer

import lotr_tn
from lotr_tn.cli.analyze import analyze
from lotr_tn.cli.bank import append, compact, drop, rename
from lotr_tn.cli.compare import compare
from lotr_tn.cli.convert import convert
from lotr_tn.cli.count import count
from lotr_tn.cli.demo import demo
from lotr_tn.cli.export import export
from lotr_tn.cli.inspect import inspect
from lotr_tn.cli.merge import merge
from lotr_tn.errors import LotrError, OptionError

__all__ = ["app", "main"]

BANKS = "Banks: many adapters in one file"

app = typer.Typer(
    name="lotr",
    help="Low tensor rank (LoTR) adapters: convert, compare and export, with measured errors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command(epilog="Example: lotr demo")(demo)
app.command(epilog="Example: lotr inspect my-lora")(inspect)
app.command(epilog="Example: lotr analyze my-lora --rel-error 0.05 --html my-lora.html")(analyze)
app.command(
    epilog="Example: lotr convert my-lora --rel-error 0.05 -o my-lora.lotr.safetensors\n\n"
    "Example: lotr convert run --rel-error 0.05 -o run.lotr.safetensors"
)(convert)
app.command(
    epilog="Example: lotr export my-lora.lotr.safetensors -o my-lora-again\n\n"
    "Example: lotr export run.lotr.safetensors --adapter checkpoint-500"
)(export)
app.command(epilog="Example: lotr compare my-lora my-lora.lotr.safetensors")(compare)
app.command(epilog="Example: lotr merge my-lora other-lora --weights 0.7,0.3 -o both")(merge)
app.command(
    epilog="Example: lotr count --model roberta-base --target query,value --group-by shape "
    "--rank 1,2,4,8,16,32"
)(count)
app.command(
    rich_help_panel=BANKS,
    epilog="Example: lotr append run.lotr.safetensors run/checkpoint-4500",
)(append)
app.command(
    rich_help_panel=BANKS,
    epilog="Example: lotr drop run.lotr.safetensors checkpoint-500 checkpoint-1000",
)(drop)
app.command(
    rich_help_panel=BANKS,
    epilog="Example: lotr rename run.lotr.safetensors checkpoint-4500 final",
)(rename)
app.command(
    rich_help_panel=BANKS,
    epilog="Example: lotr compact run.lotr.safetensors --rel-error 0.1",
)(compact)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lotr_tn {lotr_tn.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Run the program. Exit status: 0 done, 1 input refused, 2 wrong usage, 3 done but missed."""
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"lotr: {_sentence(error)}", err=True)
        sys.exit(2 if isinstance(error, OptionError) else 1)


def _sentence(error: Exception) -> str:
    if isinstance(error, LotrError):
        return str(error)
    # a defect of ours or of the system: still one sentence
    return f"unexpected {type(error).__name__}: {error}; run it again with --debug to see where"
