"""The notebooks of the documentation run, from first cell to last, and show tables."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lotr_tn as lt

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"


def cells(name: str) -> Iterator[str]:
    """The code of a notebook, which is stored as it was before it ran."""
    book = json.loads((NOTEBOOKS / name).read_text("utf-8"))
    assert (book["nbformat"], set(book["metadata"])) == (4, {"kernelspec", "language_info"})
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"], cell["metadata"]) == ([], None, {})
            yield "".join(cell["source"])


def run(name: str) -> tuple[dict[str, Any], list[Any]]:
    """All names that the cells define, and the values that they end with."""
    names, shown = {}, []
    for code in cells(name):
        *before, last = ast.parse(code).body
        if isinstance(last, ast.Expr):
            exec(compile(ast.Module(before, []), name, "exec"), names)
            shown.append(eval(compile(ast.Expression(last.value), name, "eval"), names))
        else:
            exec(compile(code, name, "exec"), names)
    return names, shown


def tables(shown: list[Any]) -> list[str]:
    return [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_adapter():
    names, shown = run("adapter.ipynb")
    assert names["errors"] == pytest.approx([names["conversion"].relative_error] * 2, rel=1e-3)
    assert max(names["errors"]) <= 0.1
    adapter, analysis, conversion = tables(shown)
    assert "gate_proj" in adapter
    assert "truncated" in analysis
    assert "truncated" in conversion
    assert (Path("small-lora") / "adapter_config.json").is_file()


def test_a_run():
    names, shown = run("run.ipynb")
    assert list(names["errors"]) == ["step-130", "step-160", "step-190"]
    assert max(names["errors"].values()) <= 0.3
    stored = {name: names["bank"].figures(name).relative_error for name in names["errors"]}
    assert names["errors"] == pytest.approx(stored, rel=1e-3)
    made, bank, taken = tables(shown)
    assert "BankConversion(3 adapters" in made
    assert all(name in table for table in (made, bank) for name in names["run"])
    assert "PEFT LoRA" in taken
    assert (
        lt.compare_adapters(names["taken"], names["bank"]["step-160"]).relative_error < 1e-3
    )  # float16


def test_every_notebook_is_run():
    assert sorted(found.name for found in NOTEBOOKS.iterdir()) == ["adapter.ipynb", "run.ipynb"]
