"""What the fields of a LoRA's configuration mean when adapters become one or change their form."""

import json
from dataclasses import fields

import numpy as np
import pytest
from peft import LoraConfig

import lotr_tn as lt
from lotr_tn.adapters import Layout, LoRAModule, Target, config_fields
from lotr_tn.errors import CheckpointError, UnsupportedError
from lotr_tn.files.dialects.lotr_peft import save_lotr_peft
from lotr_tn.files.peft_config import _REFUSED

SETTINGS = {each.name for each in fields(LoraConfig)}
TABLES = {
    name: set(getattr(config_fields, name))
    for name in ("INSIDE", "TARGETS", "MEANING", "OTHER_TENSORS", "MODEL", "FREE")
}
VALUES = {  # what no other value is like
    "alora_invocation_tokens": [5, 6], "ensure_weight_tying": True, "bias": "lora_only",
    "modules_to_save": ["head"], "trainable_token_indices": {"embed": [3]}, "revision": "v2",
    "task_type": "SEQ_CLS", "auto_mapping": {"base_model_class": "A"}, "inference_mode": False,
    "fan_in_fan_out": True, "lora_dropout": 0.25, "init_lora_weights": False, "loftq_config": {},
    "eva_config": {"rho": 3.0}, "corda_config": {"cache_file": "x"}, "lora_ga_config": {"a": 1},
    "megatron_config": {"a": 2}, "megatron_core": "mine.core", "qalora_group_size": 8,
    "peft_version": "0.1", "base_model_name_or_path": "base", "runtime_config": {"a": 3},
    "target_parameters": ["experts.down_proj"],
}  # fmt: skip


def adapter(seed=0, **settings):
    rng = np.random.default_rng(seed)
    modules = tuple(
        LoRAModule(
            Target(f"model.layers.{i}.q_proj", Layout(), 3),
            rng.standard_normal((7, 3)).astype(np.float32),
            rng.standard_normal((3, 5)).astype(np.float32),
        )
        for i in range(2)
    )
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 3, "target_modules": ["q_proj"]} | settings
    return lt.LoRAAdapter(modules, {}, config, json.dumps(config))


def test_every_field_of_peft_is_in_one_table():
    assert {name for name in SETTINGS if sum(name in t for t in TABLES.values()) != 1} == set()
    assert set(_REFUSED) <= TABLES["MEANING"]
    assert set(VALUES) == SETTINGS - TABLES["INSIDE"] - TABLES["TARGETS"] - set(_REFUSED) - {
        "peft_type"
    }


@pytest.mark.parametrize("field", [*config_fields.MEANING, "a_field_of_next_year"])
def test_what_changes_an_update_must_agree(field):
    value = VALUES.get(field, {"any": 1})
    with_it, without, also = adapter(1, **{field: value}), adapter(2), adapter(3, **{field: value})
    for first, second in ((with_it, without), (without, with_it)):
        for more in ({}, {"extras_from": "none"}, {"extras_from": "a"}, {"any_base": True}):
            with pytest.raises(CheckpointError, match=f"a and b differ in {field}") as error:
                lt.merge_adapters({"a": first, "b": second}, **more)
            assert len(str(error.value)) < 500
    merged = lt.merge_adapters({"a": with_it, "b": also}).adapter
    assert merged.config[field] == value
    # what is weighed with zero does not take part, unless its configuration is asked for
    mixed = {"a": with_it, "b": without}
    assert field not in lt.merge_adapters(mixed, {"a": 0, "b": 1}).adapter.config
    with pytest.raises(CheckpointError, match=f"differ in {field}"):
        lt.merge_adapters(mixed, {"a": 0, "b": 1}, extras_from="a")


@pytest.mark.parametrize("field", config_fields.OTHER_TENSORS)
def test_fields_of_other_tensors_follow_whose_are_kept(field):
    both = {"a": adapter(1, **{field: VALUES[field]}), "b": adapter(2)}
    with pytest.raises(CheckpointError, match=rf"differ in {field} .*extras_from"):
        lt.merge_adapters(both)
    kept = [lt.merge_adapters(both, extras_from=x).adapter.config.get(field) for x in "ab"]
    unset = config_fields.OTHER_TENSORS[field]
    assert kept[0] == VALUES[field]
    assert kept[1] in (unset, None)
    assert lt.merge_adapters(both, extras_from="none").adapter.config[field] == unset


def test_models_must_agree_where_both_name_one():
    def merged(field, one, other, **more):
        pair = {"a": adapter(1, **{field: one}), "b": adapter(2, **{field: other})}
        return lt.merge_adapters(pair, **more)

    for field in config_fields.MODEL:
        merged(field, "CAUSAL_LM", None)
        with pytest.raises(CheckpointError, match=f"differ in {field}"):
            merged(field, "CAUSAL_LM", "SEQ_CLS")
    merged("revision", "main", None)
    merged("revision", "v1", "v2", any_base=True)
    assert (
        merged("task_type", "CAUSAL_LM", "SEQ_CLS", extras_from="b").adapter.config["task_type"]
        == "SEQ_CLS"
    )
    saved = {"modules_to_save": ["score", "head"]}, {"modules_to_save": ["head", "score"]}
    lt.merge_adapters({"a": adapter(1, **saved[0]), "b": adapter(2, **saved[1])})


@pytest.mark.parametrize("field", sorted(TABLES["FREE"] - {"peft_type"}))
def test_how_adapters_were_trained_may_differ(field):
    names = {"base_model_name_or_path"} & {field}
    value = VALUES[field]
    lt.merge_adapters({"a": adapter(1, **{field: value}), "b": adapter(2)}, any_base=bool(names))


@pytest.mark.parametrize("field", sorted(VALUES))
def test_conversions_and_exports_keep_every_setting(field, tmp_path):
    source = adapter(1, **{field: VALUES[field]})
    cut = lt.convert_adapter(source, 2).adapter
    assert cut.config_text == source.config_text
    lt.save_adapter(cut, tmp_path / "a.lotr.safetensors")
    back = lt.to_lora(lt.load_adapter(tmp_path / "a.lotr.safetensors")).adapter
    lt.save_adapter(back, tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config[field] == VALUES[field]
    known = {**source.config, "bias": "none", "fan_in_fan_out": False, "inference_mode": True}
    changed = TABLES["INSIDE"] | TABLES["TARGETS"]
    assert {k: v for k, v in config.items() if k not in changed | {field}} == {
        k: v for k, v in known.items() if k not in changed | {field}
    }


@pytest.mark.parametrize("start", ["gaussian", "eva", "orthogonal", "mica"])
def test_starts_that_ask_for_a_rank_are_over(start):
    cut = lt.convert_adapter(adapter(1, init_lora_weights=start), 2).adapter
    kept = lt.to_lora(cut).adapter.config["init_lora_weights"]
    assert kept == (start if start in ("gaussian", "eva") else True)


@pytest.mark.parametrize("field", sorted(set(config_fields.MEANING) - {"ensure_weight_tying"}))
def test_a_form_that_cannot_say_it_is_refused(field, tmp_path):
    cut = lt.convert_adapter(adapter(1, **{field: [5, 6]}), 2).adapter
    with pytest.raises(UnsupportedError, match=rf"sets {field} .* LoTR in PEFT cannot say"):
        save_lotr_peft(cut, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
