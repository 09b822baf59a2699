"""What is written can be read again: names that cannot be are refused, and nothing is written."""

import dataclasses
import json

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.adapters import Layout, LoRAModule, Target
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.errors import LotrError
from lotr_tn.files.dialects.lotr_peft import load_lotr_peft, save_lotr_peft

CONFIG = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q"]})
TENSOR = RawTensor.of_finite(np.ones(3, np.float32), "x")


def lora_of(*names):
    rng = np.random.default_rng(0)
    modules = tuple(
        LoRAModule(Target(name, Layout(), 2), rng.random((5, 2)), rng.random((2, 4)))
        for name in names
    )
    return lt.LoRAAdapter(modules, {}, json.loads(CONFIG), CONFIG)


def lotr_of(*names, **changed):
    made = lt.convert_adapter(lora_of(*names), lt.FixedRank(2)).adapter
    return dataclasses.replace(made, **changed)


def refused(save, target):
    with pytest.raises(LotrError) as caught:
        save()
    assert str(target) in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not target.exists()


@pytest.mark.parametrize("name", [".q", "q.lora_B.x", "module.q", "lora_A", "q.lora_A"])
def test_strange_names_of_modules_come_back(name, tmp_path):
    lt.save_adapter(lt.to_lora(lotr_of(name, "model.v")).adapter, tmp_path / "peft")
    again = lt.load_adapter(tmp_path / "peft")
    assert isinstance(again, lt.LoRAAdapter)
    assert {module.target.name for module in again.modules} == {name, "model.v"}


@pytest.mark.parametrize("name", ["", "a\nb", "q\n"])
def test_names_that_peft_cannot_have(name, tmp_path):
    exported = lt.to_lora(lotr_of(name, "model.v")).adapter
    refused(lambda: lt.save_adapter(exported, tmp_path / "peft"), tmp_path / "peft")


@pytest.mark.parametrize(
    "key",
    [
        "", "(?R)", "x.weight", "base_model.model.x.lora_A.weight",
        "base_model.model.q.lora_A.weight",
        "base_model.model.q.lora_magnitude_vector", "base_model.model.x.ia3_l",
    ],
)  # fmt: skip
def test_names_of_other_tensors(key, tmp_path):
    adapter = lotr_of("q", extras={key: TENSOR})
    exported = lt.to_lora(adapter).adapter
    refused(lambda: lt.save_adapter(exported, tmp_path / "peft"), tmp_path / "peft")


def test_settings_that_are_not_read(tmp_path):
    config = json.dumps(json.loads(CONFIG) | {"use_dora": True})
    exported = lt.to_lora(lotr_of("q", config_text=config)).adapter
    refused(lambda: lt.save_adapter(exported, tmp_path / "peft"), tmp_path / "peft")


@pytest.mark.parametrize(
    "key", ["", "(?R)", "base_model.model.q.lotr_core", "base_model.lotr_factors.q.u"]
)
def test_names_beside_a_trainable_lotr(key, tmp_path):
    adapter = lotr_of("q", extras={key: TENSOR})
    refused(lambda: save_lotr_peft(adapter, tmp_path / "peft"), tmp_path / "peft")
    save_lotr_peft(lotr_of("q", extras={"base_model.model.head.weight": TENSOR}), tmp_path / "peft")
    assert list(load_lotr_peft(tmp_path / "peft").extras) == ["base_model.model.head.weight"]
