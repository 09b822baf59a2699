"""Paths and shapes agree with the models that transformers builds."""

import json
import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers import AutoModelForImageClassification as AutoModelForImages
from transformers import AutoModelForSequenceClassification as AutoModelForSequences
from transformers.pytorch_utils import Conv1D

import lotr_tn as lt
from lotr_tn.catalogue.architecture import known_architectures
from lotr_tn.catalogue.families import MODEL_TYPES
from lotr_tn.errors import CheckpointError, OptionError, UnsupportedError

USUAL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "vocab_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GROUPED = {**USUAL, "num_key_value_heads": 2}
WIDE_HEADS = {**GROUPED, "head_dim": 10}
ENCODERS = dict.fromkeys(
    ("bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta-v2"),
    (AutoModelForSequences, USUAL),
)
DECODERS = {
    kind: (AutoModelForCausalLM, WIDE_HEADS if wide else GROUPED)
    for kind, wide in {
        "llama": True, "mistral": True, "qwen2": False, "qwen3": True, "gemma": True,
        "gemma2": True, "gemma3_text": True, "olmo2": False, "granite": False, "smollm3": False,
        "stablelm": False, "starcoder2": False, "phi": False, "phi3": False,
    }.items()
}  # fmt: skip
N_NAMES = {"n_embd": 24, "n_layer": 3, "n_head": 4, "vocab_size": 32}
NEO = {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4}
T5 = {"d_model": 24, "num_layers": 2, "num_heads": 3, "d_kv": 10, "d_ff": 40, "vocab_size": 32}
OTHERS = {
    "gpt2": (AutoModelForCausalLM, N_NAMES),
    "gptj": (AutoModelForCausalLM, {**N_NAMES, "rotary_dim": 2, "n_inner": 50}),
    "gpt_neo": (AutoModelForCausalLM, {"hidden_size": 24, "vocab_size": 32, **NEO}),
    "gpt_neox": (AutoModelForCausalLM, USUAL),
    "bloom": (AutoModelForCausalLM, {"hidden_size": 24, "n_layer": 2, "n_head": 4}),
    "opt": (
        AutoModelForCausalLM,
        {**USUAL, "ffn_dim": 40, "word_embed_proj_dim": 16, "intermediate_size": None},
    ),
    "falcon": (AutoModelForCausalLM, USUAL | {"intermediate_size": None}),
    "distilbert": (
        AutoModelForSequences,
        {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "vocab_size": 32},
    ),
    "t5": (AutoModelForSeq2SeqLM, {**T5, "num_decoder_layers": 3}),
    "vit": (AutoModelForImages, USUAL),
}
FAMILIES = ENCODERS | DECODERS | OTHERS


def linear_modules(kind, build, sizes):
    """Paths and (out, in) of the linear modules in the blocks of a model without memory."""
    config = AutoConfig.for_model(kind, **{k: v for k, v in sizes.items() if v is not None})
    with torch.device("meta"):
        model = build.from_config(config)
    found = {}
    for name, module in model.named_modules():
        if re.search(r"\.\d+\.", name) and isinstance(module, torch.nn.Linear | Conv1D):
            shape = tuple(module.weight.shape)
            found[name] = shape[::-1] if isinstance(module, Conv1D) else shape
    return found


def ours(kind, sizes):
    config = {key: value for key, value in sizes.items() if value is not None}
    found = lt.catalogue.architecture_from_config({"model_type": kind, **config})
    return {module.name: module.shape for module in found.modules}


@pytest.mark.parametrize("kind", FAMILIES)
def test_modules_are_those_of_transformers(kind):
    build, sizes = FAMILIES[kind]
    found = linear_modules(kind, build, sizes)
    assert found
    assert ours(kind, sizes) == found


def test_every_family_is_checked():
    assert set(FAMILIES) == set(MODEL_TYPES)


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("falcon", {"multi_query": False}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        ("falcon", {"ffn_hidden_size": 50}),
        ("t5", {"feed_forward_proj": "gated-gelu"}),
        ("t5", {"num_decoder_layers": None}),
        ("gpt2", {"n_inner": 50}),
        ("gpt_neo", {"intermediate_size": 50}),
        ("llama", {"head_dim": None, "num_key_value_heads": None}),
        ("stablelm", {"num_key_value_heads": None, "num_attention_heads": 32, "hidden_size": 64}),
        ("gemma", {"head_dim": None, "num_key_value_heads": None, "num_attention_heads": 16}),
        ("qwen3", {"head_dim": None}),
    ],
)
def test_variants_and_absent_entries(kind, extra):
    build, sizes = FAMILIES[kind]
    sizes = sizes | extra
    assert ours(kind, sizes) == linear_modules(kind, build, sizes)


def test_a_saved_config_is_enough(tmp_path):
    AutoConfig.for_model("llama", **GROUPED).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    found = lt.catalogue.architecture_from_config(saved)
    assert {m.name: m.shape for m in found.modules} == ours("llama", GROUPED)
    assert found.name == "llama"


@pytest.mark.parametrize("name", known_architectures())
def test_known_models_have_their_default_targets(name):
    model = lt.catalogue.architecture(name)
    assert model.name == name
    assert 0 < len(model.select()) < len(model.modules)
    assert model.parameters == sum(m.m * m.n for m in model.modules)


@pytest.mark.parametrize(
    ("name", "embeddings", "total"),
    [
        # all parameters as published, and those that are not in a linear module of a block:
        # embeddings, heads, norms and biases
        ("llama-2-7b", 2 * 32000 * 4096 + 65 * 4096, 6_738_415_616),
        ("mistral-7b", 2 * 32000 * 4096 + 65 * 4096, 7_241_732_096),
        ("llama-3-8b", 2 * 128256 * 4096 + 65 * 4096, 8_030_261_248),
        ("llama-3.2-1b", 128256 * 2048 + 33 * 2048, 1_235_814_400),
        ("qwen2.5-0.5b", 151936 * 896 + 49 * 896 + 24 * 1152, 494_032_768),
        ("gemma-2b", 256000 * 2048 + 37 * 2048, 2_506_172_416),
        ("gpt2", (50257 + 1024) * 768 + 12 * (9 + 4) * 768 + 2 * 768, 124_439_808),
    ],
)
def test_sizes_add_up_to_the_published_models(name, embeddings, total):
    assert lt.catalogue.architecture(name).parameters + embeddings == total


def test_names_as_on_the_hub():
    assert lt.catalogue.architecture("meta-llama/Llama-2-7b-hf") == lt.catalogue.architecture(
        "llama-2-7b"
    )
    with pytest.raises(OptionError, match=r"no model 'roberta-bse'.* roberta-base"):
        lt.catalogue.architecture("roberta-bse")


def test_targets_match_as_in_peft():
    """The same modules as peft changes, for names, a regular expression and all-linear."""
    from peft import LoraConfig, get_peft_model

    build, sizes = FAMILIES["gpt2"]
    for targets in (["c_proj"], ["mlp.c_proj", "c_attn"], r".*\.[12]\.attn\.c_.*", "all-linear"):
        with torch.device("meta"):
            model = build.from_config(AutoConfig.for_model("gpt2", **sizes))
            adapted = get_peft_model(model, LoraConfig(target_modules=targets, fan_in_fan_out=True))
        wrapped = [name for name, m in adapted.named_modules() if hasattr(m, "lora_A")]
        chosen = lt.catalogue.architecture_from_config({"model_type": "gpt2", **sizes}).select(
            targets
        )
        assert sorted(m.name for m in chosen) == sorted(
            name.removeprefix("base_model.model.") for name in wrapped
        )


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (
            ["query", "valeu"],
            r"target 'valeu' matches no module .* end in query, key, value, dense",
        ),
        ([], "matches no module"),
        ("query", "whole paths such as roberta"),
        ("(", "not a regular expression"),
        ("", "matches no module"),
    ],
)
def test_targets_that_match_nothing(targets, said):
    with pytest.raises(OptionError, match=said):
        lt.catalogue.architecture("roberta-base").select(targets)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"model_type": "mamba"}, UnsupportedError, r"'mamba' is not known here.*llama.*shapes"),
        ({"model_type": "gemma3", "text_config": {}}, UnsupportedError, "text_config alone"),
        ({"model_type": None}, CheckpointError, "no model_type"),
        ({"hidden_size": "24"}, CheckpointError, "hidden_size .* found '24'"),
        ({"num_hidden_layers": 0}, CheckpointError, "num_hidden_layers .* found 0"),
        ({"num_attention_heads": True}, CheckpointError, "num_attention_heads"),
        ({"num_attention_heads": 5}, CheckpointError, "24 is not divided by 5 heads"),
        ({"intermediate_size": None}, CheckpointError, "gives no intermediate_size or "),
    ],
)
def test_configs_that_do_not_fit(change, kind, said):
    with pytest.raises(kind, match=said) as raised:
        lt.catalogue.architecture_from_config({"model_type": "llama", **GROUPED, **change})
    assert raised.type is kind


def test_shapes():
    found = lt.catalogue.architecture_from_shapes(["attn.q=2x6x5", "3x4x7"])
    assert [(m.name, m.shape) for m in found.modules] == [
        ("layers.0.attn.q", (6, 5)),
        ("layers.1.attn.q", (6, 5)),
        ("layers.0.4x7", (4, 7)),
        ("layers.1.4x7", (4, 7)),
        ("layers.2.4x7", (4, 7)),
    ]
    assert found.modules[1].kind == "layers.attn.q"
    assert found.select() == found.modules
    assert len(found.select(["q"])) == 2


@pytest.mark.parametrize("text", ["3x4", "0x4x4", "q=", "q=3x4x-1", "3 x 4 x 5", "1=3x4x5", ""])
def test_shapes_that_are_none(text):
    with pytest.raises(OptionError, match="a shape is NAME=COUNTxOUTxIN"):
        lt.catalogue.architecture_from_shapes([text])


def test_architectures_that_make_no_sense():
    with pytest.raises(OptionError, match="two shapes are called 4x4"):
        lt.catalogue.architecture_from_shapes(["3x4x4", "2x4x4"])
    with pytest.raises(OptionError, match="no linear module"):
        lt.catalogue.architecture_from_shapes([])
    one = lt.catalogue.ModuleShape("q", 3, 4)
    with pytest.raises(OptionError, match="one name"):
        lt.catalogue.Architecture("twice", (one, one))
    with pytest.raises(OptionError, match="found 0x4"):
        lt.catalogue.ModuleShape("q", 0, 4)
