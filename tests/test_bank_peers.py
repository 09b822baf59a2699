"""The measuring of other packages, on files whose errors are known beforehand."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks import measure
from benchmarks.bank_peers import (
    PEERS,
    Point,
    adapter_errors,
    bytes_for_error,
    curve_to_error,
    error_at_bytes,
    installed,
    numbers_of_updates,
    run,
)
from benchmarks.fleets import write_fleet

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def fleet(tmp_path):
    return write_fleet(tmp_path / "fleet", 4, shapes="tiny", rank=2, shared=3, noise=0.1)


def updates(folder) -> list[np.ndarray]:
    """Every ΔW by a plain product, float64."""
    tensors = load_file(folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text())
    return [
        config["lora_alpha"]
        / config["r"]
        * (tensors[key.replace("lora_A", "lora_B")].astype(float) @ a.astype(float))
        for key, a in sorted(tensors.items())
        if "lora_A" in key
    ]


def test_errors_from_factors_are_those_of_dense_updates(fleet):
    before, after = map(updates, fleet[:2])
    lost = sum(np.linalg.norm(a - b) ** 2 for a, b in zip(before, after, strict=True))
    wanted = np.sqrt(lost / sum(np.linalg.norm(a) ** 2 for a in before))
    assert adapter_errors(*fleet[:2]) == pytest.approx(wanted, rel=1e-9)
    assert adapter_errors(fleet[0], fleet[0]) < 1e-7


def test_a_lost_scale_is_seen_and_can_be_mended(tmp_path, fleet):
    copy = shutil.copytree(fleet[0], tmp_path / "copy")
    config = json.loads((copy / CONFIG).read_text())
    (copy / CONFIG).write_text(json.dumps(config | {"lora_alpha": config["r"]}))
    assert adapter_errors(fleet[0], copy) == pytest.approx(0.5)
    assert adapter_errors(fleet[0], copy, mended=True) < 1e-7


def test_other_modules_are_refused(tmp_path, fleet):
    copy = shutil.copytree(fleet[0], tmp_path / "copy")
    tensors = load_file(copy / WEIGHTS)
    save_file({k: x for k, x in tensors.items() if "q_proj" in k}, copy / WEIGHTS)
    with pytest.raises(ValueError, match="must update the 4 modules"):
        adapter_errors(fleet[0], copy)


def test_reading_a_curve():
    curve = [
        Point(1, 100, 80, 0.3, 0.2, 0.6, 0.6),
        Point(2, 200, 180, 0.05, 0.04, 0.5, 0.5),
        Point(4, 400, 380, 0.01, 0.01, 0.5, 0.5),
    ]
    assert bytes_for_error(curve, 0.05) == 200
    assert bytes_for_error(curve, 0.05, stored=False) == 180
    assert bytes_for_error(curve, 0.001) is None
    assert error_at_bytes(curve, 399) == 0.05
    assert error_at_bytes(curve, 399, stored=False) == 0.01
    assert error_at_bytes(curve, 99) is None


def test_the_table_with_and_without_the_packages(fleet, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.bank_peers.installed", lambda peer: False)
    assert run(fleet, [1]) == {"vlora": [], "lorashare": []}
    assert capsys.readouterr().out.count("not installed") == 2
    record = json.loads((tmp_path / "bank-peers.json").read_text())
    assert record["bytes_of_numbers"] == 4 * numbers_of_updates(fleet)
    assert record["bytes_of_numbers"] == 4 * 4 * 2 * 2 * (40 + 48 + 24 + 48)


@pytest.mark.parametrize("peer", PEERS)
def test_a_package_on_a_tiny_fleet(peer, fleet):
    if not installed(peer):
        pytest.skip(f"{peer} is not installed")
    rough, fine = PEERS[peer](fleet, [1, 3])
    assert rough.k == 1
    assert fine.worst < rough.worst
    assert rough.bytes_of_numbers < fine.bytes_of_numbers < fine.bytes_stored
    assert rough.mean <= rough.worst
    if peer == "vlora":  # four adapters lie in a mean and three components; alpha is lost
        assert fine.worst < 1e-5
        assert fine.worst_exported == pytest.approx(0.5, abs=1e-4)
        assert fine.bytes_of_numbers == 4 * (numbers_of_updates(fleet) + 4 * 2 * 3 * (4 + 1))
    else:
        assert fine.worst_exported == fine.worst
        assert fine.bytes_of_numbers == 4 * (2 * 3 * (40 + 48 + 24 + 48) + 4 * 4 * 2 * 3 * 2)


@pytest.mark.parametrize("needed", [1, 2, 3, None])
def test_the_fewest_components_are_found(needed, fleet, monkeypatch):
    def peer(folders, ks):
        return [Point(k, 10 * k, 0, 0.1 if needed and k >= needed else 0.2, 0, 0, 0) for k in ks]

    monkeypatch.setitem(PEERS, "vlora", peer)
    curve = curve_to_error("vlora", fleet, 0.1)
    assert bytes_for_error(curve, 0.1) == (10 * needed if needed else None)
    if needed and needed > 1:
        assert needed - 1 in [point.k for point in curve]


@pytest.mark.parametrize("peer", PEERS)
def test_the_largest_k_is_found(peer, fleet):
    if not installed(peer):
        pytest.skip(f"{peer} is not installed")
    curve = curve_to_error(peer, fleet, 0.0)
    assert [point.k for point in curve] == [{"vlora": 3, "lorashare": 8}[peer]]
