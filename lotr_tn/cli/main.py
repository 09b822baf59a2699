"""The `lotr` program: its commands, and what becomes of errors."""

import sys
import warnings
from functools import cache
from typing import Annotated, Any

import typer

import lotr_tn
from lotr_tn.cli import bank
from lotr_tn.cli.analyze import analyze
from lotr_tn.cli.commands import register
from lotr_tn.cli.compare import compare
from lotr_tn.cli.console import say, standard_output
from lotr_tn.cli.convert import PANELS, convert
from lotr_tn.cli.count import count
from lotr_tn.cli.demo import demo
from lotr_tn.cli.export import export
from lotr_tn.cli.inspect import inspect
from lotr_tn.cli.merge import merge
from lotr_tn.cli.moved import MOVED, moved
from lotr_tn.cli.stopping import Stopped, stoppable
from lotr_tn.cli.values import of_choice
from lotr_tn.errors import LotrError, OptionError

app = typer.Typer(
    name="lotr",
    help="Low tensor rank (LoTR) adapters: convert, compare and export, with measured errors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

register(app, demo, "lotr demo")
register(app, inspect, "lotr inspect my-lora")
register(app, analyze, "lotr analyze my-lora --rel-error 0.05 --html my-lora.html")
register(app, convert, "lotr convert my-lora --rel-error 0.05", panels=PANELS)
register(app, export, "lotr export my-lora.lotr.safetensors -o my-lora-again")
register(app, compare, "lotr compare my-lora my-lora.lotr.safetensors")
register(app, merge, "lotr merge my-lora other-lora --weights 0.7,0.3 -o both")
register(
    app,
    count,
    "lotr count --model roberta-base --target query,value --group-by shape --rank 1,2,4,8,16,32",
)
app.add_typer(bank.app)
for name in MOVED:
    app.command(
        name,
        hidden=True,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(moved)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lotr_tn {lotr_tn.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_print_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    """Options of the program itself."""


@cache
def _program() -> Any:
    """The commands, built once for all runs in a process."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the program. Exit status: 0 done, 1 input refused, 2 wrong usage, 3 done but missed."""
    with standard_output(), warnings.catch_warnings():
        warnings.showwarning = lambda message, *where, **how: say(f"warning: {message}")
        try:
            with stoppable():
                status = _program()(prog_name="lotr", standalone_mode=False)
        except Stopped as stopped:
            say(str(stopped))
            status = stopped.status
        except Exception as error:
            status = _failed(error)
    sys.exit(status)


def _failed(error: Exception) -> int:
    """Say in one sentence what went wrong; the exit status."""
    if isinstance(error, _UsageError):
        if type(error).__name__ != "NoArgsIsHelpError":  # the help has been shown
            say(_usage(error))
        return 2
    if "--debug" in sys.argv:
        raise error
    say(_sentence(error))
    return 2 if isinstance(error, OptionError) else 1


_UsageError: Any = typer.BadParameter.__mro__[1]  # of the click that typer holds


def _usage(error: Any) -> str:
    error.message = of_choice(error.message)
    message = error.format_message().rstrip(".")
    return f"{message}; see {error.ctx.command_path} --help" if error.ctx else message


def _sentence(error: Exception) -> str:
    if isinstance(error, LotrError):
        return str(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory for this"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}the system refuses it ({error.strerror})"
    # a defect of ours: still one sentence
    return f"unexpected {type(error).__name__}: {error}; run it again with --debug to see where"
