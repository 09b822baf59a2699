"""`lotr demo`, as a user meets it in a terminal of 24 rows of 80 columns."""

import re
import shlex

import pytest

import lotr_tn as lt
from lotr_tn.cli.demo import ERROR, NEXT, TAKEN

ROWS, COLUMNS = 24, 80


def rows(text):
    """How many rows of a terminal a text takes; it breaks lines that are longer."""
    return sum(max(1, -(-len(line.rstrip()) // COLUMNS)) for line in text.strip("\n").split("\n"))


def test_five_screens_and_what_they_say_is_so(lotr, tmp_path):
    status, out, err = lotr("demo")
    assert (status, err) == (0, "")
    screens = re.split(r"\n(?=\d\. )", out)[1:]
    assert [screen[:2] for screen in screens] == ["1.", "2.", "3.", "4.", "5."]
    assert max(map(rows, screens)) < ROWS
    holds, costs, bank, taken, _ = (" ".join(screen.split()) for screen in screens)

    left = tmp_path / "lotr-demo"
    run = [left / "run" / f"checkpoint-{step}" for step in (130, 160, 190)]
    assert sorted((left / "run").iterdir()) == run
    assert f"{lt.load_adapter(left / 'adapter').parameters:,} parameters" in holds
    weights = "adapter_model.safetensors"
    assert (left / "adapter" / weights).read_bytes() == (run[-1] / weights).read_bytes()
    assert "a LoRA with each layer's rank cut takes" in costs

    held = lt.banks.load_bank(left / "run.lotr.safetensors")
    assert held.names == tuple(folder.name for folder in run)
    alone = float(re.search(r"Each alone .*?: ([\d.]+)x as much", bank)[1])
    assert alone > 2, "what the demo shows is that a bank pays"
    assert all(held.figures(name).relative_error <= ERROR for name in held.names)

    found = lt.compare_adapters(
        lt.load_adapter(left / "run" / TAKEN), lt.load_adapter(left / TAKEN)
    )
    assert found.relative_error <= ERROR
    told = [float(x) for x in re.findall(r"Relative error ([\d.]+)", taken)]
    assert told == pytest.approx([found.relative_error] * 2, rel=1e-3)


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
