"""`lotr count` as a user meets it."""

import json
from pathlib import Path

import pytest

import lotr_tn as lt


@pytest.fixture
def count(lotr):
    """`lotr count` with some arguments."""
    return lambda *arguments: lotr("count", *arguments)


def figures(out):
    """The lines of the table of ranks, as numbers without separators."""
    rows = [line.replace(",", "").split() for line in out.splitlines()]
    return [row for row in rows if len(row) == 6 and row[0].isdigit()]


def test_the_published_table(count):
    status, out, err = count(
        "--model", "roberta-base", "--target", "query,value", "--group-by", "shape"
    )
    assert (status, err) == (0, "")
    assert [row[1:4] for row in figures(out)] == [
        ["36864", "1560", "24"],
        ["73728", "3168", "96"],
        ["147456", "6528", "384"],
        ["294912", "13824", "1536"],
        ["589824", "30720", "6144"],
        ["1179648", "73728", "24576"],
    ]
    assert "query, value: 24 of 72 linear modules, 14,155,776 weights" in out
    assert "1,536 r + 24 r²" in out
    assert "up to rank 1,471" in out


def test_three_sources_agree(count, tmp_path):
    config = {
        "model_type": "roberta", "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    sources = (
        ["--model", "roberta-base"],
        ["--config", tmp_path],
        ["--config", "config.json"],
        ["query=12x768x768", "value=12x768x768"],
    )
    tables = []
    for source in sources:
        status, out, err = count(*source, "--group-by", "shape", "--rank", "2,64", "--json")
        assert (status, err) == (0, "")
        tables.append(json.loads(out)["ranks"])
    assert all(table == tables[0] for table in tables)
    assert tables[0][1] == {
        "rank": 64,
        "params_lora": 2_359_296,
        "params_lotr": 196_608,
        "params_cp": 99_840,
        "params_tt": 3_569_664,
        "params_cores": 98_304,
        "ratio": 196_608 / 2_359_296,
        "equal_size_rank": 283,
    }


def test_json_of_groups(count):
    _, out, _ = count("q=2x6x5", "v=3x4x5", "--rank", "2", "--json")
    record = json.loads(out)
    assert record["targets"] == ["all-linear"]
    assert (record["modules"], record["params_dense"], record["group_by"]) == (5, 120, "kind")
    assert [group["name"] for group in record["groups"]] == ["q", "v"]
    assert record["groups"][1] == {
        "name": "v",
        "modules": ["layers.0.v", "layers.1.v", "layers.2.v"],
        "shape": [3, 4, 5],
        "params_dense": 60,
        "ranks": [
            {
                "rank": 2,
                "params_lora": 54,
                "params_lotr": 30,
                "params_cores": 12,
                "params_cp": 24,
                "params_tt": 54,
            }
        ],
    }
    for key in ("params_lora", "params_lotr", "params_cores"):
        assert record["ranks"][0][key] == sum(g["ranks"][0][key] for g in record["groups"])


def test_targets_and_rules(count):
    for target, modules in (
        ("all-linear", 224),
        ("q_proj", 32),
        ("q_proj, mlp.up_proj", 64),
        (r".*\.(0|1)\.mlp\..*", 6),
    ):
        status, out, _ = count("--model", "llama-2-7b", "--target", target, "--json")
        assert (status, json.loads(out)["modules"]) == (0, modules)
    _, out, _ = count(
        "--model", "llama-2-7b", "--target", "all-linear", "--group-by", "(self_attn)", "--json"
    )
    assert [group["name"] for group in json.loads(out)["groups"]] == [
        "self_attn", "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip


def test_no_sharing_is_said(count):
    _, out, _ = count("1x8x6")
    assert "LoTR stores less at no rank" in " ".join(out.split())


def test_the_list(count):
    from lotr_tn.catalogue.architecture import known_architectures

    status, out, _ = count("--list")
    assert status == 0
    assert all(f" {name} " in out for name in known_architectures())
    assert all(kind in out for kind in lt.catalogue.MODEL_TYPES)
    _, out, _ = count("--list", "--json")
    assert json.loads(out)["model_types"] == list(lt.catalogue.MODEL_TYPES)
    models = {model.pop("name"): model for model in json.loads(out)["models"]}
    assert set(models) == set(known_architectures())
    assert models["llama-2-7b"] == {
        "modules": 224, "params_dense": 6_476_005_376, "targets": ["q_proj", "v_proj"],
    }  # fmt: skip


def test_output_fits_80_columns(count):
    for arguments in (
        ["--list"],
        ["--model", "llama-2-70b", "--target", "all-linear", "--rank", "1,4096,8192"],
        ["--model", "t5-large", "--target", "all-linear"],
        ["--model", "bert-base", "--target", "dense", "--group-by", "(.*)"],
    ):
        status, out, _ = count(*arguments)
        assert status == 0
        assert "…" not in out
        assert max(len(line) for line in out.splitlines()) <= 80


def test_quiet_prints_nothing(count):
    assert count("--model", "gpt2", "-q") == (0, "", "")
    assert count("--list", "-q") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "exactly one of SHAPES"),
        (["2x3x4", "--model", "gpt2"], "exactly one of SHAPES"),
        (["--list", "--config", "x"], "exactly one of SHAPES"),
        (["2x3x4", "--rank", "1,two"], "--rank takes ranks with commas"),
        (["2x3x4", "--rank", ""], "--rank takes ranks with commas"),
        (["2x3x4", "--rank", "0"], "whole numbers of at least 1"),
        (["2x3"], "found '2x3'"),
        (["--model", "gtp2"], "near it are gpt2"),
        (["--model", "gpt2", "--target", "q_proj"], "its modules end in c_attn, c_proj, c_fc"),
        (["--model", "gpt2", "--target", ","], "matches no module"),
        (["--model", "gpt2", "--group-by", "("], "--group-by takes kind, shape or"),
    ],
)
def test_wrong_usage(count, arguments, said):
    status, out, err = count(*arguments)
    assert (status, out) == (2, "")
    assert said in " ".join(err.replace("│", " ").split())


def test_the_text_model_is_named(count):
    """With a byte-order mark, as some editors write it."""
    text = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "intermediate_size": 96}
    config = json.dumps({"model_type": "llava", "text_config": text})
    Path("config.json").write_text(config, "utf-8-sig")
    status, out, _ = count("--config", "config.json", "--rank", "8")
    assert status == 0
    assert "config.json (text model)" in out
    assert figures(out)[0][1] == str(8 * 2 * 2 * (64 + 64))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file; give the config.json"),
        ("{", "config.json is not valid JSON"),
        ("[1]", "holds a list, not a JSON object"),
        ("{}", "has no model_type"),
        ('{"model_type": "mamba"}', "'mamba' is not known here; near it are llama"),
        ('{"model_type": ' + "[" * 20_000, "is not valid JSON"),
        ('{"model_type": ' + "1" * 5_000 + "}", "is not valid JSON"),
        ('{"model_type": "gpt2"}', "gives no hidden_size or n_embd"),
        (b"\xff\xfe\x00", "cannot be read as text"),
    ],
)
def test_refused_configs(count, tmp_path, text, said):
    if text is not None:
        (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    status, out, err = count("--config", "config.json")
    assert (status, out) == (1, "")
    assert said in err
    assert err.count("\n") == 1
