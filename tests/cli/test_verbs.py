"""One adapter and many are two verbs; the old ones show the new; help begins with what counts."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.cli import runs

ONE_FOR_MANY = "lotr convert takes one adapter; several are put into a bank: "


def answer(result, status: int = 2) -> str:
    """The one sentence of a run that was refused."""
    assert result[:2] == (status, "")
    assert result[2].startswith("lotr: ")
    assert result[2].count("\n") == 1
    return result[2].removeprefix("lotr: ").rstrip("\n")


@pytest.mark.parametrize(
    "typed",
    [
        "run/checkpoint-1 run/checkpoint-2 --rel-error 0.1 -o 'my bank.safetensors'",
        "run --rel-error 0.1 -o b.safetensors",
        "run/checkpoint-1 --rel-error 0.1 --stack all -o b.safetensors -q",
        "run/checkpoint-1 --total-error 0.1 --each -o b.safetensors",
        "run/checkpoint-1 --rel-error 0.1 --no-cluster --name a --any-base -o b.safetensors",
        "run/checkpoint-1 --rel-error 0.1 --route sketch --sketch 4 -o b.safetensors",
    ],
)
def test_convert_of_several_shows_the_command_for_a_bank(lotr, tmp_path, typed):
    runs.history(tmp_path / "run", 1, 2)
    sentence = answer(lotr("convert", *shlex.split(typed)))
    assert sentence == f"{ONE_FOR_MANY}lotr bank make {typed}"
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_what_is_shown_works(lotr, tmp_path):
    runs.history(tmp_path / "run", 1, 2)
    sentence = answer(lotr("convert", "run", "--rel-error", "0.1"))
    assert sentence.endswith("lotr bank make run --rel-error 0.1 -o NAME.lotr.safetensors")
    shown = shlex.split(sentence.removeprefix(ONE_FOR_MANY))
    assert lotr(*shown[1:], "-q") == (0, "", "")
    bank = "NAME.lotr.safetensors"
    assert answer(lotr("convert", bank, "--rel-error", "0.1")).startswith(ONE_FOR_MANY)
    for old, new in (
        (f"rename {bank} checkpoint-1 'the first'", "bank rename"),
        (f"append {bank} run/checkpoint-1 --name again -q", "bank add"),
        (f"drop {bank} again -q", "bank drop"),
        (f"compact {bank} --rel-error 0.2 --json", "bank compact"),
        (f"export {bank} --adapter checkpoint-2 -o one", "bank export"),
        (f"export {bank} --all -o all", "bank export"),
        (f"inspect {bank} --verify", "bank verify"),
    ):
        shown = answer(lotr(*shlex.split(old)))
        command = shown[shown.index(f"lotr {new} ") :]
        rest = old.partition(" ")[2].replace("--adapter ", "").replace(" --verify", "")
        assert command == f"lotr {new} {rest}"
        assert lotr(*shlex.split(command)[1:])[::2] == (0, "")
    assert answer(lotr("export", bank)).endswith(f"lotr bank export {bank} NAME")
    assert "lotr bank add --help" in answer(lotr("append", "--help"))


def test_old_commands_are_not_told(lotr):
    out = lotr("--help")[1]
    assert not {"append", "compact", "rename"} & set(re.findall(r"\w+", out))


@pytest.mark.parametrize("command", [["convert"], ["bank", "make"]])
def test_the_essentials_fit_a_small_terminal(lotr, command):
    status, out, err = lotr(*command, "--help")
    assert (status, err) == (0, "")
    shown = out.rstrip().splitlines()
    assert len(shown) <= 24
    assert max(map(len, shown)) <= 80
    panels = re.findall(r"^╭─ ([\w ]+) ─", out, re.MULTILINE)
    assert panels == ["How much", "Which form", "Where it is written", "Advanced"]
    for option in ("--rel-error", "--max-bytes", "--format", "--output", "--help-all"):
        assert f" {option} " in out
    whole = lotr(*command, "--help-all")[1]
    assert re.findall(r"^╭─ ([\w ]+) ─", whole, re.MULTILINE)[-4:] == panels
    options = [set(re.findall(r"(?<=│ )--[a-z-]+", text)) for text in (out, whole)]
    assert options[0] < options[1]
    assert {"--method", "--group-by", "--dtype", "--force", "--json", "--help"} <= options[1]


def run_apart(*command, **variables):
    """A process of its own; gives its status and what it prints."""
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"COLUMNS": "80"} | variables,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_python_runs_the_package(tmp_path):
    status, _, err = run_apart("-m", "lotr_tn", "inspect", tmp_path / "nowhere")
    assert (status, err) == (1, f"lotr: {tmp_path / 'nowhere'}: no such file or folder\n")
    status, out, err = run_apart("-m", "lotr_tn", "convert", "--help")
    assert (status, err) == (0, "")
    assert "Usage: lotr convert" in out


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("lotr co", {"convert", "compare", "count"}),  # and not compact
        ("lotr bank ", {
            "make", "show", "export", "merge", "add", "drop", "rename", "compact", "verify",
        }),
        ("lotr convert --max", {"--max-params", "--max-bytes", "--max-rank"}),
        ("lotr convert --st", set()),
        ("lotr bank make --st", {"--stack"}),
    ],
)  # fmt: skip
def test_shells_complete_commands_and_options(lotr, monkeypatch, words, offered):
    asked = {
        "_LOTR_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    status, out, err = lotr()
    assert (status, err) == (0, "")
    assert set(out.split()) == offered
    if words == "lotr co":
        assert run_apart("-m", "lotr_tn", **asked) == (0, out, "")


def test_the_script_for_a_shell():
    shown = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    status, out, _ = run_apart("-m", "lotr_tn", "--show-completion", "bash", **shown)
    assert status == 0
    assert "_LOTR_COMPLETE=complete_bash" in out
