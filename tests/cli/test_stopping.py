"""A signal in the midst of a command: nothing is left behind, and what is so is said."""

import os
import signal
import sys

import pytest

from lotr_tn.files import writing

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
OUT = "out.lotr.safetensors"
SIGNALS = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}


def at(monkeypatch, name, number):
    """Have a function of writing end with the process getting a signal."""
    true = getattr(writing, name)

    def call(*arguments):
        result = true(*arguments)
        os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(writing, name, call)


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize(
    ("moment", "said"),
    [("_flush", "nothing was changed"), ("_name_first", f"{OUT} was written all the same")],
)
def test_a_command_that_is_stopped(
    lotr, demo_adapter, tmp_path, monkeypatch, request, name, moment, said
):
    number = getattr(signal, name)
    if (ignored := signal.getsignal(number)) == signal.SIG_IGN:  # as of what runs behind a shell
        request.addfinalizer(lambda: signal.signal(number, ignored))
        signal.signal(number, signal.SIG_DFL)
    before = signal.getsignal(number)
    at(monkeypatch, moment, number)
    assert lotr("convert", demo_adapter, "--rank", "2", "-o", OUT) == (
        128 + number,
        "",
        f"lotr: stopped by {SIGNALS[name]}; {said}\n",
    )
    left = [path.name for path in tmp_path.iterdir() if path != demo_adapter]
    assert left == ([OUT] if OUT in said else [])
    assert signal.getsignal(number) == before


def test_clearing_away_is_not_stopped(lotr, demo_adapter, tmp_path, monkeypatch):
    at(monkeypatch, "_flush", signal.SIGTERM)
    true = writing._try_to_remove

    def remove(path):
        os.kill(os.getpid(), signal.SIGINT)
        true(path)

    monkeypatch.setattr(writing, "_try_to_remove", remove)
    status, _, err = lotr("convert", demo_adapter, "--rank", "2", "-o", OUT)
    assert (status, err) == (143, "lotr: stopped by SIGTERM; nothing was changed\n")
    assert list(tmp_path.iterdir()) == [demo_adapter]


def test_a_signal_that_is_ignored_stays_so(lotr, demo_adapter, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        at(monkeypatch, "_flush", signal.SIGHUP)
        status = lotr("convert", demo_adapter, "--rank", "2", "-o", OUT)[0]
    finally:
        signal.signal(signal.SIGHUP, before)
    assert status == 0
    assert (tmp_path / OUT).exists()
