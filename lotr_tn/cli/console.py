"""What every command shares: the one place where text goes out, progress, and exit statuses."""

import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from lotr_tn._shown import shown
from lotr_tn.cli.words import typed_words
from lotr_tn.errors import CheckpointError, printable, sentence

NOT_MET = 3  # exit status of work that was done, but missed the error or size asked for
SHOWN_AFTER = 1.0  # seconds of work without a bar
REPLACE = typer.Option("--force", "-f", help="Replace the destination if it exists.")
"""What a command that writes says of `Output.force`."""


@dataclass(frozen=True)
class Output:
    """How a command tells what it did."""

    all: bool = False  # leave nothing out of the text: for commands that say so
    force: bool = False  # replace a destination that exists: for commands that say so
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False
    begun: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the command began."""
        return time.perf_counter() - self.begun

    def progress(self, total: int) -> AbstractContextManager[Callable[[str], None]]:
        """A function to call with the name of each step; see `progress`."""
        return progress(total, quiet=self.quiet or self.json)

    def show(
        self, record: dict[str, Any], text: Callable[[dict[str, Any]], RenderableType]
    ) -> None:
        """Print a result once, as JSON or for a reader; names in it control no terminal."""
        try:
            if self.json:
                sys.stdout.write(json.dumps(_jsonable(record), indent=2, allow_nan=False) + "\n")
            elif not self.quiet:
                screen = Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
                screen.print(text(shown(record)), crop=False)  # commands to copy stay whole
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads has seen enough
            raise
        except OSError as error:
            done = record.get("destination")
            raise CheckpointError(
                f"the result cannot be shown, since standard output fails ({error.strerror})"
                + (f"; {done} was written all the same" if done else "")
            ) from None


def say(message: str) -> None:
    """Say one sentence on standard error."""
    typer.echo(f"lotr: {sentence(typed_words(message))}", err=True)


def missed(message: str) -> NoReturn:
    """Say what was asked for and could not be met, and end with the status of that."""
    say(message)
    raise typer.Exit(NOT_MET)


@contextmanager
def standard_output() -> Iterator[None]:
    """Streams that take every text, whatever their encoding, and that nothing is left in."""
    if sys.stdout is None:  # closed by whoever started the program
        sys.stdout = io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # said already; or Python would end by saying it again, in its own words
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _jsonable(value: Any) -> Any:
    """A record with null for numbers that JSON does not have: the error of a zero module."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class _Left(TimeRemainingColumn):
    """The time that is left, where anybody knows."""

    def render(self, task: Task) -> Text:
        """The word, and the time; nothing of work without an end."""
        return Text() if task.total is None else Text("left ").append_text(super().render(task))


@contextmanager
def progress(total: int, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A function to call with the name of each step: a bar on stderr once work takes a second.

    It shows what is worked on, the time that has passed, and the time that is left.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda name: None
        return
    bar = Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        _Left(),
        console=console,
        transient=True,
        expand=True,
    )
    task = bar.add_task("", total=total)
    begun, done = time.monotonic(), -1

    def step(name: str) -> None:
        nonlocal done
        done += 1
        if done >= total:  # nobody knows how many are left: it runs to and fro, and is not finished
            bar.tasks[0].total = None
        bar.update(task, completed=done, description=printable(name))
        if time.monotonic() - begun > SHOWN_AFTER and not bar.live.is_started:
            bar.start()

    try:
        yield step
    finally:
        if bar.live.is_started:
            bar.stop()
