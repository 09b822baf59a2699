"""How often a command forms groups, builds stacks and works out curves."""

import sys
import weakref
from collections import Counter

import pytest

from lotr_tn.adapters import LoRAGroup, question
from tests.cli.conftest import of_json

GROUPS = 5  # of the demo adapter
STACKED = 7  # by kind and by shape; one group is the same by both
BUDGETS = {
    "max-params": ["--max-params", "40000"],
    "max-bytes": ["--max-bytes", "200kB"],
    "total-error": ["--total-error", "0.2"],
}
each_budget = pytest.mark.parametrize("budget", BUDGETS)


@pytest.fixture
def work(monkeypatch):
    """What was done: stacks by their modules, curves by their coordinates, groupings by rule."""
    done = {"stacks": Counter(), "curves": Counter(), "groupings": Counter(), "alive": Counter()}
    real = LoRAGroup.to_stack

    def to_stack(group, *where):
        stack = real(group, *where)
        done["stacks"][group.modules] += 1
        done["alive"]["now"] += 1
        done["alive"]["most"] = max(done["alive"]["most"], done["alive"]["now"])
        weakref.finalize(stack, lambda: done["alive"].subtract(["now"]))
        return stack

    monkeypatch.setattr(LoRAGroup, "to_stack", to_stack)
    named = {
        "curves_of": ("curves", lambda coordinates, *_: coordinates.left.tobytes()),
        "lora_groups": ("groupings", lambda _, by: by),
    }
    for module in [m for name, m in sys.modules.items() if name.startswith("lotr_tn.")]:
        for name, (what, key) in named.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, counted(getattr(module, name), done[what], key))
    return done


def counted(function, counter, key):
    def call(*given, **options):
        counter[key(*given)] += 1
        return function(*given, **options)

    return call


def convert(lotr, adapter, *asked, by="kind"):
    asked = (*asked, "--group-by", by, "--json", "--force", "-o", "a.safetensors")
    return of_json(lotr("convert", adapter, *asked))


@pytest.mark.parametrize("form", ["lotr", "auto", "shared-in"])
def test_an_error_builds_each_stack_once(lotr, demo_adapter, work, form):
    convert(lotr, demo_adapter, "--rel-error", "0.1", "--format", form)
    assert list(work["stacks"].values()) == [1] * GROUPS
    assert set(work["curves"].values()) <= {1}
    assert len(work["curves"]) == (0 if form == "lotr" else GROUPS)
    assert work["groupings"] == {"kind": 1}
    assert work["alive"]["most"] <= 2  # one is released when the next has been built


@pytest.mark.parametrize("asked", [["--rel-error", "0.1"], *BUDGETS.values()], ids=str)
def test_two_ways_of_grouping_build_each_small_stack_once(lotr, demo_adapter, work, asked):
    convert(lotr, demo_adapter, *asked, by="auto")
    assert list(work["stacks"].values()) == [1] * STACKED
    assert list(work["curves"].values()) == [1] * STACKED
    assert work["groupings"] == {"kind": 1, "shape": 1}


@each_budget
@pytest.mark.parametrize("more", [(), ("--keep", "layers.0")], ids=["all", "some kept"])
def test_a_budget_builds_small_stacks_once(lotr, demo_adapter, work, budget, more):
    convert(lotr, demo_adapter, "--format", "auto", *BUDGETS[budget], *more)
    assert set(work["stacks"].values()) == {1}
    assert list(work["curves"].values()) == [1] * GROUPS
    assert work["groupings"] == {"kind": 1}


@each_budget
def test_a_budget_builds_large_stacks_twice(lotr, demo_adapter, work, budget, monkeypatch):
    asked = ["--format", "auto", *BUDGETS[budget]]
    wanted = convert(lotr, demo_adapter, *asked)
    for counter in work.values():
        counter.clear()
    monkeypatch.setattr(question, "KEPT", 0)
    found = convert(lotr, demo_adapter, *asked)
    assert found | {"seconds": 0} == wanted | {"seconds": 0}
    assert list(work["stacks"].values()) == [2] * GROUPS
    assert list(work["curves"].values()) == [1] * GROUPS
    kept = sum(
        group["format"] == "lora" for group in found["groups"]
    )  # their stacks are the result
    assert work["alive"]["most"] <= 2 + kept


@pytest.mark.parametrize("asked", [["--rel-error", "0.1"], *BUDGETS.values()], ids=str)
def test_analyze_builds_each_stack_and_each_curve_once(lotr, demo_adapter, work, asked):
    record = of_json(lotr("analyze", demo_adapter, *asked, "--json"))
    assert [way["stacks"] for way in record["stackings"]] == [GROUPS, 3]
    assert list(work["stacks"].values()) == [1] * STACKED
    assert set(work["curves"].values()) == {1}
    assert len(work["curves"]) > STACKED  # those of the tree of clusters beside
    assert work["groupings"] == {"kind": 1, "shape": 1}


def test_what_is_kept_is_bounded(lotr, demo_adapter, work, monkeypatch):
    record = of_json(lotr("analyze", demo_adapter, "--group-by", "kind", "--json"))
    stored = sorted(group["shape"][0] * 8 * sum(group["shape"][1:]) for group in record["groups"])
    for counter in work.values():
        counter.clear()
    monkeypatch.setattr(question, "KEPT", sum(stored[:2]))
    convert(lotr, demo_adapter, "--format", "auto", *BUDGETS["max-params"])
    again = sum(times == 2 for times in work["stacks"].values())
    assert GROUPS - 2 <= again < GROUPS
