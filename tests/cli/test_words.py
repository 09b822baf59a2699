"""Functions speak of their arguments, commands of their options; each says one sentence."""

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.catalogue import architecture, architecture_from_config
from lotr_tn.errors import LotrError
from tests.cli import runs
from tests.cli.conftest import of_json

ERROR = lt.RelativeError(0.1)
TYPED = ("convert", "one", "-o", "x.lotr.safetensors")
CASES = {
    "keep": (
        lambda one: lt.convert_adapter(one, ERROR, keep="nowhere"),
        (*TYPED, "--rel-error", "0.1", "--keep", "nowhere"),
        "is found in no module; there is such as layers.0.q_proj",
    ),
    "an expression": (
        lambda one: lt.convert_adapter(one, ERROR, keep="("),
        (*TYPED, "--rel-error", "0.1", "--keep", "("),
        "takes a regular expression; '(' is none",
    ),
    "groups": (
        lambda one: lt.convert_adapter(one, ERROR, group_by="("),
        (*TYPED, "--rel-error", "0.1", "--group-by", "("),
        "takes kind, shape or a regular expression; '(' is none",
    ),
    "limits": (
        lambda one: lt.convert_adapter(one, lt.FixedRank(4), limits=lt.RankLimits(0, 2)),
        (*TYPED, "--rank", "4", "--max-rank", "2"),
        "bound the ranks that are chosen for an error or a size",
    ),
    "no rank": (
        lambda one: lt.convert_adapter(one, 0),
        (*TYPED, "--rank", "0"),
        "ranks must be at least 1, since rank 0 keeps nothing of the updates; found 0,0",
    ),
    "ranks for any form": (
        lambda one: lt.convert_adapter(one, 4, format="auto"),
        (*TYPED, "--rank", "4", "--format", "auto"),
        "format auto has no ranks to be told",
    ),
    "prefixes": (
        lambda one: lt.merge_adapters({"one": one, "text": lt.load_adapter("text")}),
        ("merge", "one", "text", "-o", "x"),
        "paths differ in a prefix; if they mean the same modules, give ",
    ),
    "a model": (
        lambda _: architecture("bert"),
        ("count", "--model", "bert"),
        "no model 'bert' in the table; near it are ",
    ),
    "a kind of model": (
        lambda _: architecture_from_config({"model_type": "mamba"}),
        ("count", "--config", "config.json"),
        "all types, and any other model can be given by its shapes",
    ),
    "heads": (
        lambda one: lt.merge_adapters({"one": one, "two": lt.load_adapter("two")}),
        ("merge", "one", "two", "-o", "x"),
        "extras",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_python_and_the_command_line_say_the_same_in_their_words(lotr, tmp_path, case):
    called, typed, said = CASES[case]
    heads = [{"head.weight": np.full((2, 3), value, np.float32)} for value in (1, 2)]
    runs.checkpoint(tmp_path / "one", 500, extras=heads[0])
    runs.checkpoint(tmp_path / "two", 500, extras=heads[1])
    module = {"text.layers.0.q_proj": (np.ones((40, 4)), np.ones((4, 24)))}
    runs.save(tmp_path / "text", module, extras=heads[0])
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(LotrError) as caught:
        called(lt.load_adapter("one"))
    status, out, err = lotr(*typed)
    assert status in (1, 2)
    assert out == ""
    assert err.count("\n") == 1
    assert said in str(caught.value)
    assert said in err
    assert "--" not in str(caught.value)
    if case != "no rank":
        assert "--" in err
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "text", "config.json"}


def test_notes_on_ways_of_stacking_speak_to_who_asked(lotr, tmp_path, monkeypatch):
    monkeypatch.setattr("lotr_tn.inspection.analyze.LARGEST_STACK", 10)
    factors = {
        f"layers.{i}.{kind}": (np.ones((9, 4)), np.ones((4, 8)))
        for i in range(2)
        for kind in ("q_proj", "k_proj")
    }
    one = runs.save(tmp_path / "one", factors)
    found = lt.analyze_adapters([lt.load_adapter(one)], ERROR, group_by="auto").stackings
    (note,) = {way.note for way in found} - {None}
    assert note == "not measured: 16 rank terms in one stack (stack_all=True)"
    told = of_json(lotr("analyze", one, "--json"))["stackings"]
    typed = note.replace("stack_all=True", "--stack-all")
    assert {way["note"] for way in told} == {None, typed}
    assert typed in " ".join(lotr("analyze", one, "--all")[1].split())
