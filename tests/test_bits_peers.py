"""The measuring of other ways to store an adapter, against plain products."""

import json
from pathlib import Path

import numpy as np
import pytest

import lotr_tn as lt
from benchmarks import measure
from benchmarks.bits_peers import WAYS, Directions, dense_error, run
from lotr_tn import demo

ADAPTER = Path(demo.__file__).parent / "adapter"


@pytest.fixture(scope="module")
def adapter():
    return lt.load_adapter(ADAPTER)


@pytest.mark.parametrize(
    ("way", "most"),
    [("float32", 1e-6), ("bfloat16", 2**-8), ("int8 per column", 1 / 200), ("int4 per 64", 1 / 10)],
)
def test_what_comes_back_is_as_near_as_its_bits(way, most):
    x = np.random.default_rng(0).uniform(-1, 1, (70, 3)) * (1.0, 1e-3, 0.0)
    back, size = WAYS[f"ranks cut, {way}"](x)
    assert back.shape == x.shape
    assert (np.abs(back - x).max(axis=0) <= most * np.abs(x).max(axis=0)).all()
    bits = {"float32": 32, "bfloat16": 16, "int8 per column": 8, "int4 per 64": 4}[way]
    assert bits * x.size <= 8 * size <= bits * x.size + 32 * 6


def test_as_many_directions_are_kept_as_it_takes(adapter):
    directions = Directions.of(adapter)
    way = WAYS["ranks cut, float32"]

    def error(count):
        return directions.error(directions.rounded(count, way)[0])

    kept = directions.fewest(0.1, way)
    assert kept is not None
    assert error(kept) <= 0.1 < error(kept - 1)
    assert directions.bytes_at(0.1, way) == directions.rounded(kept, way)[1]
    values = np.sort(np.concatenate(directions.values))
    assert error(0) == pytest.approx(1)
    assert directions.energy == pytest.approx((values**2).sum())
    assert directions.bytes_at(0.01, WAYS["ranks cut, int4 per 64"]) is None


def test_told_errors_are_those_of_dense_products(adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    run([ADAPTER], (0.2,))
    record = json.loads((tmp_path / "bits_peers.json").read_text())["adapters"]["adapter"]
    assert record["gap"] < 1e-6
    assert record["Gaussian rate"] < record["bits"] < record["ranks cut, int8 per column"]
    assert "20%" in capsys.readouterr().out
    done = lt.convert_adapter(adapter, lt.TotalError(0.2), format="auto")
    assert dense_error(adapter, done.adapter) == pytest.approx(done.relative_error, rel=1e-6)
