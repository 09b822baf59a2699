"""What a terminal shows beside text: colours that mean something, and progress."""

import io
import re
import sys
import time

import pytest
from rich.console import Console
from rich.text import Text

from lotr_tn.cli import console
from lotr_tn.report.emphasis import LARGER, SMALLER, WORST, emphasised
from lotr_tn.report.text import plain_table
from tests.cli.runs import history

COLOUR = r"\x1b\[[\d;]*3[12]m"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def terminal(monkeypatch):
    """Make both streams terminals with colours; gives them."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    streams = Terminal(), Terminal()
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    return streams


def test_ratios_are_green_below_one_and_red_above():
    text = emphasised("0.35x of 12.5x3 and 1.20x, 1.00x, 64x48, v0.50x, 0.9953x")
    assert [(text.plain[s.start : s.end], s.style) for s in text.spans] == [
        ("0.35x", SMALLER),
        ("1.20x", LARGER),
    ]


def styled(table):
    cells = [cell for column in table.columns for cell in column.cells if isinstance(cell, Text)]
    return [cell.plain for cell in cells if any(span.style == WORST for span in cell.spans)]


@pytest.mark.parametrize(
    ("header", "values", "worst"),
    [
        ("Group", ["0.01", "0.3", "-", "4.5e-08"], ["0.3"]),
        ("Group", ["0.1", "0.1"], []),
        ("Group", ["-"], []),
        ("Format", ["0.01", "0.3"], []),
    ],
)
def test_the_worst_error_is_bold(header, values, worst):
    table = plain_table(header, "Error")
    for value in values:
        table.add_row("0.50x", value)
    Console(file=io.StringIO()).print(table)
    assert styled(table) == worst


def test_colours_on_a_terminal_alone(lotr, tmp_path, monkeypatch):
    one, _ = history(tmp_path, 250, 500)
    words = ("convert", one, "--rel-error", "0.3", "--force")
    status, piped, _ = lotr(*words)
    assert status == 0
    assert "\x1b" not in piped
    screen, _ = terminal(monkeypatch)
    lotr(*words)
    assert re.search(COLOUR, screen.getvalue())
    screen, _ = terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    lotr(*words)
    assert screen.getvalue()
    assert not re.search(COLOUR, screen.getvalue())


def test_progress_tells_what_is_done_and_the_time_that_is_left(monkeypatch):
    _, errors = terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(console, "SHOWN_AFTER", -1.0)
    with console.progress(3, quiet=False) as step:
        for name in ("q_proj", "a" * 200, "writing"):
            step(name)
            time.sleep(0.15)
    shown = re.sub(r"\x1b\[[\d;]*m", "", errors.getvalue())
    lines = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "\n", shown).splitlines()
    bars = [line for line in lines if " left " in line]
    assert {bar.split()[0][:6] for bar in bars} >= {"q_proj", "aaaaaa", "writing"[:6]}
    assert all(re.search(r"[012]/3 0:00:0\d left  ?[-\d:]+", bar) for bar in bars), bars
    assert max(map(len, bars)) <= 80


def test_no_progress_in_pipes(capsys, monkeypatch):
    monkeypatch.setattr(console, "SHOWN_AFTER", -1.0)
    with console.progress(1, quiet=False) as step:
        step("q_proj")
    assert capsys.readouterr() == ("", "")
