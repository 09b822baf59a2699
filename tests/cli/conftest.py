"""The program, run in an empty folder."""

import json
import sys

import pytest

from lotr_tn.cli import main


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


def of_json(result):
    """The one JSON object that a run printed, which was to end well."""
    status, out, err = result
    assert (status, err) == (0, "")
    return json.loads(out)
