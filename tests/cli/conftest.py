"""The program, run in an empty folder."""

import contextlib
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lotr_tn.cli import main
from lotr_tn.cli.main import app


@pytest.fixture
def lotr(monkeypatch, capsys, tmp_path):
    """Run the program in an empty folder; gives exit status, standard output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lotr", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as done:
            status = done.code or 0
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


def run_in(folder: Path, *arguments: object) -> None:
    """Run the program in a folder that several tests look at, where it is to end well."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output


def of_json(result):
    """The one JSON object that a run printed, which was to end well."""
    status, out, err = result
    assert (status, err) == (0, "")
    return json.loads(out)
