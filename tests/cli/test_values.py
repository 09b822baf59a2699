"""Values of options: percentages, sizes, and what a mistyped name was to be."""

import pytest
import typer

from lotr_tn.banks.file import load_bank
from lotr_tn.cli.values import of_choice, share
from lotr_tn.errors import CheckpointError
from lotr_tn.linalg.ranks import byte_count
from tests.cli.conftest import of_json
from tests.cli.runs import history


@pytest.mark.parametrize(
    ("text", "number"),
    [("10%", 0.1), (" 0.5 % ", 0.005), ("0.05", 0.05), ("1e-3", 1e-3), ("5%", 0.05), (0.3, 0.3)],
)
def test_a_share_is_a_number_or_a_percentage(text, number):
    assert share(text) == number


@pytest.mark.parametrize("text", ["", "%", "ten", "nan", "inf%", "1e999", "5%%", "5 MB"])
def test_what_is_no_share(text):
    with pytest.raises(typer.BadParameter, match=r"needed a number such as 0\.05, or 5%; found"):
        share(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5MiB", 5 << 20),
        ("5MB", 5_000_000),
        ("5 mb", 5_000_000),
        ("5M", 5_000_000),
        ("1.5 GiB", 3 << 29),
        ("2k", 2000),
        ("7 bytes", 7),
        ("1TB", 10**12),
    ],
)
def test_sizes(text, size):
    assert byte_count(text) == size


def test_every_command_takes_percentages(lotr, tmp_path):
    one, two, three = history(tmp_path, 250, 500, 750)
    assert of_json(lotr("analyze", one, "--rel-error", "10%", "--json"))["question"]["value"] == 0.1
    total = of_json(lotr("analyze", one, "--total-error", "10%", "--json"))["question"]
    assert (total["kind"], total["value"]) == ("total_error", 0.1)
    status, out, _ = lotr("convert", one, "--energy", "99%")
    assert (status, "at least 0.99 of the energy" in out) == (0, True)
    assert lotr("compare", one, two, "--max-rel-error", "1%")[0] == 3
    assert lotr("compare", one, two, "--max-rel-error", "900%")[0] == 0
    bank = tmp_path / "b.lotr.safetensors"
    made = of_json(lotr("bank", "make", one, two, "--rel-error", "10%", "-o", bank, "--json"))
    assert made["asked"]["relative_error"] == 0.1
    added = of_json(lotr("bank", "add", bank, three, "--rel-error", "20%", "--json"))
    assert added["asked"] == 0.2
    assert lotr("bank", "compact", bank, "--rel-error", "30%")[0] == 0
    merged = lotr("merge", one, two, "--rel-error", "10%", "--method", "ties", "--density", "50%")
    assert merged[0] == 0


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["merge", "a", "--method", "tie"], "ties"),
        (["convert", "a", "--dtype", "bfloat"], "bfloat16"),
        (["convert", "a", "--format", "trunc"], "truncated"),
        (["convert", "a", "--method", "houi"], "hooi"),
        (["bank", "make", "a", "b", "--stack", "layer"], "layers"),
        (["export", "a", "--ranks", "unifrom"], "uniform"),
        (["analyse", "a"], "analyze"),
    ],
)
def test_a_mistyped_value_is_answered_with_what_was_meant(lotr, words, meant):
    status, out, err = lotr(*words)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "did you mean" in err.lower()
    assert meant in err.lower().split("did you mean")[1]


def test_mistyped_adapters_and_groups_are_answered_too(lotr, tmp_path):
    one, two = history(tmp_path, 250, 500)
    bank = tmp_path / "b.lotr.safetensors"
    assert lotr("bank", "make", one, two, "--rel-error", "10%", "-o", bank)[0] == 0
    for words, meant in [
        (["inspect", f"{bank}/checkpoint-25"], "did you mean checkpoint-250?"),
        (["bank", "drop", bank, "chekpoint-500"], "did you mean checkpoint-500?"),
        (["merge", one, two, "--weights", "checkpont-500=1"], "did you mean checkpoint-500?"),
        (["analyze", one, "--group", "q_porj"], "did you mean q_proj?"),
    ]:
        status, out, err = lotr(*words)
        assert (status > 0, out, meant in err) == (True, "", True), err
    with pytest.raises(CheckpointError, match=r"did you mean layers\.1\.q_proj\?"):
        load_bank(bank).stack("layers.1.q_prj")


def test_what_the_parser_says_otherwise_is_left_as_it_is():
    assert of_choice("anything else") == "anything else"
    assert of_choice("'a' is not one of 'xyz', 'zzz'.") == "'a' is not one of xyz, zzz"


def test_the_version_has_a_short_option(lotr):
    assert lotr("-V") == lotr("--version")
    assert lotr("-V")[0] == 0


def test_fixed_ranks_are_all_that_is_asked(lotr, tmp_path):
    one, made = *history(tmp_path, 250), tmp_path / "made.lotr.safetensors"
    for ranks, limit in [("0", []), ("0,3", []), ("3", ["--max-rank", "2"])] + [
        ("3,4", option) for option in (["--max-rank", "q_proj=2"], ["--min-rank", "1"])
    ]:
        status, _, said = lotr("convert", one, "--rank", ranks, *limit, "-o", made)
        wanted = "give --rank or limits" if limit else "rank 0 keeps nothing of the updates"
        assert (status, wanted in said, said.count("\n")) == (2, True, 1)
        assert not made.exists()


@pytest.mark.parametrize(
    ("form", "ranks", "cut"),
    [
        ("lotr", "2", False),
        ("lotr", "2,3", False),
        ("lotr", "2,500", True),
        ("lotr", "500", True),
        ("shared-in", "2", False),
        ("shared-out", "500", True),
        ("truncated", "2", False),
        ("truncated", "500", True),
        ("lotr-low-rank", "500", True),
    ],
)
def test_ranks_that_are_not_there_are_said(lotr, tmp_path, form, ranks, cut):
    one, made = *history(tmp_path, 250), tmp_path / "made.lotr.safetensors"
    status, said, _ = lotr("convert", one, "--rank", ranks, "--format", form, "-o", made)
    line = f"asked: ranks {ranks}, cut to what there is" if cut else f"asked: ranks {ranks}\n"
    assert (status, line in said) == (0, True)
