"""Adapters made by the real peft, converted, exported, and loaded by the real peft again."""

import json
import warnings

import ml_dtypes
import numpy as np
import pytest
import torch

import lotr_tn as lt
from lotr_tn.testing import laws
from tests.files import peft_models as pm

QV = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
BERT = {
    "r": 4,
    "lora_alpha": 16,
    "target_modules": ["query", "value", "dense"],
    "task_type": "SEQ_CLS",
}
CASES = {
    "llama": (pm.llama, QV),
    "llama mlp": (pm.llama, {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"}),
    "rslora": (pm.llama, QV | {"use_rslora": True}),
    "alpha float": (pm.llama, QV | {"lora_alpha": 2.5}),
    "patterns": (
        pm.llama,
        QV
        | {
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "v_proj": 5},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3, "layers.2.*": 7},
        },
    ),
    "rslora patterns": (
        pm.llama,
        QV | {"use_rslora": True, "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"q_proj": 1}},
    ),
    "regex targets": (pm.llama, QV | {"target_modules": r".*layers\.[02]\..*(q_proj|up_proj)"}),
    "some layers": (pm.llama, QV | {"layers_to_transform": [1, 2], "layers_pattern": "layers"}),
    "bert": (pm.bert, BERT),
    "bert heads": (
        pm.bert,
        BERT | {"modules_to_save": ["classifier"], "target_modules": ["query"]},
    ),
    "bert biases": (pm.bert, BERT | {"bias": "all", "target_modules": ["query", "key"]}),
    "gpt2": (
        pm.gpt2,
        {"r": 4, "lora_alpha": 16, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
    ),
    "gpt2 embedding": (
        pm.gpt2,
        {"r": 4, "target_modules": ["c_attn", "wte"], "fan_in_fan_out": True},
    ),
    "convs": (
        pm.Convs,
        {
            "r": 4,
            "lora_alpha": 3,
            "target_modules": ["embed", "one", "two", "grouped", "three", "point"],
        },
    ),
    "attention": (pm.Attention, {"r": 2, "lora_alpha": 3, "target_modules": ["attention"]}),
    "gaussian start": (pm.llama, QV | {"init_lora_weights": "gaussian"}),
}


def build_case(name, tmp_path, **more):
    build, config = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        more.setdefault("grown", 0.2 if name == "convs" else 1.0)  # five linear layers amplify
        adapted = pm.adapt(build, tmp_path / "lora", **config, **more)
    return build, adapted


@pytest.mark.parametrize("case", CASES)
def test_same_logits_after_the_round_trip(case, tmp_path):
    build, adapted = build_case(case, tmp_path)
    conversion = lt.convert_adapter(lt.load_adapter(tmp_path / "lora"), lt.RelativeError(1e-6))
    assert conversion.relative_error <= 1e-6
    lt.save_adapter(conversion.adapter, tmp_path / "a.lotr.safetensors")
    wanted = pm.logits(adapted)
    assert (pm.logits(pm.seeded(build)) - wanted).abs().max() > 1e-2, "the adapter does nothing"
    for ranks in ("uniform", "minimal"):
        export = lt.to_lora(lt.load_adapter(tmp_path / "a.lotr.safetensors"), ranks=ranks)
        lt.save_adapter(export.adapter, tmp_path / ranks)
        again = pm.reload(build, tmp_path / ranks)
        assert (pm.logits(again) - wanted).abs().max() < 1e-5, ranks


@pytest.mark.parametrize("case", ["llama", "bert", "gpt2", "patterns"])
def test_same_logits_as_the_base_with_the_update_added(case, tmp_path):
    """W + U G Vᵀ, added by hand to a fresh model, is what peft computes from the export."""
    build, _ = build_case(case, tmp_path)
    adapter, rule = lt.load_adapter(tmp_path / "lora"), lt.RelativeError(0.3)
    conversion = lt.convert_adapter(adapter, rule, dtype="float32")
    lt.save_adapter(lt.to_lora(conversion.adapter).adapter, tmp_path / "again")
    model = pm.seeded(build)
    for group in conversion.adapter.groups.values():
        for target, update in zip(group.targets, laws.dense_updates(group.stack), strict=True):
            weight = model.get_submodule(target.name).weight
            flipped = case == "gpt2"  # Conv1D keeps its weight transposed
            with torch.no_grad():
                weight += torch.from_numpy(update.T if flipped else update).to(weight.dtype)
    heads = {k: v for k, v in conversion.adapter.extras.items() if "classifier" in k}
    for key, tensor in heads.items():  # peft trains and saves the head of a classifier
        name, _, kind = key.removeprefix("base_model.model.").rpartition(".")
        getattr(model.get_submodule(name), kind).data = torch.from_numpy(tensor.array().copy())
    assert 0.01 < conversion.relative_error <= 0.3
    gap = (pm.logits(pm.reload(build, tmp_path / "again")) - pm.logits(model)).abs().max()
    assert gap < 1e-5


def test_adapters_of_another_name(tmp_path):
    adapted = pm.adapt(pm.llama, tmp_path / "lora", adapter_name="style", **QV)
    with pytest.raises(lt.errors.CheckpointError, match="subfolders style hold adapters"):
        lt.load_adapter(tmp_path / "lora")
    conversion = lt.convert_adapter(
        lt.load_adapter(tmp_path / "lora" / "style"), lt.RelativeError(1e-6)
    )
    lt.save_adapter(lt.to_lora(conversion.adapter).adapter, tmp_path / "again")
    again = pm.reload(pm.llama, tmp_path / "again", adapter_name="style")
    assert (pm.logits(again) - pm.logits(adapted)).abs().max() < 1e-5


def test_keys_that_kept_the_adapters_name(tmp_path):
    pm.adapt(pm.llama, tmp_path / "lora", **QV)
    from safetensors.numpy import load_file, save_file

    file = tmp_path / "lora" / "adapter_model.safetensors"
    before = lt.load_adapter(tmp_path / "lora")
    tensors = {k.replace(".weight", ".style.weight"): v.copy() for k, v in load_file(file).items()}
    save_file(tensors, file)
    assert lt.compare_adapters(before, lt.load_adapter(tmp_path / "lora")).relative_error < 1e-14


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_every_dtype(case, dtype, tmp_path):
    build, config = CASES[case]
    adapted = pm.adapt(lambda: build().to(getattr(torch, dtype)), tmp_path / "lora", **config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for parameter in adapted.parameters():  # peft widens factors on CPU; store what was asked
            parameter.data = parameter.data.to(getattr(torch, dtype))
        adapted.save_pretrained(tmp_path / "lora")
    adapter = lt.load_adapter(tmp_path / "lora")
    assert adapter.dtype == dtype
    for group in lt.group_modules(adapter).values():
        for target, update in zip(group.targets, laws.dense_updates(group.stack), strict=True):
            module = adapted.base_model.model.get_submodule(target.name)
            a = module.lora_A["default"].weight.data.double()
            b = module.lora_B["default"].weight.data.double()
            truth = (module.scaling["default"] * b @ a).numpy()
            assert np.linalg.norm(update - truth) < 1e-7 * np.linalg.norm(truth)
    for rule in (lt.RelativeError(0.3), lt.RelativeError(1e-5)):
        conversion = lt.convert_adapter(adapter, rule)
        assert conversion.met
    assert conversion.adapter.dtype == "float32"  # as narrow as 1e-5 lets it be
    halved = lt.convert_adapter(adapter, lt.RelativeError(0.3)).adapter.dtype
    assert halved in ("float16", "bfloat16")  # whichever came in


def test_mixed_dtypes_in_one_file(tmp_path):
    from safetensors.torch import load_file, save_file

    pm.adapt(pm.llama, tmp_path / "lora", **QV)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    kinds = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
    save_file({k: v.to(kinds[i % 4]) for i, (k, v) in enumerate(tensors.items())}, file)
    adapter = lt.load_adapter(tmp_path / "lora")
    conversion = lt.convert_adapter(adapter, lt.RelativeError(1e-5))
    assert conversion.met
    assert adapter.dtype == "float64"
    assert lt.compare_adapters(adapter, conversion.adapter).relative_error <= 1e-5


def test_bin_files_are_read(tmp_path):
    pm.adapt(pm.llama, tmp_path / "lora", **QV)
    from safetensors.torch import load_file

    file = tmp_path / "lora" / "adapter_model.safetensors"
    before = lt.load_adapter(tmp_path / "lora")
    tensors = load_file(file)
    before = lt.convert_adapter(before, (2, 2))
    file.unlink()
    torch.save({k: v.bfloat16().float() for k, v in tensors.items()}, file.with_suffix(".bin"))
    after = lt.load_adapter(tmp_path / "lora")
    assert 0 < lt.compare_adapters(after, before.adapter).relative_error < 1
    assert after.dtype == "float32"
    bfloat = {k: v.bfloat16() for k, v in tensors.items()} | {
        "base_model.model.steps": torch.arange(3),
    }
    torch.save(bfloat, file.with_suffix(".bin"))
    again = lt.load_adapter(tmp_path / "lora")
    assert again.dtype == "bfloat16"
    assert lt.compare_adapters(after, again).relative_error < 1e-14
    assert again.extras["base_model.model.steps"].code == "I64"


def test_safetensors_win_over_bin(tmp_path):
    pm.adapt(pm.llama, tmp_path / "lora", **QV)
    (tmp_path / "lora" / "adapter_model.bin").write_bytes(b"not read")
    lt.load_adapter(tmp_path / "lora")


def test_a_single_file_takes_the_config_beside_it(tmp_path):
    pm.adapt(pm.llama, tmp_path / "lora", **QV)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    found = lt.compare_adapters(lt.load_adapter(file), lt.load_adapter(tmp_path / "lora"))
    assert found.relative_error < 1e-14
    assert found.cosine == pytest.approx(1, rel=1e-14)


def test_extras_and_config_travel_byte_for_byte(tmp_path):
    build_case("bert heads", tmp_path)
    adapter = lt.load_adapter(tmp_path / "lora")
    assert any("classifier" in key for key in adapter.extras)
    conversion = lt.convert_adapter(adapter, (2, 2))
    lt.save_adapter(conversion.adapter, tmp_path / "a.lotr.safetensors")
    back = lt.load_adapter(tmp_path / "a.lotr.safetensors")
    assert back.config_text == (tmp_path / "lora" / "adapter_config.json").read_text()
    lt.save_adapter(lt.to_lora(back).adapter, tmp_path / "again")
    after = lt.load_adapter(tmp_path / "again")
    assert set(after.extras) == set(adapter.extras)
    for key, tensor in adapter.extras.items():
        assert after.extras[key].code == tensor.code
        assert after.extras[key].shape == tensor.shape
        assert after.extras[key].data.tobytes() == tensor.data.tobytes()


def test_the_export_is_portable(tmp_path):
    """Rules that servers apply: one rank, alpha = rank, plain scale, a list of full names."""
    build_case("rslora patterns", tmp_path)
    conversion = lt.convert_adapter(lt.load_adapter(tmp_path / "lora"), lt.RelativeError(0.1))
    lt.save_adapter(lt.to_lora(conversion.adapter).adapter, tmp_path / "again")
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"]
    assert not config["use_rslora"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert isinstance(config["target_modules"], list)
    assert config["init_lora_weights"] is True
    from safetensors.numpy import load_file

    tensors = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(config["target_modules"])
    for key, tensor in tensors.items():
        assert key.startswith("base_model.model.")
        assert config["r"] in tensor.shape
        assert tensor.flags.c_contiguous


def test_minimal_ranks_are_written_as_anchored_patterns(tmp_path):
    build_case("patterns", tmp_path)
    conversion = lt.convert_adapter(lt.load_adapter(tmp_path / "lora"), lt.RelativeError(1e-6))
    export = lt.to_lora(conversion.adapter, ranks="minimal")
    wanted = {m.target.name: m.target.rank for m in lt.load_adapter(tmp_path / "lora").modules}
    assert dict(export.ranks) == wanted
    assert all(key.startswith("^") for key in export.adapter.config["rank_pattern"])


def test_export_has_no_more_rank_than_the_lora_it_came_from(tmp_path):
    build_case("llama", tmp_path)
    for rule in (lt.RelativeError(0.2), lt.RelativeError(1e-5), lt.FixedRank(8)):
        conversion = lt.convert_adapter(lt.load_adapter(tmp_path / "lora"), rule)
        assert max(lt.to_lora(conversion.adapter).ranks.values()) <= 4


def test_zero_adapters(tmp_path):
    pm.adapt(pm.llama, tmp_path / "lora", grown=0.0, **QV)
    conversion = lt.convert_adapter(lt.load_adapter(tmp_path / "lora"), lt.RelativeError(0.1))
    assert conversion.relative_error == 0
    assert all(group.ranks == (0, 0) for group in conversion.groups)
    lt.save_adapter(conversion.adapter, tmp_path / "a.lotr.safetensors")
    back = lt.load_adapter(tmp_path / "a.lotr.safetensors")
    lt.save_adapter(lt.to_lora(back).adapter, tmp_path / "again")
    same = pm.logits(pm.reload(pm.llama, tmp_path / "again")) - pm.logits(pm.seeded(pm.llama))
    assert same.abs().max() == 0


def test_torch_backend_gives_the_same(tmp_path):
    build_case("bert", tmp_path)
    adapter = lt.load_adapter(tmp_path / "lora")
    rule, wide = lt.RelativeError(0.2), {"dtype": "float32"}
    one = lt.convert_adapter(adapter, rule, **wide)
    two = lt.convert_adapter(adapter, rule, backend="torch", device="cpu", **wide)
    assert [g.ranks for g in one.groups] == [g.ranks for g in two.groups]
    assert lt.compare_adapters(one.adapter, two.adapter).relative_error < 1e-6
    assert isinstance(two.adapter.groups["query"].stack.u, np.ndarray)


def test_storage_dtypes_of_conversion(tmp_path):
    build_case("llama", tmp_path)
    adapter = lt.load_adapter(tmp_path / "lora")
    for name in ("bfloat16", "float16", "float32", "float64"):
        conversion = lt.convert_adapter(adapter, (3, 3), dtype=name)
        lt.save_adapter(conversion.adapter, tmp_path / f"{name}.lotr.safetensors")
        back = lt.load_adapter(tmp_path / f"{name}.lotr.safetensors")
        assert back.dtype == name
        assert back.groups["q_proj"].stack.u.dtype == np.dtype(
            getattr(ml_dtypes, name, None) or name
        )
        found = lt.compare_adapters(adapter, back).relative_error
        assert np.isclose(found, conversion.relative_error, rtol=1e-6)
    coarse = lt.convert_adapter(adapter, lt.RelativeError(1e-5), dtype="bfloat16")
    assert not coarse.met


@pytest.mark.parametrize("case", ["rslora patterns", "convs", "bert biases", "gpt2 embedding"])
def test_a_lora_is_saved_as_it_was_loaded(case, tmp_path):
    build_case(case, tmp_path)
    config = tmp_path / "lora" / "adapter_config.json"
    config.write_bytes(config.read_bytes().replace(b"\n", b"\r\n"))
    lt.save_adapter(lt.load_adapter(tmp_path / "lora"), tmp_path / "copy")
    assert (tmp_path / "copy" / config.name).read_bytes() == config.read_bytes()
    from safetensors.numpy import load_file

    files = [tmp_path / name / "adapter_model.safetensors" for name in ("lora", "copy")]
    one, two = (load_file(file) for file in files)
    assert set(one) == set(two)
    assert all(np.array_equal(one[key], two[key]) for key in one)
    assert all(one[key].shape == two[key].shape for key in one)


@pytest.mark.parametrize("grown", [1e-3, 1.0, 200.0])
def test_float16_has_a_range(grown, tmp_path):
    """Updates too small or too large for float16 are kept in float32, unless it is asked for."""
    build, config = CASES["llama"]
    pm.adapt(build, tmp_path / "lora", grown=grown, **config)
    adapter = lt.load_adapter(tmp_path / "lora")
    halves = [
        lt.adapters.LoRAModule(
            m.target, m.up.astype(np.float16), m.down.astype(np.float16), m.scale
        )
        for m in adapter.modules
    ]
    adapter = lt.LoRAAdapter(tuple(halves), {}, adapter.config, adapter.config_text)
    for rule in (lt.RelativeError(0.2), lt.FixedRank(3)):
        conversion = lt.convert_adapter(adapter, rule)
        assert conversion.met
        ranks = isinstance(rule, lt.FixedRank)
        allowed = {"float32"} if ranks else {"float32", "bfloat16"}
        if grown == 1.0 or (grown < 1 and not ranks):
            allowed = {"float16"}
        assert conversion.adapter.dtype in allowed
        export = lt.to_lora(conversion.adapter)
        found = lt.compare_adapters(adapter, export.adapter).relative_error
        assert np.isclose(found, conversion.relative_error, rtol=1e-3)
    if grown > 1:
        with pytest.raises(lt.errors.FormatError, match="do not fit float16"):
            lt.convert_adapter(adapter, (3, 3), dtype="float16")
