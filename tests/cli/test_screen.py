"""What a command tells fits on one screen of 24 rows, with the verdict at its end."""

import numpy as np
import pytest

from lotr_tn.report.screen import COLUMNS, ROWS, largest, rows_of
from tests.cli.runs import checkpoint, save


def rows(text):
    """The rows of a terminal of 80 columns, and one for the prompt."""
    return rows_of(text.rstrip("\n")) + 1


@pytest.fixture
def many(tmp_path):
    """An adapter of twenty kinds of modules in two layers."""
    rng = np.random.default_rng(0)
    pairs = {
        f"layers.{layer}.kind{kind}": (rng.standard_normal((6, 4)), rng.standard_normal((4, 5)))
        for layer in range(2)
        for kind in range(20)
    }
    return save(tmp_path / "many", pairs)


def test_rows():
    assert rows_of("a", "b\n\nc" + "x" * COLUMNS) == 5
    assert rows_of("  it " + "takes " * 20) == 2


def test_the_largest_keep_their_order():
    assert largest([3, 9, 1, 7], float, 2, show_all=False) == [9, 7]
    assert largest([3, 9, 1, 7], float, 2, show_all=True) == [3, 9, 1, 7]
    assert largest([3, 9], float, 2, show_all=False) == [3, 9]


@pytest.mark.parametrize("asked", [["--rel-error", "30%"], ["--max-params", "900"]])
def test_an_analysis_fits(lotr, many, asked):
    asked = [*asked, "--group-by", "kind"]
    status, out, err = lotr("analyze", "many", *asked)
    assert (status, err) == (0, "")
    assert rows(out) <= ROWS
    assert "more groups" in out
    ending = " ".join(out.split("\n\n")[-1].split())
    assert ending.startswith(("Smallest: ", "It hardly compresses: ", "Best of this size: "))
    assert "Next lotr convert" in ending
    _, whole, _ = lotr("analyze", "many", *asked, "--all")
    assert whole.count(" * ") >= 20
    assert " ".join(whole.split("\n\n")[-1].split()) == ending


def test_a_bank_of_many_fits(lotr, tmp_path):
    for step in range(100, 1500, 100):
        checkpoint(tmp_path / "run" / f"step-{step}", step)
    asked = ("bank", "make", *sorted((tmp_path / "run").iterdir()), "--rel-error", "30%")
    status, out, _ = lotr(*asked, "-o", "a.lotr.safetensors")
    assert status == 0
    assert rows(out) <= ROWS
    assert "--all shows" in out
    _, whole, _ = lotr(*asked, "-o", "b.lotr.safetensors", "--all")
    assert whole.count("step-") == 14


def test_the_names_of_a_truncated_file_are_not_folded(lotr, tmp_path):
    rng = np.random.default_rng(1)
    pairs = {
        f"layers.{layer}.cross_attn_add_q_proj": (rng.standard_normal((999, 4)), np.ones((4, 999)))
        for layer in range(100)
    }
    save(tmp_path / "one", pairs)
    asked = ("--rank", "3", "--format", "lotr", "-o", "cut.lotr.safetensors", "-q")
    assert lotr("convert", "one", *asked) == (0, "", "")
    status, out, _ = lotr("inspect", "cut.lotr.safetensors")
    assert status == 0
    assert max(map(len, out.splitlines())) <= COLUMNS
    assert [line.split()[0] for line in out.splitlines() if line.strip()].count(
        "cross_attn_add_q_proj"
    ) == 1
