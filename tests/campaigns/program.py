"""The program `lotr` in this process, and the manners that are asked of it in every case."""

import contextlib
import io
import re
import sys
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from lotr_tn.cli import main
from tests.campaigns.campaign import MOST, DefectError

ESCAPE = "\x1b"
FOREIGN = re.compile(r"lotr: unexpected \w+: ")
"""What the program says of an exception that nobody foresaw."""


class Done(NamedTuple):
    """How a run of the program ended."""

    status: int
    out: str
    message: str


def lotr(*arguments: object) -> Done:
    """Run a command whose output is no terminal.

    Raises:
        DefectError: a traceback, an exception of somebody else's, a status that means nothing, or a
            message that is not one short line.
    """
    out, message = io.StringIO(), io.StringIO()
    with _as_program(arguments), contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(message):
            try:
                main()
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except Exception as error:
                raise DefectError(f"{type(error).__name__} leaves {arguments[0]}") from error
    done = Done(status, out.getvalue(), message.getvalue())
    _require_manners(str(arguments[0]), done)
    return done


@contextlib.contextmanager
def _as_program(arguments: tuple[object, ...]) -> Iterator[None]:
    before = sys.argv
    sys.argv = ["lotr", *map(str, arguments)]
    try:
        yield
    finally:
        sys.argv = before


def _require_manners(command: str, done: Done) -> None:
    if done.status not in (0, 1, 2, 3):
        raise DefectError(f"{command} ends with status {done.status}")
    text = done.out + done.message
    if "Traceback" in text or FOREIGN.search(done.message):
        raise DefectError(f"{command}: {done.message.strip()[-300:]}")
    if ESCAPE in text:
        raise DefectError(f"{command} sends an escape to a pipe")
    if done.status == 1:
        lines = done.message.strip().splitlines()
        if not lines:
            raise DefectError(f"{command} is refused without a word")
        if len(lines[-1]) > MOST:
            raise DefectError(f"{command} is refused in {len(lines[-1])} characters")
