"""LoTR through PEFT: everything that PEFT does with its own methods."""

import copy
import json
import re
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import lotr_tn as lt
import lotr_tn.nn as ln
from lotr_tn.errors import CheckpointError, FormatError, LotrError, OptionError, RankError
from lotr_tn.files.dialects.contents import Contents
from lotr_tn.files.dialects.lotr_peft import load_lotr_peft, save_lotr_peft
from lotr_tn.files.dialects.table import dialect_of
from lotr_tn.peft import LotrConfig
from tests.files.peft_models import (
    TOKENS,
    adapt,
    bert,
    gpt2,
    llama,
    logits,
    quiet_peft,
    seeded,
)
from tests.nn.blocks import Model, pairs, shake

MODELS = {
    "llama": (llama, ["q_proj", "v_proj", "o_proj", "gate_proj"]),
    "bert": (bert, ["query", "value", "word_embeddings"]),
    "gpt2": (gpt2, ["c_attn", "c_proj"]),
}


def lotr(build, targets, *, seed=1, **more):
    """A model adapted by LoTR, all of whose parts have values."""
    config = LotrConfig(**{"r": (3, 2), "group_by": "shape"} | more, target_modules=targets)
    return shake(quiet_peft(seeded(build), config), seed).eval()


def save(model, folder, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **{"save_embedding_layers": False} | more)
    return folder


def reload(build, folder, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        warnings.filterwarnings("ignore", message=".*requested `ensure_weight_tying`.*")
        return PeftModel.from_pretrained(seeded(build), folder, **more).eval()


def keys(folder):
    with safe_open(folder / "adapter_model.safetensors", "np") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("name", MODELS)
def test_from_start_to_merged_model(name, tmp_path, capsys):
    build, targets = MODELS[name]
    base = logits(seeded(build))
    config = LotrConfig(r=(3, 2), target_modules=targets, group_by="shape", lotr_alpha=5)
    adapted = quiet_peft(seeded(build), config).eval()
    assert torch.equal(logits(adapted), base)
    adapted.print_trainable_parameters()
    counted = int(
        re.search(r"trainable params: ([\d,]+)", capsys.readouterr().out)[1].replace(",", "")
    )
    wanted = sum(lt.parameter_count(stack) for stack in ln.stacks_of(adapted).values())
    assert counted == wanted == ln.parameter_count(adapted)

    shake(adapted)
    found = logits(adapted)
    assert not torch.allclose(found, base, atol=1e-3)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), base)
    folder = save(adapted, tmp_path / "adapter")
    stored = keys(folder)
    assert sum(np.prod(shape) for shape in stored.values()) == wanted
    assert sum(".lotr_core" in key or ".lotr_embedding_core" in key for key in stored) == len(
        ln.lotr_layers(adapted)
    )
    for more in ({}, {"low_cpu_mem_usage": True}):
        loaded = reload(build, folder, **more)
        assert torch.equal(logits(loaded), found)
        assert len(pairs(loaded)) == len(pairs(adapted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(logits(copy.deepcopy(loaded).unload()), base)
        loaded.merge_adapter()
        torch.testing.assert_close(logits(loaded), found, atol=1e-5, rtol=1e-5)
        loaded.unmerge_adapter()
        torch.testing.assert_close(logits(loaded), found, atol=1e-5, rtol=1e-5)
        merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merged), found, atol=1e-5, rtol=1e-5)
    assert not ln.lotr_layers(merged)


@pytest.mark.parametrize("name", MODELS)
def test_exported_lora_gives_the_same_logits(name, tmp_path):
    build, targets = MODELS[name]
    adapted = lotr(build, targets, lotr_alpha=3)
    folder = save(adapted, tmp_path / "adapter")
    assert dialect_of(Contents(folder)).name == "lotr-peft"
    adapter = load_lotr_peft(folder)
    for group, stack in ln.stacks_of(adapted).items():
        own = adapter.groups[group].stack
        assert own.shape == stack.shape
        order = [
            list(ln.lotr_layers(adapted)).index(f"base_model.model.{t.name}")
            for t in adapter.groups[group].targets
        ]
        assert order == sorted(order)
        np.testing.assert_allclose(own.core, stack.core.numpy(), rtol=1e-6)
    lt.save_adapter(lt.to_lora(adapter).adapter, tmp_path / "lora")
    exported = reload(build, tmp_path / "lora")
    torch.testing.assert_close(logits(exported), logits(adapted), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_lora_converted_at_full_rank(name, tmp_path):
    build, targets = MODELS[name]
    lora = adapt(build, tmp_path / "lora", r=4, lora_alpha=6, target_modules=targets)
    adapter = lt.load_adapter(tmp_path / "lora")
    full = lt.convert_adapter(adapter, lt.RelativeError(0), dtype="float32").adapter
    save_lotr_peft(full, tmp_path / "full", force=False)
    loaded = reload(build, tmp_path / "full", is_trainable=True)
    torch.testing.assert_close(logits(loaded), logits(lora), atol=1e-5, rtol=1e-5)
    # and the other way to the same: a path as the start
    continued = quiet_peft(
        seeded(build),
        LotrConfig(
            r={"llama": 16, "bert": 24}[name],
            target_modules=["q_proj"] if name == "llama" else ["query", "value"],
            group_by="shape", init=str(tmp_path / "lora"), lotr_alpha=3,
        ),
    )  # fmt: skip
    own = {m.target.name: m.factors() for m in adapter.modules}
    for path, layer in ln.lotr_layers(continued).items():
        up, down = own[path.removeprefix("base_model.model.")]
        np.testing.assert_allclose(layer.update_of("default"), up @ down, atol=1e-5)
    assert continued.peft_config["default"].init == "balanced"  # the file will hold it


def test_training_cores_only_heals_a_truncated_start(tmp_path):
    lora = adapt(llama, tmp_path / "lora", r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    wanted = logits(lora)
    cut = lt.convert_adapter(lt.load_adapter(tmp_path / "lora"), 3).adapter
    save_lotr_peft(cut, tmp_path / "cut", force=False)
    loaded = reload(llama, tmp_path / "cut", is_trainable=True)
    ln.train_only(loaded, "cores")
    trained = {n for n, p in loaded.named_parameters() if p.requires_grad}
    assert len(trained) == 6
    assert all(".lotr_core." in n for n in trained)
    optimiser = torch.optim.Adam(ln.parameter_groups(loaded, lr=0.01))
    losses = []
    for _ in range(15):
        loss = (loaded(input_ids=TOKENS).logits - wanted).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.8 * losses[0]


def test_several_adapters(tmp_path):
    adapted = lotr(llama, ["q_proj", "v_proj"])
    one = logits(adapted)
    config = LotrConfig(r=4, target_modules=["q_proj", "k_proj"], train="cores")
    adapted.add_adapter("second", config)
    assert torch.equal(logits(adapted), one)
    assert ln.parameter_count(adapted, "second", trainable=True) == 0
    adapted.set_adapter("second")
    assert ln.parameter_count(adapted, trainable=True) == 6 * 16
    shake(adapted, 5)
    two = logits(adapted)
    assert not torch.allclose(one, two, atol=1e-3)
    folder = save(adapted, tmp_path / "both")
    assert not {key for key in keys(folder / "second") if "v_proj" in key}
    adapted.set_adapter("default")
    assert torch.equal(logits(adapted), one)
    with pytest.warns(UserWarning, match="Setting active adapter to second"):
        adapted.delete_adapter("default")
    assert torch.equal(logits(adapted), two)

    loaded = reload(llama, folder)
    loaded.load_adapter(folder / "second", "other", is_trainable=True)
    assert torch.equal(logits(loaded), one)
    loaded.set_adapter("other")
    assert torch.equal(logits(loaded), two)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, _ in loaded.named_parameters() if "lotr_core.other" in n
    }
    loaded.base_model.set_adapter(["default", "other"])
    both = logits(loaded)
    merged = loaded.merge_and_unload(adapter_names=["default", "other"])
    torch.testing.assert_close(logits(merged), both, atol=1e-5, rtol=1e-5)


def test_factors_stay_one_tensor_in_peft(tmp_path):
    adapted = lotr(llama, ["q_proj", "v_proj", "o_proj"])
    wanted = logits(adapted)
    torch.save(adapted, tmp_path / "whole.pt")
    for changed in (
        copy.deepcopy(adapted),
        adapted.to(torch.float64).to(torch.float32),
        torch.load(tmp_path / "whole.pt", weights_only=False),
    ):
        assert len(pairs(changed)) == 2
        torch.testing.assert_close(logits(changed), wanted)
    half = quiet_peft(seeded(llama).bfloat16(), LotrConfig(r=2, target_modules=["q_proj"]))
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    assert len(pairs(half)) == 1
    assert logits(half).dtype == torch.bfloat16
    assert torch.equal(logits(half), logits(seeded(llama).bfloat16()))


def targeted(model):
    return sorted(
        path.removeprefix("base_model.model.model.layers.") for path in ln.lotr_layers(model)
    )


def test_which_modules_are_targeted():
    def made(**more):
        return targeted(quiet_peft(seeded(llama), LotrConfig(r=2, **more)))

    assert made(target_modules=r".*[02]\.self_attn\.(q|k)_proj") == [
        f"{i}.self_attn.{kind}_proj" for i in (0, 2) for kind in "kq"
    ]
    some = made(target_modules=["q_proj"], layers_to_transform=[1])
    assert some == ["1.self_attn.q_proj"]
    assert made(target_modules=["q_proj"], layers_to_transform=2, layers_pattern="layers") == [
        "2.self_attn.q_proj"
    ]
    left = made(target_modules=["q_proj", "v_proj"], exclude_modules=["layers.0.self_attn.q_proj"])
    assert len(left) == 5
    assert "0.self_attn.q_proj" not in left
    assert len(made(target_modules="all-linear")) == 3 * 7
    assert made() == [f"{i}.self_attn.{kind}_proj" for i in range(3) for kind in "qv"]


def test_groups_in_peft():
    adapted = quiet_peft(
        seeded(llama),
        LotrConfig(
            r=2, target_modules=["q_proj", "o_proj", "v_proj"],
            group_by={"wide": ["q_proj", "o_proj"], "values": ["v_proj"]},
            group_ranks={"values": (4, 3)},
        ),
    )  # fmt: skip
    assert {n: f.ranks for n, f in ln.shared_factors(adapted).items()} == {
        "wide": (2, 2), "values": (4, 3),
    }  # fmt: skip
    config = adapted.peft_config["default"]
    again = quiet_peft(seeded(llama), config)  # a config that was used serves again
    assert len(pairs(again)) == 2
    other = LotrConfig(r=2, target_modules=["q_proj"])
    quiet_peft(seeded(llama), other)
    small = quiet_peft(Model(2), LotrConfig(r=2, target_modules=["q"], group_by="shape"))
    assert len(ln.lotr_layers(small)) == 2


def test_modules_to_save_and_biases(tmp_path):
    adapted = quiet_peft(
        seeded(bert),
        LotrConfig(
            r=2, target_modules=["query"], modules_to_save=["classifier"], bias="lotr_only",
            task_type="SEQ_CLS",
        ),
    )  # fmt: skip
    shake(adapted).eval()
    found = logits(adapted)
    folder = save(adapted, tmp_path / "adapter")
    query = "base_model.model.bert.encoder.layer.{}.attention.self.query.base_layer.bias"
    assert {k for k in keys(folder) if "lotr" not in k} == {
        "base_model.model.classifier.weight",
        "base_model.model.classifier.bias",
        *(query.format(i) for i in range(3)),
    }
    assert torch.equal(logits(reload(bert, folder)), found)
    adapter = load_lotr_peft(folder)
    assert len(adapter.extras) == 5
    config = json.loads(adapter.config_text)
    assert config["bias"] == "lora_only"
    assert "classifier" in config["modules_to_save"]


@pytest.mark.parametrize("init", ["principal", "weights", "reference", "zero-u"])
def test_starts_survive_the_file(init, tmp_path):
    base = logits(seeded(llama))
    config = LotrConfig(
        r=(5, 4), target_modules=["q_proj", "v_proj"], init=init, group_by="shape", lotr_alpha=9
    )
    adapted = quiet_peft(seeded(llama), config).eval()
    torch.testing.assert_close(logits(adapted), base, atol=1e-6, rtol=1e-6)
    shake(adapted, size=0.1)
    found = logits(adapted)
    with adapted.disable_adapter():
        torch.testing.assert_close(logits(adapted), base, atol=1e-6, rtol=1e-6)
    folder = save(adapted, tmp_path / "adapter")
    loaded = reload(llama, folder)
    assert torch.equal(logits(loaded), found)
    lt.save_adapter(lt.to_lora(load_lotr_peft(folder)).adapter, tmp_path / "lora")
    exported = reload(llama, tmp_path / "lora")
    torch.testing.assert_close(logits(exported), found, atol=1e-5, rtol=1e-5)
    unloaded = copy.deepcopy(loaded).unload()
    torch.testing.assert_close(logits(unloaded), base, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), found, atol=1e-5, rtol=1e-5)
    adapted.add_adapter("other", LotrConfig(r=1, target_modules=["q_proj"]))
    adapted.set_adapter("other")
    torch.testing.assert_close(logits(adapted), base, atol=1e-6, rtol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.delete_adapter("default")
    torch.testing.assert_close(logits(adapted), base, atol=1e-6, rtol=1e-6)


def test_config_round_trip(tmp_path):
    config = LotrConfig(
        r=(4, 2), target_modules=["b", "a"], group_by={"x": ["a", "b"]}, lotr_alpha=2.5
    )
    config.save_pretrained(tmp_path)
    again = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(again, LotrConfig)
    assert again.to_dict() == config.to_dict()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LOTR"


def test_converted_folder_is_small_and_complete(tmp_path):
    adapt(
        llama,
        tmp_path / "lora",
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj", "down_proj"],
    )
    adapter = lt.load_adapter(tmp_path / "lora")
    cut = lt.convert_adapter(adapter, lt.RelativeError(0.4), dtype="float32").adapter
    assert len({group.stack.ranks for group in cut.groups.values()}) > 1
    save_lotr_peft(cut, tmp_path / "lotr", force=False)
    back = load_lotr_peft(tmp_path / "lotr")
    assert back.parameters == cut.parameters
    for name, group in cut.groups.items():
        own = back.groups[name].stack
        assert float(lt.distance(own, group.stack) / lt.norm(group.stack)) < 1e-5
    loaded = reload(llama, tmp_path / "lotr")
    assert ln.parameter_count(loaded) == cut.parameters
    with pytest.raises(CheckpointError, match="exists; name another destination"):
        save_lotr_peft(cut, tmp_path / "lotr", force=False)


@pytest.mark.parametrize("alpha", [10**400, [1]])
def test_an_alpha_that_is_no_float_is_damage(tmp_path, alpha):
    adapt(llama, tmp_path / "lora", r=4, target_modules=["q_proj"])
    adapter = lt.load_adapter(tmp_path / "lora")
    cut = lt.convert_adapter(adapter, lt.RelativeError(0.4)).adapter
    save_lotr_peft(cut, tmp_path / "lotr", force=False)
    path = tmp_path / "lotr" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lotr_alpha": alpha}))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_lotr_peft(tmp_path / "lotr")


def test_zero_updates_become_trainable(tmp_path):
    generator = np.random.default_rng(0)
    empty = lt.Tucker2(np.zeros((6, 0)), np.zeros((2, 0, 0)), np.zeros((5, 0)))
    adapt(llama, tmp_path / "lora", r=2, target_modules=["q_proj"])
    cut = lt.convert_adapter(lt.load_adapter(tmp_path / "lora"), 2).adapter
    group = cut.groups["q_proj"]
    lora = lt.LoRAStack(
        generator.standard_normal((32, 3)), generator.standard_normal((3, 32)), (1, 1, 1)
    )
    for stack in (empty, lora):
        targets = group.targets[: stack.shape[0]]
        changed = lt.LoTRAdapter(
            {"q_proj": type(group)("q_proj", targets, stack)}, {}, cut.config_text, cut.origin
        )
        save_lotr_peft(changed, tmp_path / "made", force=True)
        back = load_lotr_peft(tmp_path / "made").groups["q_proj"].stack
        assert min(back.ranks) >= 1
        torch.testing.assert_close(lt.to_dense(back), lt.to_dense(stack), atol=1e-12, rtol=0)


WRONG = [
    ({"target_modules": ["query"]}, ValueError, r"Target modules \{'query'\} not found"),
    ({"target_modules": ["input_layernorm"]}, FormatError,
     r"found model.layers.0.input_layernorm \(LlamaRMSNorm\)"),
    ({"r": 33}, RankError, "'q_proj' must lie in 1 … m = 32, the size of model.layers.0"),
    ({"r": "8"}, RankError, "r must be a whole number or a pair"),
    ({"group_ranks": {"k_proj": 2}}, OptionError, "given for k_proj; the groups are q_proj"),
    ({"group_by": {"all": ["q_proj", "k_proj"]}}, OptionError, "names k_proj, which is no target"),
    ({"group_by": {"all": ["q_proj", "v_proj"]}, "target_modules": ["q_proj", "v_proj"]},
     FormatError, r"v_proj \(16, 32\)"),
    ({"init": "nowhere"}, OptionError, "or the path of an adapter; found 'nowhere'"),
    ({"train": "factors"}, OptionError, "the cores are zero"),
    ({"train": "most"}, OptionError, "train must be all, cores or factors; found 'most'"),
    ({"bias": "lora_only"}, OptionError, "bias must be none, all, lotr_only; found 'lora_only'"),
    ({"lotr_dropout": 2}, OptionError, "dropout must be"),
    ({"target_parameters": ["x"]}, OptionError, "adapts modules and no single parameters"),
    ({"layers_pattern": "layers"}, OptionError, "layers_pattern needs layers_to_transform"),
    ({"target_modules": "q.*", "layers_to_transform": [1]}, OptionError, "write the numbers into"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_wrong_use(options, error, message):
    base = seeded(llama)
    with pytest.raises(error, match=message):
        quiet_peft(base, LotrConfig(**{"r": 2, "target_modules": ["q_proj"]} | options))
    assert not ln.lotr_layers(base)


def test_quantised_layers_are_refused():
    base = seeded(llama)
    for layer in base.model.layers[:2]:
        own = layer.self_attn.q_proj
        own.weight = nn.Parameter(own.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(
        LotrError, match=r"found model\.layers\.0\.self_attn\.q_proj, model\.layers\.1"
    ):
        quiet_peft(base, LotrConfig(r=2, target_modules=["q_proj"]))


def test_what_peft_does_for_others_alone():
    adapted = lotr(llama, ["q_proj"])
    with pytest.raises(
        OptionError, match="adapter_names, an adapter for each row, is for LoRA alone"
    ):
        adapted(input_ids=TOKENS, adapter_names=["default", "__base__"])
    with pytest.raises(ValueError, match="'LOTR' is not compatible with the `PeftMixedModel`"):
        quiet_peft(seeded(llama), LotrConfig(r=2, target_modules=["q_proj"]), mixed=True)
    status = adapted.get_model_status()
    assert status.peft_types == {"default": "LOTR"}
    assert (status.num_adapter_layers, status.trainable_params) == (3, 3 * 6 + 32 * 5)


def test_own_functions_refuse_peft_models():
    adapted = lotr(llama, ["q_proj"])
    with pytest.raises(OptionError, match=r"use its model\.set_adapter"):
        ln.set_active(adapted, "default")
    with pytest.raises(OptionError, match="use its unload"):
        ln.remove_lotr(adapted)


def test_damaged_folders(tmp_path):
    folder = save(lotr(llama, ["q_proj"]), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())

    def with_config(**changes):
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        return folder

    with pytest.raises(CheckpointError, match="names no groups of modules"):
        load_lotr_peft(with_config(groups=None))
    with pytest.raises(CheckpointError, match=r"has no tensor base_model\.lotr_factors\.x\.u"):
        load_lotr_peft(with_config(groups={"x": ["a"]}))
    first = config["groups"]["32x32"][:1]
    with pytest.raises(CheckpointError, match="belongs to no module of the groups"):
        load_lotr_peft(with_config(groups={"32x32": first}))
    two = save(lotr(llama, ["q_proj", "v_proj"]), tmp_path / "two")
    own = json.loads((two / "adapter_config.json").read_text())
    del own["groups"]["32x32"]
    (two / "adapter_config.json").write_text(json.dumps(own))
    with pytest.raises(CheckpointError, match=r"lotr_factors\.32x32\.u' belongs to no module"):
        load_lotr_peft(two)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        load_lotr_peft(folder)
    assert dialect_of(Contents(folder)).name == "peft"
    assert dialect_of(Contents(tmp_path)).name == "peft"
    stale = LotrConfig(r=2, target_modules=["q_proj"], groups={"a": ["elsewhere.q_proj"]})
    with pytest.raises(OptionError, match="do not fit this model's targets"):
        quiet_peft(seeded(llama), stale)


def test_injection_without_a_peft_model(tmp_path):
    """What transformers' own `add_adapter` does."""
    from peft import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict

    config = LotrConfig(r=2, target_modules=["q_proj", "v_proj"])
    model = shake(inject_adapter_in_model(config, seeded(llama))).eval()
    state = get_peft_model_state_dict(model)
    assert len(state) == 4 + 6
    fresh = inject_adapter_in_model(copy.deepcopy(config), seeded(llama)).eval()
    assert not set_peft_model_state_dict(fresh, state).unexpected_keys
    assert torch.equal(logits(fresh), logits(model))


def test_tied_weights_are_not_taken_apart():
    with pytest.raises(
        OptionError, match=r"the weight of transformer\.wte is also lm_head\.weight"
    ):
        quiet_peft(seeded(gpt2), LotrConfig(r=2, target_modules=["wte"], init="principal"))


def test_peft_converts_it_to_a_lora():
    from peft import convert_to_lora

    adapted = lotr(llama, ["q_proj", "v_proj"])
    config, tensors = convert_to_lora(adapted, 3, progressbar=False)
    found = quiet_peft(seeded(llama), config).eval()
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(found, tensors)
    torch.testing.assert_close(logits(found), logits(adapted), atol=1e-5, rtol=1e-5)


def test_compiles_in_peft():
    adapted = lotr(bert, ["query", "value"])
    compiled = torch.compile(adapted, fullgraph=True, backend="eager")
    torch.testing.assert_close(logits(compiled), logits(adapted), atol=1e-5, rtol=1e-5)


def test_lora_beside_it_still_works():
    base = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    assert logits(adapted).shape[-1] == 61
