"""What people know from LoRA, and other ways into a model and out of it."""

import copy
import warnings
from dataclasses import fields

import pytest
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import AutoModelForCausalLM, RobertaConfig, RobertaForSequenceClassification

import lotr_tn as lt
from lotr_tn.errors import OptionError, UnsupportedError
from lotr_tn.files.dialects.lotr_peft import load_lotr_peft, save_lotr_peft
from lotr_tn.peft import LotrConfig
from lotr_tn.peft.config import kind
from tests.files.peft_models import llama, logits, quiet_peft, seeded
from tests.peft_method.test_peft import lotr, reload, save


def tied():
    """A model whose head is its embedding."""
    model = llama()
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def roberta():
    return RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=40,
        )
    )  # fmt: skip


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "unknown"])
def test_transformers_own_loader_is_refused(registered, tmp_path, monkeypatch):
    base = seeded(llama)
    base.save_pretrained(tmp_path / "base")
    adapted = lotr(llama, ["q_proj", "v_proj"])
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    folder = save(adapted, tmp_path / "adapter")
    if not registered:  # as where lotr_tn.peft was not imported
        monkeypatch.delitem(PEFT_TYPE_TO_CONFIG_MAPPING, kind("LOTR"))
    error = UnsupportedError if registered else KeyError
    said = "take peft.PeftModel.from_pretrained" if registered else "LOTR"
    wanted = logits(base)
    with pytest.raises(error, match=said):
        base.load_adapter(folder)
    with pytest.raises(error, match=said):
        AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(base), wanted)
    if registered:
        assert torch.equal(logits(reload(llama, folder)), logits(adapted))
        config = adapted.peft_config["default"]  # what load_adapter takes in place of a folder
        state = get_peft_model_state_dict(adapted)
        with pytest.raises(error, match=said):
            base.load_adapter(peft_config=copy.copy(config), adapter_state_dict=state)
        with pytest.raises(error, match=said):
            inject_adapter_in_model(PeftConfig.from_pretrained(folder), base)


def test_transformers_own_loader_loads_the_export(tmp_path):
    adapted = lotr(llama, ["q_proj", "v_proj"], lotr_alpha=5)
    folder = save(adapted, tmp_path / "adapter")
    lt.save_adapter(lt.to_lora(load_lotr_peft(folder)).adapter, tmp_path / "lora")
    base = seeded(llama)
    base.load_adapter(tmp_path / "lora")
    torch.testing.assert_close(logits(base.eval()), logits(adapted), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_merging_into_tied_weights_is_refused(target):
    adapted = lotr(tied, ["q_proj", target], group_by="kind", r=2)
    wanted = logits(adapted)
    for merge in (adapted.merge_adapter, adapted.merge_and_unload):
        with pytest.raises(OptionError, match=rf"{target} is also .* untie them first"):
            merge()
    assert torch.equal(logits(adapted), wanted)


def test_other_layers_of_a_tied_model_are_merged():
    adapted = lotr(tied, ["q_proj"], r=2)
    quiet_add(adapted, "head", LotrConfig(r=2, target_modules=["lm_head"]))
    wanted = logits(adapted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.merge_adapter()
        adapted.unmerge_adapter()
        with pytest.raises(OptionError, match="untie them first"):
            adapted.merge_and_unload(adapter_names=["head"])
        merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), wanted, atol=1e-5, rtol=1e-5)


def quiet_add(adapted, name, config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.add_adapter(name, config)


def test_heads_of_several_layers_are_unloaded():
    adapted = lotr(roberta, ["query"], task_type="SEQ_CLS")
    found = logits(adapted)
    unloaded = copy.deepcopy(adapted).unload()
    base = seeded(roberta)
    base.classifier.load_state_dict(unloaded.classifier.state_dict())  # it stays, as with LoRA
    assert torch.equal(logits(unloaded), logits(base))
    with adapted.disable_adapter():
        assert not torch.allclose(logits(unloaded), logits(adapted))
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), found, atol=1e-5, rtol=1e-5)
    assert type(merged.classifier) is type(unloaded.classifier)


def test_trainable_tokens_survive_files_and_exports(tmp_path):
    adapted = lotr(llama, ["q_proj"], trainable_token_indices={"embed_tokens": [1, 5]})
    found = logits(adapted)
    bare = lotr(llama, ["q_proj"])
    assert not torch.allclose(found, logits(bare), atol=1e-3)
    folder = save(adapted, tmp_path / "adapter")
    loaded = reload(llama, folder)
    assert torch.equal(logits(loaded), found)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), found, atol=1e-5, rtol=1e-5)
    lt.save_adapter(lt.to_lora(load_lotr_peft(folder)).adapter, tmp_path / "lora")
    torch.testing.assert_close(
        logits(reload(llama, tmp_path / "lora")), found, atol=1e-5, rtol=1e-5
    )
    save_lotr_peft(load_lotr_peft(folder), tmp_path / "again")
    torch.testing.assert_close(
        logits(reload(llama, tmp_path / "again")), found, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    "saved", [{"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [1, 5]}]
)
def test_what_is_tied_stays_tied(saved, tmp_path):
    adapted = lotr(tied, ["q_proj"], ensure_weight_tying=True, **saved)
    found = logits(adapted)
    folder = save(adapted, tmp_path / "adapter", save_embedding_layers="auto")
    assert torch.equal(logits(reload(tied, folder)), found)


def test_an_adapted_embedding_cannot_be_tied():
    base = seeded(tied)
    config = LotrConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=True)
    with pytest.raises(OptionError, match="cannot tie the update of an embedding to lm_head"):
        quiet_peft(base, config)


def test_weighted_sums_are_made_of_files():
    adapted = lotr(llama, ["q_proj"])
    with pytest.raises(OptionError, match=r"with lotr merge .* it gives a LoRA"):
        adapted.add_weighted_adapter(["default"], [1.0], "both")


@pytest.mark.parametrize(
    "name", sorted({f.name for f in fields(LoraConfig)} - {f.name for f in fields(LotrConfig)})
)
def test_settings_that_lora_alone_has_are_named(name):
    like = {
        "lora_alpha": "lotr_alpha", "lora_dropout": "lotr_dropout", "rank_pattern": "group_ranks",
        "init_lora_weights": "init",
    }  # fmt: skip
    said = f"the setting like it is {like[name]}" if name in like else "leave it out"
    with pytest.raises(OptionError, match=f"LotrConfig has no {name}, which is LoRA's; {said}"):
        LotrConfig(**{name: None})
