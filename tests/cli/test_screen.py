"""What a command tells fits on one screen of 24 rows, with the verdict at its end."""

import json
from pathlib import Path

import numpy as np
import pytest

from lotr_tn.analysis.forms import FORMS
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


@pytest.mark.parametrize("form", ["lotr", "truncated"])
def test_a_conversion_fits(lotr, many, form):
    asked = ("convert", "many", "--rel-error", "0.3", "--format", form, "--group-by", "kind")
    status, out, _ = lotr(*asked, "-o", "a.lotr.safetensors")
    assert status == 0
    assert rows(out) <= ROWS
    assert "more groups" in out
    _, whole, _ = lotr(*asked, "-o", "b.lotr.safetensors", "--all")
    assert whole.count("kind") >= 20
    told = [text.partition("Relative error")[2].partition("Written")[0] for text in (out, whole)]
    assert told[0] == told[1]
    for source in ("many", "a.lotr.safetensors"):
        status, out, _ = lotr("inspect", source)
        assert status == 0
        assert rows(out) <= ROWS
        assert "more groups" in out
        assert lotr("inspect", source, "--all")[1].count("kind") >= 20


def test_forms_have_one_name_and_one_word(lotr, many):
    """In the table of an analysis, in the help of a conversion, and on the page about them."""
    page = (Path(__file__).parents[2] / "docs" / "analyze.md").read_text(encoding="utf-8")
    asked = ("--group-by", "kind", "--group", "kind0", "--all", "--formats", "all")
    _, table, _ = lotr("analyze", "many", *asked)
    told = " ".join(lotr("convert", "--help-all")[1].replace("│", " ").split())
    for name, form in FORMS.items():
        row = f"({name})" if form.kept else name
        assert [row, *form.label.split()] in [line.split() for line in table.splitlines()]
        assert form.kept or f"{name} ({form.label})" in told
        assert f"| {form.label} |" in page.partition(f"| `{name}` ")[2].partition("\n")[0]


def test_a_folder_of_adapters(lotr, tmp_path):
    for step in range(1, 31):
        checkpoint(tmp_path / "run" / f"step-{step}", step)
    status, out, err = lotr("inspect", "run")
    assert (status, err) == (0, "")
    assert rows(out) <= ROWS
    assert "30 adapters" in out
    assert out.index("step-2 ") < out.index("step-10 ")  # in natural order
    assert "--all shows" in out
    assert lotr("inspect", "run", "--all")[1].count("step-") == 30
    record = json.loads(lotr("inspect", "run", "--json")[1])
    alone = json.loads(lotr("inspect", "run/step-3", "--json")[1])
    assert record["adapters"][2] == {"name": "step-3", **alone}
    (tmp_path / "run" / "step-7" / "adapter_config.json").write_text("{")
    status, out, err = lotr("inspect", "run")
    assert (status, out) == (1, "")
    assert "step-7" in err


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
    status, out, _ = lotr("bank", "show", "a.lotr.safetensors")
    assert status == 0
    assert rows(out) <= ROWS
    assert "--all shows" in out
    assert lotr("bank", "show", "a.lotr.safetensors", "--all")[1].count("step-") == 14


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
