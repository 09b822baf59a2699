"""What reaches a terminal: no control characters of names, one line a message, every stream."""

import io
import subprocess
import sys

import numpy as np
import pytest

from lotr_tn.errors import LONGEST, CheckpointError, printable
from tests.cli.conftest import of_json
from tests.cli.runs import save

ESCAPE = "\x1b]0;owned\x07\x1b[31m\u202ered\r"
NAMES = (f"layers.0.q{ESCAPE}", "layers.0.[bold]v:smile:")


@pytest.fixture
def odd(tmp_path):
    """An adapter whose modules and base have names that control a terminal."""
    rng = np.random.default_rng(0)
    pairs = {name: (rng.standard_normal((6, 4)), rng.standard_normal((4, 5))) for name in NAMES}
    return save(tmp_path / "odd", pairs, base=f"b{ESCAPE}")


def controls(text):
    return [c for c in text if not c.isprintable() and c != "\n"]


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "odd"],
        ["convert", "odd", "--rel-error", "0.3"],
        ["analyze", "odd"],
        ["compare", "odd", "odd", "--all"],
        ["merge", "odd", "odd", "-o", "both"],
        ["bank", "make", "odd", "odd2", "--rel-error", "0.3", "-o", "b.lotr.safetensors"],
        ["inspect", f"no{ESCAPE}such"],
        ["convert", "odd", "--rel-error", f"{ESCAPE}"],
        ["convert", "odd", "--rank", "2", "--keep", f"({ESCAPE}"],
    ],
    ids=lambda command: " ".join(command[:2]).encode("unicode_escape").decode(),
)
def test_names_control_no_terminal(lotr, odd, command, tmp_path):
    (tmp_path / "odd2").symlink_to("odd")
    status, out, err = lotr(*command)
    assert controls(out + err) == []
    if command[0] in ("inspect", "compare") and status == 0:
        assert r"\x1b]0;owned\x07" in out.replace("\n", "").replace(" ", "")
        assert "[bold]v:smile:" in out.replace("\n", "").replace(" ", "")
    assert len(err) <= 500


def test_names_in_json_are_as_they_are(lotr, odd):
    modules = [
        name for g in of_json(lotr("inspect", odd, "--json"))["groups"] for name in g["modules"]
    ]
    assert sorted(modules) == sorted(NAMES)


@pytest.mark.parametrize(
    ("text", "safe"), [("a", "a"), ("é√", "é√"), ("a\nb\x9b\ud800\u2028", r"a\nb\x9b\ud800\u2028")]
)
def test_printable(text, safe):
    assert printable(text) == safe
    assert printable(safe) == safe


def test_a_message_is_one_short_line():
    message = str(CheckpointError("begin " + "x\n" * 5000 + " end"))
    assert len(message) <= LONGEST
    assert "\n" not in message
    assert message.startswith("begin ")
    assert message.endswith(" end")


@pytest.mark.parametrize(
    "words",
    [["convert"], ["convert", "x", "--rel-error", "y" * 4000], ["inspect", "--n\no"], ["none"]],
)
def test_wrong_usage_is_one_line(lotr, words):
    status, out, err = lotr(*words)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert len(err) <= 500
    assert "--help" in err


class Full(io.StringIO):
    """A stream on a full device."""

    def write(self, text):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_a_full_standard_output_does_not_hide_what_was_written(lotr, odd, monkeypatch, how):
    monkeypatch.setattr(sys, "stdout", Full())
    status, _, err = lotr("convert", "odd", "--rank", "2", "-o", "o.lotr.safetensors", *how)
    assert status == 1
    assert err == (
        "lotr: the result cannot be shown, since standard output fails (No space left on device); "
        "o.lotr.safetensors was written all the same\n"
    )
    assert (odd.parent / "o.lotr.safetensors").exists()


def test_a_stream_of_ascii_takes_everything(monkeypatch, odd):
    run = subprocess.run(
        [sys.executable, "-m", "lotr_tn", "inspect", str(odd)],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
        check=True,
    )
    assert run.stdout.isascii()
    assert run.stderr == b""


@pytest.mark.parametrize(
    "option", ["--rank", "--max-bytes", "--max-params", "--rel-error", "--max-rank", "--min-rank"]
)
@pytest.mark.parametrize("digits", ["9" * 5000, "1e400", "nan", "\u00b2"])
def test_no_number_in_an_option_is_unexpected(lotr, odd, option, digits):
    first = ["--rel-error", "0.1"] if option in ("--max-rank", "--min-rank") else []
    status, _, err = lotr("convert", odd, *first, option, digits, "-o", "n.lotr.safetensors")
    assert status == 2
    assert "unexpected" not in err
    assert len(err) <= 500
    assert lotr("count", "2x3x4", "--rank", digits)[0] == 2
    assert lotr("count", f"{digits}x3x4")[0] in (1, 2)
