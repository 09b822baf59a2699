"""LoTR folders of PEFT through the program: written by convert, read by every command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import lotr_tn
from lotr_tn.decompose import regauge
from lotr_tn.files.dialects.lotr_peft import save_lotr_peft
from tests.cli import runs
from tests.cli.conftest import of_json

DEMO = Path(lotr_tn.__file__).parent / "demo" / "adapter"


@pytest.fixture
def folder(lotr, tmp_path):
    """A LoTR folder made of the demo's LoRA, and what the conversion said."""
    shutil.copytree(DEMO, tmp_path / "lora")
    made = of_json(
        lotr("convert", "lora", "--rel-error", "0.1", "--to", "lotr-peft", "-o", "made", "--json")
    )
    return tmp_path / "made", made


def test_it_is_a_folder_of_peft(folder):
    path, made = folder
    config = json.loads((path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LOTR"
    assert made["destination"] == "made"
    assert made["bytes_after"] == (path / "adapter_model.safetensors").stat().st_size


def test_every_command_reads_it(lotr, folder, tmp_path):
    _, made = folder
    seen = of_json(lotr("inspect", "made", "--json"))
    assert seen["format"] == "lotr"
    assert seen["params"] == made["params_after"]
    apart = of_json(lotr("compare", "lora", "made", "--json"))
    assert apart["relative_error"] == pytest.approx(made["relative_error"], rel=1e-4)
    assert lotr("export", "made", "-o", "again", "--quiet")[0] == 0
    same = of_json(lotr("compare", "made", "again", "--json"))
    assert same["relative_error"] < 1e-6
    analysed = of_json(
        lotr("analyze", "made", "--rel-error", "0.2", "--group-by", "kind", "--json")
    )
    assert len(analysed["groups"]) == len(made["groups"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("format", ["lotr", "lotr-low-rank", "truncated"])
def test_what_is_told_is_what_is_written(lotr, tmp_path, dtype, format):
    """Of 16 bits, too: nothing is rounded a second time."""
    runs.checkpoint(tmp_path / "lora", 700, extras={"head.weight": np.ones((3, 40), np.float32)})
    asked = ["--rel-error", "0.05", "--format", format, "--dtype", dtype, "--json"]
    told = of_json(lotr("convert", "lora", *asked, "--to", "lotr-peft", "-o", "made"))
    apart = of_json(lotr("compare", "lora", "made", "--json"))
    assert apart["relative_error"] == pytest.approx(told["relative_error"], rel=1e-6, abs=1e-6)
    seen = of_json(lotr("inspect", "made", "--json"))
    for group, held in zip(told["groups"], seen["groups"], strict=True):
        assert group["params_after"] == held["params"]
        assert group["ranks"] == held["ranks"]
        assert group["format"] == held["format"] == "lotr"
    assert told["params_after"] == seen["params"]
    assert told["dtype"] == seen["dtype"] == (dtype if format == "lotr" else "float32")
    assert 0 < told["bytes_after"] - told["bytes_updates_after"] - 4 * 3 * 40 < 2000


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_columns_of_16_bits_are_balanced_exactly(tmp_path, dtype):
    lora = lotr_tn.load_adapter(runs.checkpoint(tmp_path / "lora", 700))
    native = lotr_tn.convert_adapter(lora, lotr_tn.RelativeError(0.05), dtype=dtype).adapter
    save_lotr_peft(native, tmp_path / "made")
    read = lotr_tn.load_adapter(tmp_path / "made")
    assert read.dtype == dtype
    for name, group in native.groups.items():
        wanted, found = (
            lotr_tn.to_dense(lotr_tn.astype(one, "float64"))
            for one in (group.stack, read.groups[name].stack)
        )
        assert np.allclose(wanted, found, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())
        balanced = regauge(lotr_tn.astype(group.stack, "float64"), "balanced")
        for side in "uv":
            sizes, columns = (
                np.linalg.norm(np.asarray(getattr(one, side), np.float64))
                for one in (balanced, read.groups[name].stack)
            )
            assert 0.7 < columns / sizes < 1.42


def test_the_default_name_and_an_existing_folder(lotr, folder, tmp_path):
    assert lotr("convert", "lora", "--rank", "4", "--to", "lotr-peft", "--quiet")[0] == 0
    assert (tmp_path / "lora-lotr-peft" / "adapter_config.json").is_file()
    before = (tmp_path / "made" / "adapter_model.safetensors").read_bytes()
    status, _, err = lotr("convert", "lora", "--rank", "4", "--to", "lotr-peft", "-o", "made")
    assert status == 1
    assert "made exists" in err
    assert (tmp_path / "made" / "adapter_model.safetensors").read_bytes() == before
