"""Exceptions and warnings: one sentence on what was found, what was needed and what to try."""

import sys
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

LONGEST = 480
"""Characters of a message; of a longer one the middle is left out."""


def printable(text: str) -> str:
    r"""Text for a terminal: one line, in which no character controls anything.

    Line ends, escapes, marks that turn the direction of writing and halves of characters come out
    as Python writes them.

    Examples:
        >>> print(printable("q\x1b[31m\n"))
        q\x1b[31m\n
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def sentence(message: str) -> str:
    """A message as one line of at most `LONGEST` characters: what it is about, and what to do."""
    line = printable(message)
    if len(line) <= LONGEST:
        return line
    return f"{line[: LONGEST // 2]} … {line[3 - LONGEST // 2 :]}"


class LotrError(Exception):
    """Base of every error that this package raises on purpose; its message is one short line."""

    def __init__(self, message: str = "") -> None:
        super().__init__(sentence(message))


class BackendError(LotrError, TypeError):
    """Arrays of one operation differ in library, dtype or device, or the library is missing."""


class FormatError(LotrError, ValueError):
    """Arrays do not fit together: wrong number of axes, or sizes that disagree."""


class OptionError(LotrError, ValueError):
    """An option has a value that makes no sense, whatever the input."""


class ArgumentError(OptionError, TypeError):
    """An argument is of a type that a function does not take."""


class RankError(OptionError):
    """A rank or a rank rule is outside its range."""


class DerivativeError(LotrError, ArithmeticError):
    """The derivative of a result does not exist at this input."""


class CheckpointError(LotrError, ValueError):
    """A file is damaged, incomplete, inconsistent, or cannot be written."""


class UnsupportedError(CheckpointError):
    """A file is well formed, but uses a feature whose meaning a conversion would not keep."""


class PerformanceWarning(UserWarning):
    """An operation is about to form something far larger than the factors it comes from."""


class PrecisionWarning(UserWarning):
    """A storage dtype is too coarse for the error that was asked for."""


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names for a message: the first of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def meant(found: object, names: Iterable[str]) -> str:
    """Which of some names a mistyped one was to be, for the end of a message; else nothing.

    Examples:
        >>> meant("tie", ["linear", "ties"]), meant("x", ["linear", "ties"])
        ('; did you mean ties?', '')
    """
    near = get_close_matches(str(found)[:LONGEST], list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def not_among(what: str, found: object, names: Sequence[str]) -> str:
    """The message on a value that is none of those that there are."""
    return f"{what} must be one of {', '.join(names)}; found {found!r}{meant(found, names)}"


def warn_outside(message: str, category: type[Warning]) -> None:
    """Warn at the line outside of the package that led here, whatever the calls between."""
    frame, level = sys._getframe(1), 2
    package = __name__.partition(".")[0]
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
