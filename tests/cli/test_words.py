"""Functions speak of their arguments, commands of their options; each says one sentence."""

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.errors import LotrError
from tests.cli import runs

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
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
