"""What a campaign is: numbered cases, what became of each, and the defects that were found."""

import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

LIMIT = 10.0
"""Seconds of this process' own time after which a case counts as one that never ends."""

MOST = 500
"""Characters of the longest message that a person is given."""

Case = Callable[[random.Random, Path], str]
"""Runs one case in an empty folder, says in a word what became of it, or raises `DefectError`."""


class DefectError(Exception):
    """The product did what it must not do."""


class Endless(BaseException):
    """A case has run out of time; no handler of ordinary exceptions may take it for its own."""


@dataclass
class Tally:
    """What became of the cases.

    Attributes:
        cases: how many were run.
        outcomes: how often each word was given.
        defects: by what was found, how often, and the number of the first case.
    """

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    defects: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add_defect(self, what: str, number: int) -> None:
        """Count a defect under its words without the numbers that differ from case to case."""
        key = re.sub(r"[0-9.e+-]*[0-9]", "#", what)[:MOST]
        count, first = self.defects.get(key, (0, number))
        self.defects[key] = (count + 1, first)


def run(case: Case, seed: int, *, cases: int | None = None, seconds: float | None = None) -> Tally:
    """Run cases until so many are done, or so much time has passed.

    Args:
        case: the campaign.
        seed: the number of the first case; the others follow.
        cases: how many.
        seconds: how long.
    """
    tally, start = Tally(), time.monotonic()
    while (cases is None or tally.cases < cases) and (
        seconds is None or time.monotonic() - start < seconds
    ):
        number = seed + tally.cases
        tally.cases += 1
        try:
            tally.outcomes[run_one(case, number)] += 1
        except DefectError as found:
            tally.add_defect(str(found), number)
    return tally


def run_one(case: Case, number: int) -> str:
    """Run one case by its number.

    Raises:
        DefectError: what the product did, also where it failed by an exception or never ended.
    """
    with tempfile.TemporaryDirectory(prefix="lotr-campaign-") as folder, _limited():
        try:
            return case(random.Random(number), Path(folder))
        except DefectError:
            raise
        except Endless:
            raise DefectError(f"it has not ended after {LIMIT:g} seconds") from None
        except Exception as error:
            raise DefectError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _limited() -> Iterator[None]:
    """Raise `Endless` in what takes too long."""

    def end(*_: object) -> None:
        raise Endless

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
