"""Every command that the program recommends is run as it stands."""

import shlex
import shutil

import pytest

from tests.cli.conftest import of_json, run_in
from tests.cli.runs import checkpoint, history

SMALL = ["--rel-error", "0.1", "-q"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What can be analysed, by what it is; names have blanks, as paths do."""
    folder = tmp_path_factory.mktemp("made")
    checkpoint(folder / "my lora", 700)
    history(folder / "my run", 500, 1000)
    for words in (
        ["convert", "my lora", "--rank", "4", "-o", "my own.lotr.safetensors", "-q"],
        ["convert", "my lora", "--rank", "4", "--to", "lotr-peft", "-o", "own-peft", "-q"],
        ["bank", "make", "my run", "-o", "bank.lotr.safetensors", *SMALL],
        ["bank", "make", "my lora", "-o", "of one.lotr.safetensors", *SMALL],
        ["convert", "my lora", "--rank", "1", "-o", "rank 1.lotr.safetensors", "-q"],
        ["export", "rank 1.lotr.safetensors", "-o", "small already", "-q"],
    ):
        run_in(folder, *words)
    return folder


@pytest.fixture
def sources(lotr, made, tmp_path):
    """A copy of them, where the program runs."""
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


def following(out: str) -> list[list[str]]:
    """The words of the commands that a text ends with."""
    (line,) = (line for line in out.split("\n") if line.startswith("Next"))
    commands = [[]]
    for word in shlex.split(line.removeprefix("Next")):
        if word == "&&":
            commands.append([])
        else:
            commands[-1].append(word)
    assert {words[0] for words in commands} == {"lotr"}
    return [words[1:] for words in commands]


def done(lotr, out: str):
    """The record of the last of the commands that a text ends with, all of which end well."""
    *before, last = following(out)
    for words in before:
        assert lotr(*words)[0] == 0, words
    return of_json(lotr(*last, "--json"))


@pytest.mark.parametrize(
    ("source", "question"),
    [
        ("my lora", "--rel-error=0.1"),
        ("my lora/adapter_model.safetensors", "--max-params=500"),
        ("small already", "--rel-error=0.0001"),
        ("my own.lotr.safetensors", "--rel-error=0.1"),
        ("own-peft", "--max-bytes=5kB"),
        ("of one.lotr.safetensors", "--total-error=0.1"),
        ("bank.lotr.safetensors/checkpoint-1000", "--rel-error=0.1"),
    ],
)
def test_what_is_said_of_one_adapter_runs_and_writes_what_was_told(lotr, sources, source, question):
    told = of_json(lotr("analyze", source, question, "--json"))
    text = lotr("analyze", source, question)[1]
    found = done(lotr, text)
    assert found["bytes_after"] == told["recommended"]["bytes"]
    again = done(lotr, lotr("analyze", source, question)[1])
    assert again["bytes_after"] == found["bytes_after"], "beside what was written before"
    assert again["destination"] != found["destination"]


@pytest.mark.parametrize(
    ("source", "question"),
    [
        (["bank.lotr.safetensors"], "--total-error=0.2"),
        (["my run"], "--max-bytes=20kB"),
        (["my run"], "--max-params=4000"),
    ],
)
def test_what_is_said_of_several_adapters_runs(lotr, sources, source, question):
    found = done(lotr, lotr("analyze", *source, question, "--group-by", "shape")[1])
    assert found["destination"] == "bank-2.lotr.safetensors", "the other is there already"
    assert found["met"]


def test_a_bank_of_adapters_of_both_formats_takes_what_was_told(lotr, sources):
    asked = ["analyze", "my own.lotr.safetensors", "my run/checkpoint-1000"]
    told = of_json(lotr(*asked, "--json"))
    assert told["lotr_sources"] == ["my own.lotr.safetensors"]
    assert done(lotr, lotr(*asked)[1])["bytes_after"] == told["recommended"]["bytes"]


@pytest.mark.parametrize("source", ["-odd", "-odd.lotr.safetensors"])
def test_a_path_is_not_taken_for_an_option(lotr, made, tmp_path, source):
    shutil.copytree(made / "my lora", tmp_path / "-odd")
    shutil.copy(made / "my own.lotr.safetensors", tmp_path / "-odd.lotr.safetensors")
    assert done(lotr, lotr("analyze", "--", source)[1])["met"]


def test_a_bank_is_compacted_after_something_was_dropped(lotr, sources):
    out = lotr("bank", "drop", "bank.lotr.safetensors", "checkpoint-1000")[1]
    assert done(lotr, out)["met"]
