"""What is told is so: worst layers, sizes apart, adapters of many, what an export takes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import lotr_tn as lt
from tests.cli.conftest import of_json
from tests.cli.runs import RANK, SHAPES, history, stranger

HERE = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "command", ["inspect", "convert --rel-error 0.1 -o a.safetensors", "analyze"]
)
def test_a_scale_of_zero_is_told_wherever_it_is_looked_at(lotr, tmp_path, command):
    source = stranger(tmp_path / "zero", 1)
    config = source / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 0}))
    name, *options = command.split()
    status, out, _ = lotr(name, source, *options)
    assert status == 0
    assert out.splitlines()[-1].strip() == "All updates are zero: there is nothing to keep."


def test_the_worst_layer_stands_beside_its_group(lotr, tmp_path):
    source = stranger(tmp_path / "adapter", 3)
    asked = ("convert", source, "--rel-error", "0.3", "--force", "-o", "a.safetensors")
    record, (_, out, _) = of_json(lotr(*asked, "--json")), lotr(*asked, "--all")
    header = next(line for line in out.splitlines() if "Worst" in line)
    for group in record["groups"]:
        assert group["worst_error"] > group["relative_error"]
        row = next(line for line in out.splitlines() if line.strip().startswith(group["name"]))
        told = row[: header.index("Worst") + 5].split()[-1]
        assert float(told) == pytest.approx(group["worst_error"], rel=0.01)
    help = " ".join(lotr("convert", "--help-all")[1].replace("│", " ").split())
    assert re.search(r"--rel-error .{0,60}each group", help)
    assert re.search(r"--each-layer .{0,60}every layer", help)


def test_updates_and_all_else_are_told_apart(lotr, tmp_path):
    head = {"score.weight": np.ones((400, 3), np.float32)}
    source = history(tmp_path / "run", 500, extras=head)[0]
    asked = ("convert", source, "--rel-error", "0.3", "--force", "-o", "a.safetensors")
    record, (_, out, _) = of_json(lotr(*asked, "--json")), lotr(*asked)
    updates = sum(group["bytes_after"] for group in record["groups"])
    rest = (tmp_path / "a.safetensors").stat().st_size - updates
    assert rest > 4800
    assert f"{rest / 1000:.2f}"[:3] in re.findall(r", ([\d.]+) kB of it no updates", out)[0]
    assert f"-> {updates / 1000:.2f}"[:6] in re.findall(r"Updates .*", out)[0]


def test_several_adapters_are_called_adapters_and_end_with_their_bank(lotr, tmp_path):
    history(tmp_path / "run", 500, 1000, 2000)
    _, out, _ = lotr("analyze", tmp_path / "run", "--rel-error", "0.1")
    verdict = " ".join(out.split("\n\n")[-1].split())
    assert "adapters" in verdict
    assert "these layers" not in out
    assert re.search(r"Next lotr bank make (\S+run/checkpoint-\d+ ){3}--rel-error 0.1 -o", verdict)


def test_an_export_is_as_large_as_any_lora_of_its_rank(lotr, tmp_path):
    history(tmp_path / "run", 500, 1000, 2000)
    lotr("bank", "make", tmp_path / "run", "--rel-error", "0.01", "-o", "b.safetensors")
    lotr("bank", "export", "b.safetensors", "checkpoint-500", "-o", "out")
    adapter = lt.load_adapter("out")
    rank = adapter.config["r"]
    each = [rank * sum(module.shape) for module in adapter.modules]
    assert rank >= RANK
    assert adapter.parameters == sum(each) == 2 * sum(rank * sum(s) for s in SHAPES.values())


def test_a_place_that_cannot_be_written_is_not_taken_for_a_full_disk(lotr, tmp_path):
    source = stranger(tmp_path / "adapter", 1)
    (tmp_path / "file").write_text("")
    for place in ("/proc/x.safetensors", tmp_path / "file" / "x.safetensors"):
        status, _, err = lotr("convert", source, "--rel-error", "0.1", "-o", place)
        assert status == 1
        assert "free some space" not in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_first_pages_lead_with_runs_training_and_algebra(page):
    text = (HERE / page).read_text().lower()
    places = [text.index(word) for word in ("bank make", "train", "algebra")]
    assert places == sorted(places)
    assert not re.search(r"does not train|one adapter at a time|never trains", text)
