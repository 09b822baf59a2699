"""TT-LoRA checkpoints as they are published: read, looked at, exported to what PEFT loads."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

import lotr_tn as lt
from lotr_tn.cli.main import app
from lotr_tn.errors import CheckpointError
from lotr_tn.formats import TensorTrain

LEGS, RANK, ALPHA = (12, 8, 8, 2, 2, 2, 8, 12), 4, 8.0


def cores(rng, legs=LEGS, rank=RANK):
    bonds = [1, *[rank] * (len(legs) - 1), 1]
    return [
        (rng.standard_normal((bonds[k], d, bonds[k + 1])) / d**0.5).astype(np.float32)
        for k, d in enumerate(legs)
    ]


def tensors(layers=12, prefix="roberta.encoder.layer", **made):
    """Cores by the keys of the published files: queries and values of RoBERTa-base."""
    rng = np.random.default_rng(0)
    return {
        f"{prefix}.{layer}.attention.self.{kind}.ttlora_cores.{index}": core
        for layer in range(layers)
        for kind in ("query", "value")
        for index, core in enumerate(cores(rng, **made))
    }


def saved(path, found):
    torch.save({key: torch.from_numpy(core) for key, core in found.items()}, path)
    return path


def contracted(parts):
    whole = np.ones(1)
    for core in parts:
        whole = np.tensordot(whole, core.astype(np.float64), 1)
    return whole[..., 0]


def parts_of(found, module):
    return [found[f"{module}.ttlora_cores.{k}"] for k in range(len(LEGS))]


QUERY = "roberta.encoder.layer.1.attention.self.query"


def test_a_published_file_is_read_looked_at_and_exported(tmp_path):
    found = tensors()
    path = saved(tmp_path / "task_mrpc.pth", found)
    adapter = lt.load_adapter(path)
    assert adapter.parameters == 13_824
    assert list(adapter.groups) == ["query", "value"]
    group = adapter.groups["query"]
    assert type(group.stack) is TensorTrain
    assert group.stack.shape == (12, 768, 768)
    wanted = ALPHA * contracted(parts_of(found, QUERY)).reshape(768, 768)
    off = np.linalg.norm(lt.to_dense(group.stack[1])[0] - wanted)
    assert off < 1e-6 * np.linalg.norm(wanted)
    runner = CliRunner()
    shown = runner.invoke(app, ["inspect", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "24 modules, 13,824 parameters" in shown.output
    assert "alpha = 8, of the published adapters of these legs and rank" in shown.output
    for to in ("exported", "native.safetensors"):
        lt.save_adapter(adapter, tmp_path / to) if to.startswith("native") else runner.invoke(
            app, ["export", str(path), "-o", str(tmp_path / to)], catch_exceptions=False
        )
        comparison = lt.compare_adapters(adapter, lt.load_adapter(tmp_path / to))
        assert comparison.relative_error < 1e-6
    config = json.loads((tmp_path / "exported" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, 4, {})


def test_peft_loads_what_is_exported(tmp_path):
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    found = tensors(layers=1)
    adapter = lt.load_adapter(saved(tmp_path / "task_rte.pth", found))
    lt.save_adapter(lt.to_lora(adapter).adapter, tmp_path / "lora")
    sizes = {"num_hidden_layers": 1, "vocab_size": 8, "intermediate_size": 8}
    config = transformers.RobertaConfig(**sizes, max_position_embeddings=8, num_labels=2)
    base = transformers.RobertaForSequenceClassification(config)
    query = QUERY.replace(".1.", ".0.")
    base.get_submodule(query).weight.data.zero_()
    model = peft.PeftModel.from_pretrained(base, tmp_path / "lora").merge_and_unload()
    wanted = ALPHA * contracted(parts_of(found, query)).reshape(768, 768)
    off = np.linalg.norm(model.get_submodule(query).weight.detach().double().numpy() - wanted)
    assert off < 1e-6 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    "prefix", ["model.roberta.encoder.layer", "base_model.model.roberta.encoder.layer"]
)
def test_what_wrappers_put_before_names_is_taken_off(prefix, tmp_path):
    adapter = lt.load_adapter(saved(tmp_path / "a.pth", tensors(layers=1, prefix=prefix)))
    (target,) = adapter.groups["query"].targets
    assert target.name == QUERY.replace(".1.", ".0.")


def test_a_configuration_beside_it_says_alpha_shape_and_order(tmp_path):
    legs = (4, 3, 2, 5)
    rng = np.random.default_rng(1)
    made = cores(rng, legs, 2)
    keys = [f"model.layers.0.self_attn.q_proj.ttlora_cores.{k}" for k in range(4)]
    save_file(dict(zip(keys, made, strict=True)), tmp_path / "adapter_model.safetensors")
    config = {"alpha": 0.5, "weight_shape": {"q_proj": [10, 12]}, "variant": "contraction"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    adapter = lt.load_adapter(tmp_path)
    (group,) = adapter.groups.values()
    assert group.targets[0].name == "model.layers.0.self_attn.q_proj"
    whole = contracted(made)  # digits of the input, fastest first, then of the output
    wanted = 0.5 * whole.transpose(2, 3, 1, 0).reshape(10, 12)
    assert np.allclose(lt.to_dense(group.stack)[0], wanted, atol=1e-6)
    export = lt.to_lora(adapter, dtype="float64").adapter
    up, down = export.modules[0].factors()
    assert np.allclose(up @ down, wanted, atol=1e-6)


def small(tmp_path, change=None, config=None, legs=(4, 3, 3, 4)):
    made = dict(enumerate(cores(np.random.default_rng(1), legs, 2)))
    made = made if change is None else change(made)
    path = tmp_path / "a.safetensors"
    save_file({f"h.0.q.ttlora_cores.{k}": np.ascontiguousarray(c) for k, c in made.items()}, path)
    if config is not None:
        (tmp_path / "a.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (None, None, 'no configuration that says alpha, .* put {"alpha": 8'),
        (None, {"alpha": "much"}, "says alpha 'much'; needed a number"),
        (None, {"alpha": 10**400}, "says alpha 1000.*; needed a number"),
        (None, {"alpha": 0}, "says alpha 0; needed a number other than 0"),
        (None, {"alpha": 1, "variant": "other"}, "says the variant 'other'; needed one of recon"),
        (lambda m: {k: m[k] for k in (0, 1, 3)}, {"alpha": 1}, "h.0.q has the cores 0, 1, 3; need"),
        (lambda m: m | {1: m[1][0]}, {"alpha": 1}, r"of shape \(3, 2\); needed floats"),
        (lambda m: m | {1: m[1] * np.nan}, {"alpha": 1}, "cores.1 holds NaN or infinite entries"),
        (lambda m: {k: m[k] for k in (0, 1)}, {"alpha": 1}, '"weight_shape": .out, in., or one'),
        (lambda m: m | {1: m[1][:1]}, {"alpha": 1}, r"cores.1 must have the bonds \(2, 2\)"),
        (None, {"alpha": 1, "weight_shape": [9, 16]}, "their first legs must multiply to 9"),
    ],
)
def test_what_is_missing_or_wrong_is_said_in_a_sentence(change, config, said, tmp_path):
    with pytest.raises(CheckpointError, match=said) as refusal:
        lt.load_adapter(small(tmp_path, change, config))
    assert len(str(refusal.value)) < 500 + len(str(tmp_path)) * 2


def test_other_tensors_are_carried_along(tmp_path):
    found = tensors(layers=1) | {"classifier.out_proj.bias": np.ones(2, np.float32)}
    adapter = lt.load_adapter(saved(tmp_path / "a.pth", found))
    assert list(adapter.extras) == ["base_model.model.classifier.out_proj.bias"]
    assert json.loads(adapter.config_text)["modules_to_save"] == ["classifier"]


def test_a_damaged_torch_file_is_refused_in_a_sentence(tmp_path):
    path = saved(tmp_path / "a.pth", tensors(layers=1))
    whole = path.read_bytes()
    entry = whole.rindex(b"PK\x01\x02")  # the last one of the archive's directory
    later = bytearray(whole)
    later[entry + 6] = 200  # a version of zip that is not known
    path.write_bytes(bytes(later))
    with pytest.raises(CheckpointError, match="is not a complete torch file"):
        lt.load_adapter(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is not a complete torch file"):
        lt.load_adapter(path)
