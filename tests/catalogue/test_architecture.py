"""Paths and shapes agree with the models that transformers builds."""

import json
import re

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers import AutoModelForImageClassification as AutoModelForImages
from transformers import AutoModelForImageTextToText as AutoModelForVision
from transformers import AutoModelForSequenceClassification as AutoModelForSequences
from transformers import AutoModelForSpeechSeq2Seq as AutoModelForSpeech
from transformers.pytorch_utils import Conv1D

import lotr_tn as lt
from lotr_tn.catalogue.architecture import known_architectures
from lotr_tn.catalogue.families import MODEL_TYPES, WRAPPERS
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
        "stablelm": False, "starcoder2": False, "phi": False, "phi3": False, "cohere": False,
        "cohere2": True, "glm": True, "glm4": True, "olmo": False, "olmo3": False, "exaone4": True,
        "ministral": True, "ministral3": True, "mixtral": True, "gpt_oss": True, "olmoe": False,
        "qwen2_vl_text": False, "qwen2_5_vl_text": False, "qwen3_vl_text": True, "lfm2": False,
    }.items()
}  # fmt: skip
FOUR = {**WIDE_HEADS, "num_hidden_layers": 4}
SPARSE = {**FOUR, "num_experts": 3, "moe_intermediate_size": 8, "num_experts_per_tok": 1}
LATENT = {
    "q_lora_rank": 6, "kv_lora_rank": 5, "qk_rope_head_dim": 4, "qk_nope_head_dim": 3,
    "v_head_dim": 7, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "n_shared_experts": 2,
    "num_experts_per_tok": 1,
}  # fmt: skip
DELTA = {
    "linear_key_head_dim": 3, "linear_value_head_dim": 5, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}  # fmt: skip
SHARING = {
    **FOUR, "hidden_size_per_layer_input": 6, "num_kv_shared_layers": 1, "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}  # fmt: skip
SPARSE_DECODERS = {
    "deepseek_v3": {**SPARSE, **LATENT},
    "gemma3n_text": {**SHARING, "intermediate_size": [40, 40, 40, 30, 30, 30], "laurel_rank": 3},
    "gemma4_text": {**SHARING, "global_head_dim": 12},
    "llama4_text": {**FOUR, "intermediate_size_mlp": 50, "interleave_moe_layer_step": 2},
    "qwen2_moe": {**SPARSE, "mlp_only_layers": [1], "shared_expert_intermediate_size": 9},
    "qwen3_5_moe_text": {**SPARSE, **DELTA, "shared_expert_intermediate_size": 9},
    "qwen3_5_text": {**FOUR, **DELTA},
    "qwen3_moe": {**SPARSE, "decoder_sparse_step": 2},
    "qwen3_vl_moe_text": SPARSE,
}
DECODERS |= {kind: (AutoModelForCausalLM, sizes) for kind, sizes in SPARSE_DECODERS.items()}
for of_vision in ("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text"):
    DECODERS[of_vision] = (AutoModel, DECODERS[of_vision][1])
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
    "modernbert": (AutoModelForSequences, USUAL),
    "whisper": (
        AutoModelForSpeech,
        {
            "d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 50,
        },
    ),
}  # fmt: skip
FAMILIES = ENCODERS | DECODERS | OTHERS
TRANSPOSED = ("gpt_oss", "llama4")
"""Where experts' matrices lie with their inputs first."""


def linear_modules(kind, build, sizes):
    """Paths and (out, in) of the linear modules in the blocks of a model without memory."""
    config = AutoConfig.for_model(kind, **{k: v for k, v in sizes.items() if v is not None})
    with torch.device("meta"):
        model = build.from_config(config)
    found = {}
    inside = "language_model." if hasattr(config, "text_config") else ""
    for name, module in model.named_modules():
        if not re.search(r"\.\d+\.", f".{name}") or inside not in name:
            continue
        if isinstance(module, torch.nn.Linear | Conv1D):
            shape = tuple(module.weight.shape)
            found[name] = shape[::-1] if isinstance(module, Conv1D) else shape
        for experts, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and name.endswith("experts"):
                shape = tuple(parameter.shape[1:])
                own = shape[::-1] if kind.startswith(TRANSPOSED) else shape
                found |= {f"{name}.{experts}.{i}": own for i in range(parameter.shape[0])}
    if build is AutoModel:
        found = {f"model.{name}": shape for name, shape in found.items()}
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


VISION = {"aya_vision": {"vision_config": {"model_type": "siglip_vision_model"}}}
TEXT_OF = {kind: {**FAMILIES[text][1], "model_type": text} for kind, text in WRAPPERS.items()}


@pytest.fixture
def no_timm(monkeypatch):
    """Nothing in place of a vision tower that needs a package of its own."""
    make = AutoModel.from_config

    def from_config(config, **more):
        if config.model_type == "gemma3n_vision":
            return torch.nn.Identity()
        return make(config, **more)

    monkeypatch.setattr(AutoModel, "from_config", from_config)


@pytest.mark.parametrize("kind", TEXT_OF)
@pytest.mark.usefixtures("no_timm")
def test_the_text_model_of_one_that_sees_or_hears(kind):
    sizes = {"text_config": TEXT_OF[kind]}
    build = AutoModelForSpeech if kind == "voxtral" else AutoModelForVision
    found = linear_modules(kind, build, sizes | VISION.get(kind, {}))
    assert found
    assert ours(kind, sizes) == found


@pytest.mark.parametrize("kind", WRAPPERS)
def test_sizes_that_a_text_config_leaves_out(kind):
    """Files of transformers leave out of a text_config what is usual for its type."""
    usual = json.loads(AutoConfig.for_model(WRAPPERS[kind]).to_json_string(use_diff=False))
    architecture = lt.catalogue.architecture_from_config({"model_type": kind, "text_config": {}})
    assert architecture.name == f"{kind} (text model)"
    alone = lt.catalogue.architecture_from_config(usual)
    place = architecture.modules[0].name.partition("layers.")[0]
    found = {m.name.removeprefix(place): m.shape for m in architecture.modules}
    assert found == {m.name.removeprefix("model."): m.shape for m in alone.modules}


def test_every_family_is_checked():
    assert {*FAMILIES, *WRAPPERS} == set(MODEL_TYPES)


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
        ("(", "a target is a regular expression"),
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
        ({"text_config": {"model_type": "mamba"}}, UnsupportedError, "'mamba' is not known"),
        ({"text_config": []}, CheckpointError, "text_config .* found list"),
        ({"num_hidden_layers": 10**9}, CheckpointError, "more than 200,000 linear modules"),
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


ODD = {"gate": "a", "list": [None], "map": {"1": 2}, "much": 1e400, "nan": float("nan"), "no": -1}


def refusal(kind, sizes):
    try:
        ours(kind, sizes)
    except CheckpointError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", SPARSE_DECODERS | {"lfm2": GROUPED, "mixtral": GROUPED})
def test_entries_of_a_wrong_type_end_in_a_sentence(kind):
    sizes = {k: v for k, v in FAMILIES[kind][1].items() if v is not None}
    extra = ("layer_types", "moe_layers", "mlp_only_layers", "full_attn_idxs", "per_layer_config")
    for key in (*sizes, *extra, "first_k_dense_replace", "block_ffn_dim_multiplier"):
        for odd in ODD.values():
            said = refusal(kind, {**sizes, key: odd})
            assert said is None or key in said or "head_dim" in said
            assert said is None or len(said) < 500


def test_experts_are_chosen_as_parameters():
    """By the parameter's path, and not by all-linear, as PEFT does."""
    from peft import LoraConfig, get_peft_model

    build, sizes = FAMILIES["gpt_oss"]
    sizes = {**sizes, "num_local_experts": 3}
    model = lt.catalogue.architecture_from_config({"model_type": "gpt_oss", **sizes})
    down = ["mlp.experts.down_proj"]
    with torch.device("meta"):
        network = build.from_config(AutoConfig.for_model("gpt_oss", **sizes))
        config = LoraConfig(r=4, target_modules="all-linear", target_parameters=down)
        adapted = get_peft_model(network, config)
    trained = sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
    chosen = {m.name: m for targets in ("all-linear", down) for m in model.select(targets)}
    assert trained == sum(4 * (m.m + m.n) for m in chosen.values())
    assert sum(m.expert for m in chosen.values()) == 3 * sizes["num_hidden_layers"]
    assert model.select(r".*\.1\.mlp\.experts\.gate_up_proj")[2].name.endswith("gate_up_proj.2")
