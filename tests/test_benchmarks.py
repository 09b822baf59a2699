"""Each benchmark runs at a tiny size and writes what it measured. No time is asserted."""

import json

import pytest

from benchmarks import measure
from benchmarks.__main__ import BENCHMARKS


@pytest.mark.parametrize("name", BENCHMARKS)
def test_smoke(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    BENCHMARKS[name]("smoke")
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert "machine" in record
    assert capsys.readouterr().out
    if name == "peers":
        assert abs(record["error"] - record["peer_error"]) < 1e-6
