"""Forms that the library does not know, as methods of PEFT: from training to the exported LoRA."""

import json
import warnings
from dataclasses import dataclass

import pytest
import torch
from peft import PeftConfig

import lotr_tn as lt
import lotr_tn.nn as ln
from lotr_tn.errors import OptionError
from lotr_tn.peft import FormConfig, entered
from tests.files.peft_models import TOKENS, bert, llama, logits, quiet_peft, seeded
from tests.nn.blocks import shake
from tests.nn.own_forms import Alone, Sited
from tests.peft_method.test_peft import keys, reload, save


@entered
@dataclass
class SitedConfig(FormConfig):
    form = Sited


@entered
@dataclass
class AloneConfig(FormConfig):
    form = Alone


CASES = {
    "sited": (SitedConfig, bert, ["query", "value", "word_embeddings"]),
    "alone": (AloneConfig, llama, ["q_proj", "v_proj", "down_proj"]),
}


def config(name, **more):
    made, _, targets = CASES[name]
    return made(target_modules=targets, options={"rank": 2}, group_by="shape", **more)


def trained(name, **more):
    """A model that was trained for three steps, and the losses."""
    build = CASES[name][1]
    adapted = quiet_peft(seeded(build), config(name, **{"alpha": 3.0} | more)).eval()
    base = logits(seeded(build))
    torch.testing.assert_close(logits(adapted), base, atol=1e-6, rtol=1e-6)
    shake(adapted, size=0.1)
    optimiser = torch.optim.SGD(ln.parameter_groups(adapted, lr=0.05))
    losses = []
    for _ in range(3):
        loss = adapted(input_ids=TOKENS)[0].square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < losses[0]
    return adapted, base


@pytest.mark.parametrize("name", CASES)
def test_from_training_to_an_exported_lora(name, tmp_path):
    build = CASES[name][1]
    adapted, base = trained(name, dropout=0.1)
    found = logits(adapted)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), base)
    folder = save(adapted, tmp_path / "adapter")
    for more in ({}, {"low_cpu_mem_usage": True}):
        loaded = reload(build, folder, **more)
        assert torch.equal(logits(loaded), found)
        assert len({id(x.form_of("default")) for x in ln.lotr_layers(loaded).values()}) == len(
            ln.shared_factors(loaded)
        )
    torch.save(loaded, tmp_path / "whole.pt")
    assert torch.equal(logits(torch.load(tmp_path / "whole.pt", weights_only=False)), found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(logits(loaded.merge_and_unload()), found, atol=1e-5, rtol=1e-5)

    adapter = lt.load_adapter(folder)
    for group, stack in ln.stacks_of(adapted).items():
        own = adapter.groups[group].stack
        assert type(own) is type(stack)
        torch.testing.assert_close(
            torch.as_tensor(lt.to_dense(own)), lt.to_dense(stack), atol=1e-6, rtol=1e-5
        )
    lt.save_adapter(adapter, tmp_path / "native.lotr.safetensors")
    for kept in (adapter, lt.load_adapter(tmp_path / "native.lotr.safetensors")):
        lt.save_adapter(lt.to_lora(kept).adapter, tmp_path / "lora", force=True)
        exported = reload(build, tmp_path / "lora")
        torch.testing.assert_close(logits(exported), found, atol=1e-5, rtol=1e-5)


def test_keys_of_a_form(tmp_path):
    """What a group shares is there once; embeddings are told apart, with or without own parts."""
    stored = keys(save(trained("sited")[0], tmp_path / "sited"))
    assert set(stored) == {
        f"base_model.sited_{kind}shared.{group}.{name}"
        for kind, group in (("", "32x32"), ("embedding_", "32x61"))
        for name in ("a", "b", "weights")
    }
    stored = keys(save(trained("alone")[0], tmp_path / "alone"))
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    assert len(stored) == 3 * 3 * 2
    assert stored[f"{prefix}.alone_up"] == (32, 2)


def test_what_was_taken_out_of_the_base_survives_the_file(tmp_path):
    build = CASES["sited"][1]
    adapted, base = trained("sited", init="principal", alpha=0.01)
    found = logits(adapted)
    loaded = reload(build, save(adapted, tmp_path / "adapter"))
    assert torch.equal(logits(loaded), found)
    with loaded.disable_adapter():
        torch.testing.assert_close(logits(loaded), base, atol=1e-5, rtol=1e-5)
    lt.save_adapter(lt.to_lora(lt.load_adapter(tmp_path / "adapter")).adapter, tmp_path / "lora")
    exported = reload(build, tmp_path / "lora")
    torch.testing.assert_close(logits(exported), found, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(loaded.unload()), base, atol=1e-5, rtol=1e-5)


def test_several_adapters_of_one_form(tmp_path):
    adapted, base = trained("alone")
    one = logits(adapted)
    adapted.add_adapter("second", config("alone", train="own", init="random", seed=4))
    adapted.set_adapter("second")
    assert not torch.allclose(logits(adapted), one, atol=1e-3)
    adapted.set_adapter("default")
    assert torch.equal(logits(adapted), one)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.delete_adapter("second")
    assert adapted.get_model_status().available_adapters == ["default"]
    assert adapted.get_model_status().peft_types == {"default": "ALONE"}
    torch.testing.assert_close(logits(adapted.unload()), base)


def test_configurations_of_a_form(tmp_path):
    made = config("sited", alpha=2.0, group_options={"32x32": {"rank": 3}})
    made.save_pretrained(tmp_path)
    again = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(again, SitedConfig)
    assert again.to_dict() == made.to_dict()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "SITED"
    adapted = quiet_peft(seeded(bert), made)
    assert {s.ranks for s in ln.stacks_of(adapted).values()} == {(3, 3), (2, 2)}
    with pytest.raises(OptionError, match="bias must be none, all, sited_only; found 'lotr_only'"):
        config("sited", bias="lotr_only")
    with pytest.raises(OptionError, match="The sited CP adapts modules"):
        config("sited", target_parameters=["x"])
    with pytest.raises(OptionError, match="train must be all, own or shared; found 'cores'"):
        config("sited", train="cores")
