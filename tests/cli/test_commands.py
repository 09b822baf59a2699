"""The program as a user meets it: output, JSON, exit statuses, help."""

import json

import pytest

import lotr_tn as lt
from tests.cli.conftest import of_json

COMMANDS = [
    "demo", "inspect", "analyze", "convert", "export", "compare", "merge", "count", "bank make",
    "bank show", "bank export", "bank merge", "bank add", "bank drop", "bank rename",
    "bank compact", "bank verify",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_fits_80_columns(lotr, command):
    essentials = command in ("convert", "bank make")
    status, out, _ = lotr(*command.split(), "--help-all" if essentials else "--help")
    assert status == 0
    assert f"Example: lotr {command}" in " ".join(out.split())
    assert max(len(line) for line in out.splitlines()) <= 80
    for flag in ("--json", "--quiet", "--debug"):
        assert flag in out


def test_no_arguments_show_the_commands(lotr):
    _, out, err = lotr()
    assert all(command.split()[0] in out + err for command in COMMANDS)
    _, out, err = lotr("bank")
    assert all(c.split()[1] in out + err for c in COMMANDS if c.startswith("bank"))


def test_version(lotr):
    assert lotr("--version")[1] == f"lotr_tn {lt.__version__}\n"


LOTR = ("--format", "lotr", "--group-by", "kind")


def test_convert_export_compare(lotr, demo_adapter):
    record = of_json(
        lotr(
            "convert",
            demo_adapter,
            *LOTR,
            "--rel-error",
            0.1,
            "--dtype",
            "float32",
            "-o",
            "a.lotr.safetensors",
            "--json",
        )
    )
    keys = {
        "relative_error", "params_before", "params_after", "bytes_before", "bytes_after", "seconds",
        "groups", "untouched", "destination",
    }  # fmt: skip
    assert keys <= set(record)
    of_group = {
        "name", "modules", "shape", "ranks", "relative_error", "lower_bound", "upper_bound",
        "params_before", "params_after", "sweeps",
    }  # fmt: skip
    for group in record["groups"]:
        assert of_group <= set(group)
        assert group["lower_bound"] <= group["relative_error"] <= group["upper_bound"]
        assert group["relative_error"] <= 0.1
        layers, m, n = group["shape"]
        r1, r2 = group["ranks"]
        assert group["params_after"] == m * r1 + n * r2 + layers * r1 * r2
        assert group["params_before"] == layers * 8 * (m + n)
    assert record["relative_error"] <= 0.1
    export = of_json(lotr("export", "a.lotr.safetensors", "-o", "again", "--json"))
    assert export["rank"] == 8
    compared = of_json(lotr("compare", demo_adapter, "again", "--json"))
    assert set(compared) == {"relative_error", "cosine", "modules"}
    assert abs(compared["relative_error"] - record["relative_error"]) < 1e-5
    assert len(compared["modules"]) == 40
    direct = of_json(lotr("compare", "a.lotr.safetensors", "again", "--json"))
    assert direct["relative_error"] < 1e-6


def test_default_destinations(lotr, demo_adapter):
    assert lotr("convert", demo_adapter, "--rank", "4,6", "-q") == (0, "", "")
    assert lt.load_adapter("demo-adapter.lotr.safetensors").groups["q_proj"].stack.ranks == (4, 6)
    assert lotr("export", "demo-adapter.lotr.safetensors", "-q", "--ranks", "minimal")[0] == 0
    assert max(m.target.rank for m in lt.load_adapter("demo-adapter-peft").modules) <= 6


def test_tables_fit_80_columns(lotr, demo_adapter):
    for command in (
        ["inspect", demo_adapter],
        ["convert", demo_adapter, "--rel-error", "0.01", "-o", "a.lotr.safetensors"],
        ["inspect", "a.lotr.safetensors"],
        ["export", "a.lotr.safetensors"],
        ["compare", demo_adapter, "a.lotr.safetensors", "--all"],
    ):
        status, out, err = lotr(*command)
        assert (status, err) == (0, "")
        assert max(len(line) for line in out.splitlines() if "/" not in line) <= 80


def test_a_larger_lotr_is_said(lotr, demo_adapter):
    _, out, _ = lotr("convert", demo_adapter, *LOTR, "--rel-error", "0.01", "--dtype", "float32")
    words = " ".join(out.split())
    assert "2.83x the parameters of this LoRA" in words
    assert "cutting each layer's own rank would take 0.99x" in words
    assert "hardly share a subspace" in words
    _, out, _ = lotr("convert", demo_adapter, "--rank", "2", "-o", "b.lotr.safetensors")
    assert "the parameters of this LoRA" not in out or "cutting" in out


@pytest.mark.parametrize("group_by", ["kind", "shape", r"(self_attn|mlp)"])
@pytest.mark.parametrize("method", ["hooi", "st-hosvd", "hosvd"])
def test_options(lotr, demo_adapter, method, group_by):
    record = of_json(
        lotr(
            "convert",
            demo_adapter,
            "--format",
            "lotr",
            "--energy",
            "0.9",
            "--method",
            method,
            "--group-by",
            group_by,
            "--json",
        )
    )
    assert record["relative_error"] ** 2 <= 0.1
    assert {group["method"] for group in record["groups"]} == {method}
    assert len(record["groups"]) == {"kind": 5, "shape": 3}.get(group_by, 3)


def test_torch_backend(lotr, demo_adapter):
    one = of_json(lotr("convert", demo_adapter, "--rank", "6", "--json"))
    two = of_json(
        lotr(
            "convert",
            demo_adapter,
            "--rank",
            "6",
            "--backend",
            "torch",
            "--device",
            "cpu",
            "--force",
            "--json",
        )
    )
    assert abs(one["relative_error"] - two["relative_error"]) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "A"], "exactly one of"),
        (["convert", "A", "--rank", "4", "--energy", "0.9"], "exactly one of"),
        (["convert", "A", "--rank", "x"], "R or R1,R2"),
        (["convert", "A", "--rank", "1,2,3"], "R or R1,R2"),
        (["convert", "A", "--rank", "-3"], "R or R1,R2"),
        (["convert", "A", "--rel-error", "much"], "--rel-error"),
        (["convert", "A", "--method", "magic"], "magic"),
        (["convert"], "Missing argument"),
        (["invent"], "No such command"),
        (["inspect", "A", "--wrong"], "--wrong"),
    ],
)
def test_wrong_usage_exits_2(lotr, demo_adapter, arguments, message):
    status, out, err = lotr(*[str(demo_adapter) if a == "A" else a for a in arguments])
    assert (status, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "nowhere: no such file or folder"),
        (
            ["convert", "A", "--rank", "4", "-o", "no/a.lotr.safetensors"],
            "the folder no does not exist",
        ),
        (["convert", "A", "--rank", "4", "-o", "a.bin"], "must end in .safetensors"),
        (["convert", "A", "--rank", "4", "--device", "cuda"], "choose backend torch"),
        (["export", "A"], "is a PEFT LoRA already"),
        (["compare", "A", "nowhere"], "nowhere"),
    ],
)
def test_refused_input_exits_1_with_one_sentence(lotr, demo_adapter, arguments, message):
    status, out, err = lotr(*[str(demo_adapter) if a == "A" else a for a in arguments])
    assert (status, out) == (1, "")
    assert message in err
    assert err.startswith("lotr: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rel-error", "2"], "a relative error must be"),
        (["--energy", "0"], "an energy must be"),
        (["--rank", "4", "--group-by", "("], "kind, shape or a regular expression"),
    ],
)
def test_values_that_make_no_sense_exit_2(lotr, demo_adapter, arguments, message):
    status, out, err = lotr("convert", demo_adapter, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("lotr: ")
    assert message in err


def test_names_with_dots(lotr, demo_adapter, tmp_path):
    demo_adapter.rename(tmp_path / "Llama-3.2-lora")
    assert lotr("convert", "Llama-3.2-lora", "--rank", "2", "-q")[0] == 0
    assert lotr("convert", "Llama-3.2-lora/adapter_model.safetensors", "--rank", "2", "-q")[0] == 0
    names = {p.name for p in tmp_path.glob("*.lotr.safetensors")}
    assert names == {"Llama-3.2-lora.lotr.safetensors", "adapter_model.lotr.safetensors"}


def test_existing_targets(lotr, demo_adapter):
    assert lotr("convert", demo_adapter, "--rank", "4", "-q")[0] == 0
    status, _, err = lotr("convert", demo_adapter, "--rank", "4", "-q")
    assert status == 1
    assert "exists; name another destination, or replace it with --force" in err
    assert lotr("convert", demo_adapter, "--rank", "4", "-q", "--force")[0] == 0
    assert lotr("export", "demo-adapter.lotr.safetensors", "-q")[0] == 0
    assert lotr("export", "demo-adapter.lotr.safetensors", "-q")[0] == 1
    assert lotr("export", "demo-adapter.lotr.safetensors", "-q", "--force")[0] == 0
    status, _, err = lotr(
        "convert", "demo-adapter.lotr.safetensors", "--rank", "4", "-o", "b.lotr.safetensors"
    )
    assert status == 1
    assert "is a LoTR file already" in err


def test_an_error_that_cannot_be_met_exits_3(lotr, demo_adapter):
    status, out, err = lotr(
        "convert", demo_adapter, *LOTR, "--rel-error", "1e-5", "--dtype", "bfloat16", "--json"
    )
    assert status == 3
    record = json.loads(out)
    assert not record["met"]
    assert record["relative_error"] > 1e-5
    assert "bfloat16 cannot hold the error asked for" in err


def test_compare_exits_3_above_the_error_allowed(lotr, demo_adapter):
    lotr("convert", demo_adapter, "--rank", "4", "-q")
    file = "demo-adapter.lotr.safetensors"
    assert lotr("compare", demo_adapter, file, "--max-rel-error", "0.99", "-q")[0] == 0
    status, out, err = lotr("compare", demo_adapter, file, "--max-rel-error", "0.01", "--json")
    assert status == 3
    assert json.loads(out)["relative_error"] > 0.01
    assert "above the 0.01 allowed" in err


def test_unexpected_errors_are_one_sentence_unless_debugged(lotr, monkeypatch, demo_adapter):
    def broken(*_):
        raise ZeroDivisionError("by design")

    monkeypatch.setattr("lotr_tn.cli.inspect.load_adapter", broken)
    status, _, err = lotr("inspect", demo_adapter)
    assert status == 1
    assert (
        err
        == "lotr: unexpected ZeroDivisionError: by design; run it again with --debug to see where\n"
    )
    with pytest.raises(ZeroDivisionError):
        lotr("inspect", demo_adapter, "--debug")


def test_inspect(lotr, demo_adapter):
    record = of_json(lotr("inspect", demo_adapter, "--json"))
    assert record["format"] == "peft-lora"
    assert record["params"] == 81920
    assert {group["name"] for group in record["groups"]} == {
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "v_proj",
    }
    assert all(set(group["scales"]) == {2.0} for group in record["groups"])
    _, out, _ = lotr("inspect", demo_adapter)
    assert "alpha / r = 16 / 8" in out


def test_extras_are_named_and_may_be_left_out(lotr, tmp_path):
    from tests.files import peft_models as pm

    config = {"r": 2, "target_modules": ["query"], "task_type": "SEQ_CLS"}
    pm.adapt(pm.bert, tmp_path / "lora", **config)
    _, out, _ = lotr("convert", "lora", "--rank", "2")
    assert "other tensor" in out
    _, out, _ = lotr("inspect", "lora.lotr.safetensors")
    assert "classifier" in out
    assert lotr("export", "lora.lotr.safetensors", "--no-extras", "-o", "bare", "-q")[0] == 0
    bare = lt.load_adapter("bare")
    assert not bare.extras
    assert bare.config["modules_to_save"] is None
    assert lt.load_adapter("lora").extras


def test_progress_goes_to_stderr_after_a_second(monkeypatch, capsys):
    from lotr_tn.cli.console import progress

    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    clock = iter([0.0, 0.5, 2.0, 3.0])
    monkeypatch.setattr("lotr_tn.cli.console.time.monotonic", lambda: next(clock))
    with progress(3, quiet=False) as step:
        for name in ("q_proj", "k_proj", "v_proj"):
            step(name)
    out = capsys.readouterr()
    assert out.out == ""
    assert "v_proj" in out.err
    with progress(3, quiet=True) as step:
        step("q_proj")
    assert capsys.readouterr().err == ""


def test_infinite_errors_are_null_in_json(lotr, tmp_path):
    """B of zero: anything else is infinitely far, relatively."""
    from tests.files import peft_models as pm

    config = {"r": 2, "target_modules": ["q_proj"]}
    pm.adapt(pm.llama, tmp_path / "zero", grown=0.0, **config)
    pm.adapt(pm.llama, tmp_path / "one", **config)
    record = of_json(lotr("compare", "zero", "one", "--json"))
    assert record["relative_error"] is None
    assert record["cosine"] == 0
    assert "inf" in lotr("compare", "zero", "one")[1]
