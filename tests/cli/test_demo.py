"""`lotr demo`, as a user meets it in a terminal of 24 rows of 80 columns."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import lotr_tn as lt
from lotr_tn.cli.demo import ERROR, NEXT, TAKEN
from tests.cli.conftest import of_json

ROWS, COLUMNS = 24, 80


def rows(text):
    """How many rows of a terminal a text takes; it breaks lines that are longer."""
    return sum(max(1, -(-len(line.rstrip()) // COLUMNS)) for line in text.strip("\n").split("\n"))


HEAVY = {"torch", "tensorly", "matplotlib", "peft", "transformers"}
PROGRAM = f"""
import sys
from lotr_tn.cli import main
sys.argv = ["lotr", "demo"]
try:
    main()
except SystemExit as done:
    assert not done.code
heavy = {HEAVY!r} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the demo prints, and the folder where it ran: in a process of its own, once."""
    folder = tmp_path_factory.mktemp("ran")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    return done, folder


def test_it_loads_neither_torch_nor_plotting(ran):
    done, _ = ran
    assert (done.returncode, done.stderr) == (0, "")


def test_it_runs_what_it_shows(lotr, ran, tmp_path):
    out = ran[0].stdout
    shutil.copytree(ran[1], tmp_path, dirs_exist_ok=True)
    assert "1. What is in the adapter" in out
    left = {p.name for p in (tmp_path / "lotr-demo").iterdir()}
    assert left == {"adapter", "run", "run.lotr.safetensors", "checkpoint-160"}
    for command in commands_of(out):
        words = command.partition(" | ")[0].split()
        code, said, *_ = lotr(*words, *(["--force"] if "-o" in words else []))
        assert code == 0, command
        if words[0] == "analyze":  # the very verdict that the demo shows
            verdict = said.partition("Smallest in numbers:")[2].partition("Next")[0]
            assert "In bits it takes" in verdict
            assert " ".join(verdict.split()) in " ".join(out.split())
    record = of_json(lotr("demo", "--json"))  # a second run replaces its own files
    assert record["bank"]["worst_error"] <= 0.1
    assert record["bank"]["bytes_after"] < record["bank"]["bytes_before"]
    assert abs(record["compare"]["relative_error"] - record["export"]["relative_error"]) < 1e-4


def commands_of(out):
    """The commands that the demo prints, which do what it says."""
    shown = [line.strip().removeprefix("$ lotr ") for line in out.splitlines() if "$ lotr" in line]
    assert len(shown) == 5
    return shown


def test_five_screens_and_what_they_say_is_so(ran):
    done, folder = ran
    screens = re.split(r"\n(?=\d\. )", done.stdout)[1:]
    assert [screen[:2] for screen in screens] == ["1.", "2.", "3.", "4.", "5."]
    assert max(map(rows, screens)) < ROWS
    holds, costs, bank, taken, _ = (" ".join(screen.split()) for screen in screens)

    left = folder / "lotr-demo"
    run = [left / "run" / f"checkpoint-{step}" for step in (130, 160, 190)]
    assert sorted((left / "run").iterdir()) == run
    assert f"{lt.load_adapter(left / 'adapter').parameters:,} parameters" in holds
    weights = "adapter_model.safetensors"
    assert (left / "adapter" / weights).read_bytes() == (run[-1] / weights).read_bytes()
    assert "a LoRA with each layer's rank cut takes" in costs

    held = lt.banks.load_bank(left / "run.lotr.safetensors")
    assert held.names == tuple(folder.name for folder in run)
    size, times = re.search(
        r"Each alone in bits takes ([\d.]+) kB in all, ([\d.]+)x as", bank
    ).groups()
    assert float(times) > 1.9, "what the demo shows is that a bank pays"
    assert float(size) == pytest.approx(sum(map(in_bits, run)) / 1000, abs=0.06)
    assert all(held.figures(name).relative_error <= ERROR for name in held.names)

    found = lt.compare_adapters(
        lt.load_adapter(left / "run" / TAKEN), lt.load_adapter(left / TAKEN)
    )
    assert found.relative_error <= ERROR
    told = [float(x) for x in re.findall(r"Relative error ([\d.]+)", taken)]
    assert told == pytest.approx([found.relative_error] * 2, rel=1e-3)


def in_bits(folder):
    """The bytes of a file of its own, in bits."""
    rule, file = lt.TotalError(ERROR), folder.parent.parent / f"{folder.name}.lotr.safetensors"
    done = lt.convert_adapter(lt.load_adapter(folder), rule, format="auto", coding="auto")
    lt.save_adapter(done.adapter, file)
    return file.stat().st_size


def test_commands_that_are_told_next_exist(lotr):
    assert max(len(what) for what, _ in NEXT) + 2 + max(len(line) for _, line in NEXT) <= COLUMNS
    for _, line in NEXT:
        _, *words = shlex.split(line)
        command = words[: 2 if words[0] == "bank" else 1]
        options = [word for word in words if word.startswith("-")]
        status, out, _ = lotr(*command, "--help-all")
        if status:
            status, out, _ = lotr(*command, "--help")
        assert status == 0, line
        assert [option for option in options if not re.search(rf"{option}\b", out)] == [], line
