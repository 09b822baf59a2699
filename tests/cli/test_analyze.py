"""`lotr analyze`, and `lotr convert --format auto`, as a user meets them."""

import json
import shlex
from pathlib import Path

import pytest
from safetensors import safe_open

import lotr_tn as lt
from lotr_tn.report.numbers import byte_size
from tests.cli.conftest import of_json
from tests.files import peft_models as pm

RECORD = {
    "sources", "base_model", "dtype", "question", "met", "verdict", "params", "bytes",
    "recommended", "seconds", "groups", "stackings", "budgets",
}  # fmt: skip
GROUP = {
    "name", "modules", "labels", "shape", "layer_ranks", "params", "bytes", "norm", "spectra",
    "stable_ranks", "numerical_ranks", "candidates", "recommended", "front", "curves", "overlap",
    "clusters", "clustered_params", "clustered_error", "params_within", "break_even_layers",
    "advice", "member",
}  # fmt: skip
CANDIDATE = {
    "format", "label", "params", "bytes", "ratio", "relative_error", "ranks", "measured",
    "least_params",
}  # fmt: skip
FORMATS = ["lora", "truncated", "lotr", "shared-in", "shared-out", "lotr-low-rank"]
QUESTIONS = {
    "each": ["--rel-error", "0.2"],
    "total": ["--total-error", "0.2"],
    "params": ["--max-params", "30000"],
    "bytes": ["--max-bytes", "200kB"],
}
each_question = pytest.mark.parametrize("question", QUESTIONS)


@pytest.fixture
def two(tmp_path):
    """Two adapters of one base, of different ranks."""
    pm.adapt(pm.llama, tmp_path / "one", r=2, target_modules=["q_proj", "v_proj"])
    pm.adapt(pm.llama, tmp_path / "other", r=3, target_modules=["q_proj", "v_proj"])
    return tmp_path / "one", tmp_path / "other"


def test_one_json_object_with_its_keys(lotr, demo_adapter):
    record = of_json(lotr("analyze", demo_adapter, "--group-by", "kind", "--json"))
    assert set(record) >= RECORD
    assert record["sources"] == [str(demo_adapter)]
    assert record["question"] == {"kind": "rel_error", "value": 0.05}
    assert record["params"] == 81920
    assert record["bytes"] == 4 * 81920
    assert [group["name"] for group in record["groups"]] == [
        "gate_proj", "k_proj", "o_proj", "q_proj", "v_proj",
    ]  # fmt: skip
    for group in record["groups"]:
        assert set(group) >= GROUP
        assert "surface" not in group, "large, and only for the page"
        assert [candidate["format"] for candidate in group["candidates"]] == FORMATS
        for candidate in group["candidates"]:
            assert set(candidate) >= CANDIDATE
        assert [curve["format"] for curve in group["curves"]] == FORMATS
        assert set(group["params_within"]) == set(FORMATS)
        assert set(group["params_within"]["lora"]) == {"0.3", "0.1", "0.05", "0.01"}
        assert set(group["overlap"]) >= {"left", "right", "chance", "means"}
        assert set(group["spectra"]) == {"left", "right", "layers"}
    assert {
        "name",
        "label",
        "params",
        "bytes",
        "relative_error",
        "stacks",
        "chosen",
        "note",
    } == set(record["stackings"][0])
    assert [s["name"] for s in record["stackings"] if s["chosen"]] == ["kind"]
    assert 10 < len(record["budgets"]) <= 100
    assert lotr("analyze", demo_adapter, "--quiet") == (0, "", "")


@each_question
def test_what_is_predicted_is_what_is_converted(lotr, demo_adapter, question):
    asked = QUESTIONS[question]
    record = of_json(lotr("analyze", demo_adapter, *asked, "--json"))
    assert record["met"]
    converted = of_json(
        lotr("convert", demo_adapter, "--format", "auto", *asked, "-o", "a.safetensors", "--json")
    )
    assert converted["params_after"] == record["recommended"]["params"]
    (chosen,) = (way for way in record["stackings"] if way["chosen"])
    assert converted["bytes_after"] == record["recommended"]["bytes"] == chosen["bytes"]
    found, wanted = converted["relative_error"], record["recommended"]["relative_error"]
    assert found == pytest.approx(wanted, abs=1e-9)
    for group, predicted in zip(converted["groups"], record["groups"], strict=True):
        best = next(c for c in predicted["candidates"] if c["format"] == predicted["recommended"])
        assert group["format"] == best["format"]
        assert group["params_after"] == best["params"]
        assert group["relative_error"] == pytest.approx(best["relative_error"], abs=1e-9)
    match question:
        case "each":
            assert all(group["relative_error"] <= 0.2 for group in converted["groups"])
        case "total":
            assert found <= 0.2
        case "params":
            assert 20_000 < converted["params_after"] <= 30_000
        case "bytes":
            assert 150_000 < converted["bytes_after"] <= 200_000
    assert converted["params_after"] <= converted["params_before"]
    assert lotr("export", "a.safetensors", "-o", "again", "-q")[0] == 0
    compared = of_json(lotr("compare", demo_adapter, "again", "--json"))
    assert compared["relative_error"] == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("question", ["each", "bytes"])
def test_the_text_says_what_to_do_next(lotr, demo_adapter, question):
    status, out, err = lotr("analyze", demo_adapter.name, *QUESTIONS[question])
    assert (status, err) == (0, "")
    record = of_json(lotr("analyze", demo_adapter.name, *QUESTIONS[question], "--json"))
    words = " ".join(out.split())
    for sentence in record["verdict"]:
        assert sentence in words
    option, value = QUESTIONS[question]
    value = {"200kB": "200000"}.get(value, value)
    assert words.endswith(f"--format auto {option} {value}")
    assert f"Next lotr convert {demo_adapter.name}" in words
    assert max(len(line) for line in out.splitlines() if "/" not in line) <= 80


def test_what_to_do_next_writes_what_is_recommended(lotr, demo_adapter):
    asked = ("--rel-error", "0.2", "--each-layer", "--max-rank", "6", "--group-by", "kind")
    _, out, _ = lotr("analyze", demo_adapter.name, *asked, "--dtype", "float32")
    *_, command = out.strip().split("Next ")
    assert command.split()[2:] == [
        *(demo_adapter.name, "--format", "auto", "--rel-error", "0.2", "--max-rank=6"),
        *("--each-layer", "--group-by=kind", "--dtype=float32"),
    ]
    record = of_json(lotr("analyze", demo_adapter.name, *asked, "--dtype", "float32", "--json"))
    made = of_json(lotr(*command.split()[1:], "-o", "next.safetensors", "--json"))
    assert made["bytes_after"] == record["recommended"]["bytes"]


def test_all_groups_are_shown_when_asked(lotr, demo_adapter):
    _, few, _ = lotr("analyze", demo_adapter, "--group-by", "kind")
    _, all_of_them, _ = lotr("analyze", demo_adapter, "--group-by", "kind", "--all")
    assert "LoRA as it is" not in few
    assert "--all" in few
    assert [line.split()[0] for line in all_of_them.split("\n") if line.strip()].count("lora") == 5
    assert all_of_them.count("LoRA as it is") == 1
    assert "More " not in all_of_them
    ends = [" ".join(text.split("\n\n")[-1].split()) for text in (few, all_of_them)]
    assert ends[0] == ends[1]
    assert ends[0].startswith("Smallest: ")


def test_one_group_alone(lotr, demo_adapter):
    whole = of_json(lotr("analyze", demo_adapter, "--group-by", "kind", "--json"))
    part = of_json(lotr("analyze", demo_adapter, "--group", "q_proj", "--json"))
    (group,) = part["groups"]
    same = next(g for g in whole["groups"] if g["name"] == "q_proj")
    assert group["candidates"] == same["candidates"]
    assert part["params"] == group["params"] == 16384
    pair = of_json(
        lotr("analyze", demo_adapter, "--group", "q_proj", "--group", "k_proj", "--json")
    )
    assert {g["name"] for g in pair["groups"]} == {"q_proj", "k_proj"}


@pytest.mark.parametrize(
    ("group_by", "names"),
    [("kind", 5), ("shape", 3), (r"(self_attn|mlp)", None)],
)
def test_ways_of_grouping(lotr, demo_adapter, group_by, names):
    asked = ["--group-by", group_by, "--rel-error", "0.1"]
    record = of_json(lotr("analyze", demo_adapter, *asked, "--json"))
    assert names is None or len(record["groups"]) == names
    assert next(s["name"] for s in record["stackings"] if s["chosen"]) == group_by
    converted = of_json(lotr("convert", demo_adapter, "--format", "auto", *asked, "--json"))
    assert converted["params_after"] == record["recommended"]["params"]
    (chosen,) = (way for way in record["stackings"] if way["chosen"])
    assert converted["bytes_after"] == record["recommended"]["bytes"] == chosen["bytes"]


def test_figures_and_pages_are_written(lotr, demo_adapter, tmp_path):
    pytest.importorskip("matplotlib")
    status, out, err = lotr(
        "analyze", demo_adapter, "--group", "q_proj", "--plot", "a.png", "--html", "a.html"
    )
    assert (status, err) == (0, "")
    assert "Written         a.png" in out
    assert "Written         a.html" in out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html")
    assert "q_proj" in page
    assert lotr("analyze", demo_adapter, "--group", "q_proj", "--plot", "a.svg", "-q") == (
        0,
        "",
        "",
    )
    assert "<svg" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize("option", ["--html", "--plot"])
def test_existing_files_stay_as_they_were(lotr, demo_adapter, tmp_path, option):
    pytest.importorskip("matplotlib")
    file = tmp_path / {"--html": "a.html", "--plot": "a.png"}[option]
    file.write_text("mine")
    status, out, err = lotr("analyze", demo_adapter, option, file)
    assert (status, out) == (1, "")
    assert "exists; name another destination, or replace it with --force" in err
    assert err.count("\n") == 1
    assert file.read_text() == "mine"
    assert lotr("analyze", demo_adapter, "--group", "q_proj", option, file, "--force", "-q") == (
        0,
        "",
        "",
    )
    assert file.stat().st_size > 5000


def test_several_adapters(lotr, two):
    one, other = two
    record = of_json(lotr("analyze", one, other, "--rel-error", "0.3", "--json"))
    assert record["sources"] == [str(one), str(other)]
    assert [s["name"] for s in record["stackings"]] == ["layers", "adapters", "adapters-layers"]
    assert [s["stacks"] for s in record["stackings"]] == [4, 6, 2]
    assert sum(s["chosen"] for s in record["stackings"]) == 1
    chosen = next(s for s in record["stackings"] if s["chosen"])
    assert chosen["bytes"] == min(s["bytes"] for s in record["stackings"])
    assert record["params"] == sum(lt.load_adapter(folder).parameters for folder in two)
    assert record["verdict"][-1].startswith(f"Best stacked: {chosen['label']}, ")
    member = {"layers": "layer", "adapters": "adapter", "adapters-layers": "update"}[chosen["name"]]
    for group in record["groups"]:
        assert group["member"] == member
        assert f"across these {group['shape'][0]} {member}s costs" in group["advice"]
        assert f"these {member}s " in group["advice"].partition(";")[2]
    _, out, _ = lotr("analyze", one, other)
    words = " ".join(out.split())
    assert "2 adapters: one, other" in words
    assert "each module over the adapters" in words
    assert "lotr convert" not in words, "there is no one file to convert"
    assert words.endswith(
        f"Next lotr bank make {one} {other} --rel-error 0.05 -o bank.lotr.safetensors"
    )


def test_adapters_of_different_bases(lotr, two, demo_adapter, tmp_path):
    one, _ = two
    tensors, moved = {}, tmp_path / "moved"
    moved.mkdir()
    with safe_open(one / "adapter_model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118
            value = file.get_tensor(key)
            tensors[key] = value[:, :20].contiguous() if "lora_A" in key else value
    from safetensors.torch import save_file

    save_file(tensors, moved / "adapter_model.safetensors")
    (moved / "adapter_config.json").write_text((one / "adapter_config.json").read_text())
    status, out, err = lotr("analyze", one, moved)
    assert (status, out) == (1, "")
    assert "model.layers.0.self_attn.q_proj is 32x32 in one and 32x20 in moved" in err
    assert "needed adapters of one base" in err
    assert err.count("\n") == 1
    status, _, err = lotr("analyze", one, one)
    assert status == 1
    assert "one is named twice; name each adapter once" in err


def test_a_lotr_file_is_analysed_as_the_lora_that_it_is(lotr, demo_adapter):
    assert lotr("convert", demo_adapter, "--rank", "4", "-o", "a.safetensors", "-q")[0] == 0
    record = of_json(lotr("analyze", "a.safetensors", "--rel-error", "0.001", "--json"))
    assert {group["recommended"] for group in record["groups"]} == {"lotr"}
    wanted = sum(
        4 * (m + n) + 16 * layers for layers, m, n in (g["shape"] for g in record["groups"])
    )
    assert record["recommended"]["params"] == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rel-error", "0.1", "--max-params", "9"], "give one of --rel-error, --total-error"),
        (["--total-error", "0.1", "--max-bytes", "9"], "give one of --rel-error, --total-error"),
        (["--rel-error", "2"], "a relative error must be at least 0 and below 1"),
        (["--total-error", "-1"], "a relative error must be at least 0 and below 1"),
        (["--group", "nothing"], "there is no group 'nothing'; the groups are gate_proj, k_proj"),
        (["--max-params", "5"], "the smallest result, with one direction in every group, takes"),
        (["--max-params", "-5"], "a whole number of parameters"),
        (["--max-bytes", "5XB"], "a size must be bytes, or such as 5MiB or 800kB; found '5XB'"),
        (["--max-bytes", "5"], "ask for more"),
        (["--group-by", "("], "kind, shape or a regular expression"),
        (["--min-rank", "5", "--max-rank", "3"], "the smallest rank must be at least 0"),
        (["--dtype", "int8"], "int8"),
        (["--rel-error", "much"], "--rel-error"),
        (["--plot", "a.gif"], "a.gif"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_questions_that_make_no_sense_exit_2(lotr, demo_adapter, arguments, message):
    status, out, err = lotr("analyze", demo_adapter, *arguments)
    assert (status, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "auto", "--rank", "4"], "--format auto has no ranks to be told"),
        (["--format", "hyper", "--rank", "4"], "hyper"),
        (["--format", "auto", "--max-bytes", "5XB"], "a size must be bytes"),
        (["--format", "auto", "--max-params", "5"], "one direction in every group"),
        (["--format", "auto", "--rel-error", "0.1", "--keep", "zzz"], "is found in no module"),
        (["--format", "auto", "--rel-error", "0.1", "--max-params", "9"], "exactly one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_conversions_that_make_no_sense_exit_2(lotr, demo_adapter, tmp_path, arguments, message):
    status, out, err = lotr("convert", demo_adapter, *arguments)
    assert (status, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("format", ["truncated", "shared-in", "shared-out", "lotr-low-rank"])
def test_single_formats(lotr, demo_adapter, format):
    one = of_json(lotr("convert", demo_adapter, "--format", format, "--rel-error", "0.3", "--json"))
    assert {group["format"] for group in one["groups"]} == {format}
    assert all(group["relative_error"] <= 0.3 for group in one["groups"])
    fixed = of_json(
        lotr("convert", demo_adapter, "--format", format, "--rank", "4", "--json", "--force")
    )
    assert all(max(group["ranks"][:1]) <= 4 for group in fixed["groups"])


def test_kept_modules(lotr, demo_adapter):
    record = of_json(
        lotr(
            "convert", demo_adapter, "--format", "auto", "--rel-error", "0.2",
            "--keep", r"layers\.0\.", "-o", "a.safetensors", "--json", "--group-by", "kind",
        )
    )  # fmt: skip
    kept = [group for group in record["groups"] if group["name"].endswith(".kept")]
    assert [group["relative_error"] for group in kept] == [0] * 5
    assert {name for group in kept for name in group["modules"]} == {
        module.target.name
        for module in lt.load_adapter(demo_adapter).modules
        if ".layers.0." in f".{module.target.name}"
    }
    inspected = of_json(lotr("inspect", "a.safetensors", "--json"))
    assert inspected["params"] == record["params_after"]


def test_refused_input_exits_1(lotr, demo_adapter):
    for arguments, message in (
        (["nowhere"], "nowhere: no such file or folder"),
        ([demo_adapter, "--html", "no/a.html"], "the folder no does not exist"),
    ):
        status, out, err = lotr("analyze", *arguments)
        assert (status, out) == (1, ""), arguments
        assert message in err
        assert err.count("\n") == 1


def test_bits_are_told_as_they_are_written(lotr, demo_adapter):
    status, out, _ = lotr("analyze", demo_adapter, "--rel-error", "0.2", "--coding", "auto")
    assert status == 0
    *_, command = out.strip().split("Next ")
    assert "--coding" in command
    _, out, _ = lotr("analyze", demo_adapter, "--rel-error=0.2", "--coding=auto", "--json")
    told = json.loads(out)
    words = " ".join(told["verdict"])
    assert words.startswith("Smallest in numbers: ")
    assert f"in a file of {byte_size(told['in_bits']['bytes'])}) at" in words
    status, _, err = lotr(*shlex.split(command)[1:], "-o", "bits.lotr.safetensors")
    assert status == 0, err
    assert Path("bits.lotr.safetensors").stat().st_size == told["in_bits"]["bytes"]
    assert told["in_bits"]["bytes"] < 0.5 * told["recommended"]["bytes"]
    assert told["in_bits"]["relative_error"] <= 0.2


def test_bits_at_other_errors_are_told_with_all(lotr, demo_adapter):
    asked = "analyze", demo_adapter, "--rel-error=0.2", "--coding=auto", "--group=v_proj"
    told = json.loads(lotr(*asked, "--json")[1])
    within = told["in_bits"]["within"]
    table = lotr(*asked, "--all")[1].partition("Bytes at, together")[2].partition("Form")[0]
    for bound, bits in within.items():
        (row,) = (x for x in table.splitlines() if x.split()[:1] == [bound])
        least = min(b["bytes"] for b in told["budgets"] if b["relative_error"] <= float(bound))
        assert bits["rate"] < bits["bytes"] < least
        assert row.split()[1:] == [
            word
            for size in (least, bits["bytes"], bits["rate"])
            for word in byte_size(size).split()
        ]
    assert "Bytes at" not in lotr(*asked)[1]


def test_a_bank_in_bits_is_told_as_it_is_written(lotr, two):
    asked = "--rel-error", "0.3", "--coding", "auto"
    _, out, _ = lotr("analyze", *two, *asked, "--json")
    told = json.loads(out)["recommended"]["bytes"]
    status, _, err = lotr("bank", "make", *two, *asked, "-o", "bits.lotr.safetensors")
    assert status == 0, err
    assert Path("bits.lotr.safetensors").stat().st_size == told


@pytest.mark.parametrize(
    "options", [("--dtype", "float16"), ("--max-rank", "3"), ("--max-params", "5000")]
)
def test_bits_with_what_they_do_not_go_with_are_refused(options, lotr, demo_adapter):
    status, out, err = lotr("analyze", demo_adapter, *options, "--coding", "auto")
    assert (status, out) == (2, "")
    assert "coding" in err


def test_bits_of_several_within_each_layer_are_refused(lotr, two):
    status, out, err = lotr("analyze", *two, "--rel-error=0.3", "--each-layer", "--coding=auto")
    assert (status, out) == (2, "")
    assert "in bits is told for an error of each" in err
