"""What every command shares: where output goes, progress, and exit statuses."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

__all__ = ["DebugFlag", "ForceFlag", "JsonFlag", "QuietFlag", "file_size", "progress", "show"]

NOT_MET = 3
"""Exit status of work that was done, but missed the error or size that was asked for."""

JsonFlag: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output.")
]
QuietFlag: TypeAlias = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")
]
DebugFlag: TypeAlias = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", hidden=False)
]
ForceFlag: TypeAlias = Annotated[
    bool, typer.Option("--force", "-f", help="Replace the destination if it exists.")
]


def show(
    record: dict[str, Any], text: Callable[[], RenderableType], *, as_json: bool, quiet: bool
) -> None:
    """Print a result once, as JSON or for a reader."""
    if as_json:
        sys.stdout.write(json.dumps(_jsonable(record), indent=2, allow_nan=False) + "\n")
    elif not quiet:
        Console(highlight=False, soft_wrap=False).print(text())


def _jsonable(value: Any) -> Any:
    """A record with null for numbers that JSON does not have: the error of a zero module."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def progress(total: int, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A function to call with the name of each step: a bar on stderr once work takes a second.

    After `total` steps nobody knows how many are left, and the bar runs to and fro.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda name: None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task("", total=total)
    begun, done = time.monotonic(), -1

    def step(name: str) -> None:
        nonlocal done
        done += 1
        bar.update(task, completed=done, description=name)
        if done >= total:
            bar.tasks[0].total = None
        if time.monotonic() - begun > 1 and not bar.live.is_started:
            bar.start()

    try:
        yield step
    finally:
        if bar.live.is_started:
            bar.stop()


def file_size(path: Path) -> int:
    """Bytes of a file, or of an adapter folder's weights."""
    if path.is_file():
        return path.stat().st_size
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (path / name).is_file():
            return (path / name).stat().st_size
    return 0
