"""`lotr bank make`: a bank of several adapters, and what is said of it."""

import itertools
import json
import re

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.banks import load_bank
from lotr_tn.banks.file import is_bank
from tests.cli import runs
from tests.cli.conftest import of_json

BANK = "history.lotr.safetensors"
STEPS = (500, 1000, 2000, 3000)


@pytest.fixture
def run(tmp_path):
    """The checkpoints of a run, below `run`."""
    return runs.history(tmp_path / "run", *STEPS)


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_bank_and_its_record(lotr, run, tmp_path):
    record = of_json(lotr("bank", "make", *run, "--rel-error", "0.05", "-o", BANK, "--json"))
    assert set(record) >= {
        "relative_error", "worst_error", "adapters", "params_before", "params_after",
        "bytes_before", "bytes_after", "bytes_separate", "stacking", "stackings", "routes",
        "dtype", "met", "seconds", "destination",
    }  # fmt: skip
    assert [one["name"] for one in record["adapters"]] == [f"checkpoint-{s}" for s in STEPS]
    for one in record["adapters"]:
        assert set(one) >= {"name", "relative_error", "bound", "own_bytes", "modules", "formats"}
        assert one["modules"] == runs.MODULES
        assert one["own_bytes"] > 0
        assert one["relative_error"] <= one["bound"] <= 0.05
    assert record["worst_error"] == max(one["relative_error"] for one in record["adapters"])
    assert record["met"]
    assert record["params_before"] == len(run) * runs.LAYERS * runs.RANK * (40 + 24 + 20 + 24)
    assert record["params_after"] < 0.6 * record["params_before"]
    weights = [folder / "adapter_model.safetensors" for folder in run]
    assert record["bytes_before"] == sum(path.stat().st_size for path in weights)
    assert record["bytes_after"] == (tmp_path / BANK).stat().st_size
    assert record["dtype"] == "float16"
    assert record["bytes_stacks"] == 2 * record["params_after"]
    assert record["stacking"] in {way["stacking"] for way in record["stackings"]}
    assert record["destination"] == BANK


def test_errors_are_those_of_a_plain_loop(lotr, run, tmp_path):
    record = of_json(lotr("bank", "make", *run, "--rel-error", "0.1", "-o", BANK, "--json"))
    assert lotr("bank", "export", BANK, "--all", "-o", "all", "-q") == (0, "", "")
    lost = whole = 0.0
    for one, folder in zip(record["adapters"], run, strict=True):
        found = runs.gap(tmp_path / "all" / one["name"], folder)
        assert found == pytest.approx(one["relative_error"], rel=1e-3, abs=1e-6)
        norm = sum((delta**2).sum() for delta in runs.deltas(folder).values())
        lost, whole = lost + found**2 * norm, whole + norm
    assert record["relative_error"] == pytest.approx(np.sqrt(lost / whole), rel=1e-3, abs=1e-6)


def test_what_a_reader_sees(lotr, run):
    status, out, err = lotr("bank", "make", *run, "--rel-error", "0.05", "-o", BANK)
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    text = words(out)
    for step in STEPS:
        assert f"checkpoint-{step} {runs.MODULES} " in text
    assert "at worst" in text
    assert "Asked at most 0.05 for each adapter" in text
    assert "Stacked by" in text
    assert "ranks cut:" in text
    assert f"Written {BANK} in" in text
    assert "hardly share" not in text


def test_a_folder_of_adapters_in_their_natural_order(lotr, run):
    record = of_json(lotr("bank", "make", "run", "--rel-error", "0.05", "-o", BANK, "--json"))
    assert [one["name"] for one in record["adapters"]] == [f"checkpoint-{s}" for s in STEPS]


def test_names(lotr, run):
    names = [x for step in STEPS for x in ("--name", f"step {step}")]
    arguments = ["bank", "make", "run", *names, "--rel-error", "0.1", "-o", BANK]
    assert lotr(*arguments, "-q") == (0, "", "")
    assert load_bank(BANK).names == tuple(f"step {step}" for step in STEPS)
    status, _, err = lotr(
        "bank", "make", "run", *names[2:], "--rel-error", "0.1", "-o", "b.safetensors"
    )
    assert status == 2
    assert "found 3 names for 4 adapters" in err
    twice = ["--name", "a"] * 4
    status, _, err = lotr(
        "bank", "make", "run", *twice, "--rel-error", "0.1", "-o", "b.safetensors"
    )
    assert status == 2
    assert "'a' is given 4 times" in err


def test_one_error_for_each_or_for_all(lotr, tmp_path):
    paths = runs.history(tmp_path / "run", 200, 4000)  # of very different norms
    each = of_json(
        lotr("bank", "make", *paths, "--rel-error", "0.2", "-o", "a.safetensors", "--json")
    )
    assert each["worst_error"] <= 0.2
    assert each["asked"] == {"relative_error": 0.2, "each": True}
    total = of_json(
        lotr(
            "bank", "make", *paths, "--rel-error", "0.2", "--total", "-o", "b.safetensors", "--json"
        )
    )
    same = of_json(
        lotr("bank", "make", *paths, "--total-error", "0.2", "-o", "c.safetensors", "--json")
    )
    for record in (total, same):
        assert record["relative_error"] <= 0.2 < record["worst_error"]
        assert record["asked"] == {"relative_error": 0.2, "each": False}
        assert record["met"]
    _, out, _ = lotr("bank", "make", *paths, "--total-error", "0.2", "-o", "d.safetensors")
    assert "at most 0.2 for all adapters together" in words(out)


def test_a_size(lotr, run, tmp_path):
    size = 16_000
    record = of_json(lotr("bank", "make", *run, "--max-bytes", size, "-o", BANK, "--json"))
    assert 0.85 * size < (tmp_path / BANK).stat().st_size <= size
    assert 0 < record["worst_error"] < 1
    record = of_json(
        lotr("bank", "make", *run, "--max-params", 1500, "-o", "b.safetensors", "--json")
    )
    assert record["params_after"] <= 1500
    _, out, _ = lotr("bank", "make", *run, "--max-params", "1500", "-o", "c.safetensors")
    assert "Asked at most 1,500 parameters" in words(out)


def test_ranks(lotr, run):
    record = of_json(lotr("bank", "make", *run, "--rank", "3,2", "-o", BANK, "--json"))
    assert record["formats"] == {"lotr": len(run) * runs.MODULES}
    seen = of_json(lotr("inspect", BANK, "--json"))
    assert {str(group["bases"]) for group in seen["groups"]} == {"[[3], [2]]"}


@pytest.mark.parametrize("way", ["adapters", "layers", "all"])
def test_ways_of_stacking(lotr, run, way):
    record = of_json(
        lotr("bank", "make", *run, "--rel-error", "0.1", "--stack", way, "-o", BANK, "--json")
    )
    assert record["stacking"] == way
    assert [one["stacking"] for one in record["stackings"]] == [way]
    groups = of_json(lotr("inspect", BANK, "--json"))["groups"]
    assert len(groups) == {"adapters": 4, "layers": 2, "all": 2}[way]


def test_other_options_reach_the_conversion(lotr, run):
    asked = ["bank", "make", *run, "--rel-error", "0.1", "--json", "--force", "-o", BANK]
    truncated = of_json(lotr(*asked, "--format", "truncated"))
    assert set(truncated["formats"]) == {"truncated"}
    wide = of_json(lotr(*asked, "--format", "lotr", "--dtype", "float64"))
    assert wide["dtype"] == "float64"
    updated = of_json(lotr(*asked, "--route", "updated"))
    assert set(updated["routes"].values()) == {"updated"}
    sketched = of_json(lotr(*asked, "--route", "sketch", "--sketch", "16"))
    assert set(sketched["routes"].values()) == {"sketch"}
    grouped = of_json(lotr(*asked, "--stack", "layers", "--group-by", "shape"))
    assert {name.split("@")[0] for name in grouped["routes"]} == {"40x24", "20x24"}
    _, out, _ = lotr(*[x for x in asked if x != "--json"], "--route", "updated")
    assert "stacks by route updated" in words(out)


def test_clusters(lotr, tmp_path):
    paths = runs.history(tmp_path / "one", *STEPS) + runs.history(tmp_path / "two", *STEPS, run=1)
    asked = ["bank", "make", *paths, "--rel-error", "0.02", "--force", "-o", BANK]
    apart = of_json(lotr(*asked, "--json"))
    clusters = [one["cluster"] for one in apart["adapters"]]
    assert len(set(clusters)) == 2
    assert len(set(clusters[:4])) == len(set(clusters[4:])) == 1
    assert "Clusters 2 with bases of their own, of 4, 4 adapters" in words(lotr(*asked)[1])
    together = of_json(lotr(*asked, "--no-cluster", "--json"))
    assert {one["cluster"] for one in together["adapters"]} == {0}
    assert apart["bytes_stacks"] < together["bytes_stacks"]


def test_a_bank_of_one(lotr, run):
    assert (
        lotr("bank", "make", run[0], "--rel-error", "0.1", "-q", "--stack", "all", "-o", BANK)[0]
        == 0
    )
    assert load_bank(BANK).names == ("checkpoint-500",)
    assert lotr("convert", run[0], "--rel-error", "0.1", "-q")[0] == 0
    assert not is_bank(run[0].parent.parent / "checkpoint-500.lotr.safetensors")
    assert isinstance(lt.load_adapter("checkpoint-500.lotr.safetensors"), lt.LoTRAdapter)


def test_a_bank_and_more_in_another_bank(lotr, run, tmp_path):
    assert lotr("bank", "make", *run[:2], "--rel-error", "0.01", "-o", BANK, "-q")[0] == 0
    record = of_json(
        lotr("bank", "make", BANK, run[2], "--rel-error", "0.01", "-o", "b.safetensors", "--json")
    )
    names = [f"checkpoint-{step}" for step in STEPS[:3]]
    assert [one["name"] for one in record["adapters"]] == names
    weights = (run[2] / "adapter_model.safetensors").stat().st_size
    assert record["bytes_before"] == (tmp_path / BANK).stat().st_size + weights
    assert lotr("bank", "export", "b.safetensors", "--all", "-o", "all", "-q")[0] == 0
    for name, folder in zip(names, run, strict=False):
        assert runs.gap(tmp_path / "all" / name, folder) <= 0.0201


def test_strangers_are_told(lotr, tmp_path):
    paths = [runs.stranger(tmp_path / f"s{seed}", seed) for seed in range(3)]
    status, out, _ = lotr("bank", "make", *paths, "--rel-error", "0.05", "-o", BANK)
    assert status == 0
    assert "These adapters hardly share anything" in words(out)
    assert max(map(len, out.splitlines())) <= 80


def test_of_many_the_worst_are_shown(lotr, tmp_path):
    steps = range(100, 1500, 100)
    runs.history(tmp_path / "run", *steps)
    asked = ["bank", "make", "run", "--rel-error", "0.3", "--total", "--force", "-o", BANK]
    record = of_json(lotr(*asked, "--json"))
    errors = {one["name"]: one["relative_error"] for one in record["adapters"]}
    _, out, _ = lotr(*asked)
    found = re.search(r"The (\d+) largest errors; --all shows (\d+) more\.", words(out))
    assert found
    kept, left = map(int, found.groups())
    assert (kept + left, kept >= 9) == (14, True)
    best = sorted(errors, key=errors.get)[:left]
    shown = {name for name in errors if f" {name} " in out}
    assert shown == errors.keys() - set(best)
    _, out, _ = lotr(*asked, "--all")
    assert all(f" {name} " in out for name in errors)
    assert "--all shows" not in out


def test_an_error_that_cannot_be_met(lotr, run):
    asked = ["bank", "make", *run, "--rel-error", "1e-5", "--dtype", "bfloat16", "-o", BANK]
    status, out, err = lotr(*asked, "--format", "lotr", "--json")
    assert status == 3
    assert not json.loads(out)["met"]
    assert "bfloat16 cannot hold the error asked for (at most 1e-05 for each adapter)" in err
    assert "--dtype auto" in err
    assert err.count("\n") == 1
    asked = ["bank", "make", *run, "--rel-error", "0.01", "--stack", "all", "-o", "b.safetensors"]
    status, _, err = lotr(*asked, "--route", "sketch", "--sketch", "2", "-q")
    assert status == 3
    assert "a sketch of 2 directions cannot hold" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rel-error", "0.1"], "4 adapters become one file; name it, such as -o"),
        (["--total-error", "0.1", "-o", "B", "--each"], "--total-error is the error of all"),
        (["--rel-error", "0.1", "-o", "B", "--sketch", "4"], "the route sketch"),
        (["--rel-error", "0.1", "-o", "B", "--route", "sketch"], "the route sketch"),
        (["--max-bytes", "100", "-o", "B"], "ask for more"),
    ],
)
def test_options_that_make_no_sense_of_several(lotr, run, tmp_path, arguments, message):
    status, out, err = lotr("bank", "make", *run, *[BANK if a == "B" else a for a in arguments])
    assert (status, out) == (2, "")
    assert err.startswith("lotr: ")
    assert message in err
    assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize(
    "option",
    [
        ["--keep", "x"],
        ["--min-rank", "2"],
        ["--max-rank", "2"],
        ["--to", "lotr-peft"],
        ["--energy", "0.9"],
        ["--backend", "torch"],
        ["--device", "cpu"],
    ],
)
def test_options_of_one_adapter(lotr, run, tmp_path, option):
    status, out, err = lotr("bank", "make", *run, "--rel-error", "0.1", "-o", BANK, *option)
    assert (status, out) == (2, "")
    assert f"No such option: {option[0]}" in err
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_what_is_refused(lotr, run, tmp_path):
    (tmp_path / "taken.safetensors").write_text("mine")
    asked = ["bank", "make", *run, "--rel-error", "0.1"]
    for arguments, message in (
        ([*asked, "-o", "taken.safetensors"], "taken.safetensors exists"),
        ([*asked, "-o", "bank"], "must end in .safetensors"),
        ([*asked, "-o", "no/b.safetensors"], "the folder no does not exist"),
        ([*asked, "nowhere", "-o", BANK], "nowhere: no such file or folder"),
        ([*asked, run[0], "-o", BANK], "is named twice"),
    ):
        status, out, err = lotr(*arguments)
        assert (status, out) == (1, "")
        assert message in err
        assert err.count("\n") == 1
    assert (tmp_path / "taken.safetensors").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "taken.safetensors"}
    assert lotr(*asked, "-o", "taken.safetensors", "--force", "-q")[0] == 0
    assert is_bank(tmp_path / "taken.safetensors")


def test_adapters_of_another_base(lotr, tmp_path):
    paths = runs.history(tmp_path / "run", 500), runs.history(tmp_path / "x", 900, base="huge")
    asked = ["bank", "make", *paths[0], *paths[1], "--rel-error", "0.1", "-o", BANK, "-q"]
    status, _, err = lotr(*asked)
    assert status == 1
    assert "huge" in err
    assert "--any-base" in err
    assert lotr(*asked, "--any-base")[0] == 0


def test_a_bar_whose_end_nobody_knows(monkeypatch, capsys):
    from lotr_tn.cli.console import progress

    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    clock = iter([0.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr("lotr_tn.cli.console.time.monotonic", lambda: next(clock))
    passed = itertools.count(100.0)
    monkeypatch.setattr("rich.console.monotonic", lambda: next(passed))
    with progress(2, quiet=False) as step:
        for name in ("a", "b", "stack-one", "stack-two"):
            step(name)
    err = capsys.readouterr().err
    assert "stack-two" in err
    last = err.rsplit("3/?", 1)[1]
    assert "left" not in last
    assert "0:00:00" not in last, "time goes on"
