"""LoTR folders of PEFT through the program: written by convert, read by every command."""

import json
import shutil
from pathlib import Path

import pytest

import lotr_tn
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


def test_the_default_name_and_an_existing_folder(lotr, folder, tmp_path):
    assert lotr("convert", "lora", "--rank", "4", "--to", "lotr-peft", "--quiet")[0] == 0
    assert (tmp_path / "lora-lotr-peft" / "adapter_config.json").is_file()
    before = (tmp_path / "made" / "adapter_model.safetensors").read_bytes()
    status, _, err = lotr("convert", "lora", "--rank", "4", "--to", "lotr-peft", "-o", "made")
    assert status == 1
    assert "made exists" in err
    assert (tmp_path / "made" / "adapter_model.safetensors").read_bytes() == before
