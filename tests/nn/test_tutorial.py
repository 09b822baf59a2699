"""The script behind the picture on the training page."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "docs" / "figures" / "finetuning.py"


def test_a_little_of_the_tutorial(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra docs is not installed")
    spec = importlib.util.spec_from_file_location("finetuning", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    threads = torch.get_num_threads()
    try:
        record = script.main(script.SMOKE, tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert [point["parameters"] for point in record["points"]] == [10240, 1824, 640]
    (healing,) = record["healing"]
    assert healing["healed_loss"] <= healing["cut_loss"]
    assert 0 < healing["relative_error"] < 1
    assert json.loads((tmp_path / "finetuning.json").read_text()) == record
    assert (tmp_path / "finetuning.svg").read_text().startswith("<?xml")
