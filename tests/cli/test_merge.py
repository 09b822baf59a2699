"""`lotr merge` as a user meets it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import lotr_tn as lt
from tests.cli import runs
from tests.cli.conftest import of_json, run_in
from tests.conversion.test_merging import dense, dense_sum, gap

DEMO = Path(lt.__file__).parent / "demo" / "adapter"


PATHS = ("a", "b.lotr.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The demo adapter as `a`, and a compressed one of it as `b`, made once."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(DEMO, folder / "a")
    run_in(folder, "convert", "a", "--rel-error", 0.3, "-o", "b.lotr.safetensors", "-q")
    return folder


@pytest.fixture
def two(made, tmp_path):
    """Copies of both, and what they hold."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return {name: lt.load_adapter(tmp_path / path) for name, path in zip("ab", PATHS, strict=True)}


def test_a_sum_and_its_record(lotr, two):
    record = of_json(lotr("merge", *PATHS, "--weights", "a=0.7,b=0.3", "-o", "sum", "--json"))
    assert record["weights"] == record["coefficients"] == {"a": 0.7, "b": 0.3}
    assert (record["method"], record["dtype"], record["met"]) == ("linear", "float32", True)
    merged, wanted = lt.load_adapter("sum"), dense_sum(two, {"a": 0.7, "b": 0.3})
    assert gap(dense(merged), wanted) < 1e-7
    assert record["relative_error"] < 1e-7
    assert record["params"] == merged.parameters
    assert record["rank"] == merged.config["r"] == max(m["exact_rank"] for m in record["modules"])
    norms = {name: np.linalg.norm(w) for name, w in wanted.items()}
    assert {m["name"] for m in record["modules"]} == set(norms)
    for module in record["modules"]:
        assert module["norm"] == pytest.approx(norms[module["name"]], rel=1e-6)
    assert record["norm"] == pytest.approx(sum(n**2 for n in norms.values()) ** 0.5, rel=1e-6)
    assert record["destination"] == "sum"
    assert record["untouched"] == []


@pytest.mark.parametrize("weights", ["-1,1", "a=-1,b=1", "b=1,a=-1"])
def test_differences(lotr, two, weights):
    for form in (["--weights", weights], [f"--weights={weights}"]):
        assert lotr("merge", *PATHS, *form, "-o", "d", "-q", "--force") == (0, "", "")
        wanted = dense_sum(two, {"a": -1.0, "b": 1.0})
        assert gap(dense(lt.load_adapter("d")), wanted) < 1e-6


def test_the_table_fits_a_terminal(lotr, two):
    status, out, err = lotr("merge", *PATHS)
    assert (status, err) == (0, "")
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "Multiplied by" not in out
    for line in ("a            0.5", "Modules         40, rank", "Written         merged in"):
        assert line in out, out
    status, out, err = lotr("merge", *PATHS, "--method", "slerp", "--rank", 2, "-f")
    assert (status, err) == (0, "")
    assert "Multiplied by" in out
    assert ", cut" in out
    assert max(len(line) for line in out.splitlines()) <= 80
    assert lotr("merge", *PATHS, "--force", "--quiet") == (0, "", "")


@pytest.mark.parametrize("method", ["ties", "dare", "dare-ties", "slerp"])
def test_methods_are_those_of_the_library(lotr, two, method):
    options = ["--method", method, "--density", "0.5", "--seed", "3", "--weights", "0.9,0.4"]
    assert lotr("merge", *PATHS, *options, "-o", "m", "-q")[0] == 0
    wanted = lt.merge_adapters(
        two, {"a": 0.9, "b": 0.4}, method=method, density=0.5, seed=3
    ).adapter
    assert gap(dense(lt.load_adapter("m")), dense(wanted)) < 1e-7


def test_an_error_is_kept_to_or_said_to_be_missed(lotr, two):
    record = of_json(lotr("merge", *PATHS, "--rel-error", "0.2", "--json"))
    assert 0.01 < record["relative_error"] <= 0.2
    compared = of_json(lotr("merge", *PATHS, "-o", "whole", "--json"))
    assert compared["rank"] > record["rank"]
    difference = of_json(lotr("compare", "whole", "merged", "--json"))
    assert difference["relative_error"] == pytest.approx(record["relative_error"], rel=1e-5)
    status, _, err = lotr(
        "merge", *PATHS, "--rel-error", "1e-5", "--dtype", "bfloat16", "-o", "x", "-q"
    )
    assert status == 3
    assert "bfloat16 cannot hold the error asked for (at most 1e-05)" in err


def test_names_told_apart_by_path(lotr, two, tmp_path):
    shutil.copytree(tmp_path / "a", tmp_path / "other" / "a")
    record = of_json(lotr("merge", "a", "other/a", "--weights", "other/a=2,a=-1", "--json"))
    assert record["weights"] == {"a": -1.0, "other/a": 2.0}
    assert gap(dense(lt.load_adapter("merged")), dense(two["a"])) < 1e-7
    status, _, err = lotr("merge", "a", "a", "-f")
    assert status == 1
    assert "a is named twice" in err


def test_other_tensors(lotr, tmp_path):
    from tests.files import peft_models as pm

    for name in ("one", "two"):
        pm.adapt(
            pm.bert,
            tmp_path / name,
            grown=1.0 + (name == "two"),
            r=2,
            target_modules=["query"],
            task_type="SEQ_CLS",
        )
    status, out, err = lotr("merge", "one", "two")
    assert (status, out) == (1, "")
    assert err.startswith("lotr: one and two differ in base_model.model.classifier.")
    assert "--extras-from" in err
    assert err.count("\n") == 1
    _, out, _ = lotr("merge", "one", "two", "--extras-from", "two")
    assert "Carried along   2 other tensors, unchanged" in out
    kept, theirs = lt.load_adapter("merged").extras, lt.load_adapter("two").extras
    assert {k: t.data.tobytes() for k, t in kept.items()} == {
        k: t.data.tobytes() for k, t in theirs.items()
    }
    record = of_json(lotr("merge", "one", "two", "--extras-from", "none", "-f", "--json"))
    assert record["untouched"] == []


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--weights", "1"], 2, "takes one weight for each of 2 adapters"),
        (["--weights", "1,2,3"], 2, "takes one weight for each of 2 adapters"),
        (["--weights", "a=1,much"], 2, "each name once with its number"),
        (["--weights", "a=much"], 2, "each name once with its number"),
        (["--weights", "a=1,a=2"], 2, "each name once with its number"),
        (["--weights", "a=1,z=2"], 2, "there is no adapter 'z' to weigh; there are a, b"),
        (["--weights", "nan,1"], 2, "weights must be finite numbers"),
        (["--weights", "0,0"], 2, "all weights are zero"),
        (["--method", "average"], 2, "average"),
        (["--density", "0"], 2, "density must be above 0 and at most 1"),
        (["--method", "slerp", "--weights", "1,-1"], 2, "two weights of at least 0"),
        (["--rank", "2", "--rel-error", "0.1"], 2, "and not both"),
        (["--extras-from", "z"], 2, "no adapter 'z' to keep other tensors of"),
        (["nowhere"], 1, "nowhere: no such file or folder"),
        (["-o", "no/folder"], 1, "the folder no does not exist"),
        (["-o", "a"], 1, "a exists; name another destination"),
    ],
)
def test_refusals_are_one_sentence(lotr, two, options, status, message):
    found, out, err = lotr("merge", *PATHS, *options)
    assert (found, out) == (status, "")
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


@pytest.mark.parametrize("weights", ["1e308,1e308", "1e200,1", "1,-1e31"])
@pytest.mark.parametrize("method", ["linear", "ties", "dare", "slerp"])
def test_weights_beyond_all_sense_end_in_a_sentence(lotr, two, weights, method):
    status, _, said = lotr("merge", *PATHS, "--weights", weights, "--method", method, "-o", "m")
    assert (status, said.count("\n")) == (2, 1)
    assert "weights must be at most 1e+30 in size; found" in said
    assert not Path("m").exists()


@pytest.mark.parametrize("size", [1e-200, 1e30])
def test_far_weights_give_the_ranks_and_norms_of_near_ones(lotr, two, size):
    near, far = (
        of_json(
            lotr(
                "merge",
                *PATHS,
                "--weights",
                f"{w},{w}",
                "-o",
                f"m{w}",
                "--dtype",
                "float64",
                "--json",
            )
        )
        for w in (1.0, size)
    )
    assert [m["exact_rank"] for m in far["modules"]] == [m["exact_rank"] for m in near["modules"]]
    assert far["norm"] == pytest.approx(size * near["norm"], rel=1e-12, abs=0)
    assert far["relative_error"] < 1e-14


@pytest.mark.parametrize("weight", ["1e-100", "1e-250"])
def test_updates_that_are_zero_in_a_dtype_are_stored_wider_or_refused(lotr, tmp_path, weight):
    runs.history(tmp_path / "run", 1000, 2000)
    asked = (
        "merge",
        "run/checkpoint-1000",
        "run/checkpoint-2000",
        "--weights",
        f"{weight},{weight}",
    )
    merged = of_json(lotr(*asked, "-o", "wide", "--json"))
    assert merged["dtype"] == "float64"
    assert merged["relative_error"] < 1e-6
    assert lotr(*asked, "--rel-error", "0.1", "-o", "near", "-q") == (0, "", "")
    status, out, err = lotr(*asked, "--dtype", "float32", "-o", "narrow")
    assert (status, out) == (1, "")
    assert "are zero in float32" in err
    assert not (tmp_path / "narrow").exists()
