"""New adapters for a bank: those that it holds come out as before, bit for bit."""

import os

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.adapters import Layout
from tests.banks import fleets

RULE = lt.RelativeError(0.05)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.lotr.safetensors"


COMBINATIONS = [
    *[("auto", stack) for stack in ("adapters", "layers", "all")],
    *[("lotr", stack) for stack in ("adapters", "all")],
    *[("lotr-low-rank", stack) for stack in ("adapters", "layers")],
    *[("shared-in", stack) for stack in ("layers", "all")],
    ("lora", "adapters"),
]
"""Formats and ways of stacking; what a format stores does not ask how stacks came about."""


@pytest.mark.parametrize(("format", "stack"), COMBINATIONS)
def test_older_adapters_are_exported_as_before_byte_for_byte(stack, format, path, tmp_path):
    fleet = fleets.mixed()
    first = {name: fleet[name] for name in ("plain", "half", "double")}
    made = lt.banks.make_bank(first, path, RULE, stack=stack, format=format)
    known = fleets.exports(made.bank, tmp_path / "out")
    for name in ("brain", "tiny", "zero", "partly"):
        grown = lt.banks.add_adapters(path, {name: fleet[name]})
        assert grown.names == (name,)
        assert grown.met
        assert grown.bytes_after == path.stat().st_size
        after = fleets.exports(grown.bank, tmp_path / "out")
        assert {key: after[key] for key in known} == known
        known = after
    assert grown.bank.names == (*first, "brain", "tiny", "zero", "partly")
    fleets.require_true(grown.bank, fleet, 0.05)
    for name, one in fleet.items():
        assert fleets.extras_of(grown.bank[name]) == fleets.extras_of(one)
        assert grown.bank.config_text(name) == one.config_text
    assert lt.banks.verify_bank(path) == []


@pytest.mark.parametrize("epsilon", [0.3, 0.1, 1e-3, 1e-5])
def test_one_after_another_and_together_give_the_same_errors(epsilon, path, tmp_path):
    fleet = fleets.fleet(7, ranks=(2, 4))
    names = list(fleet)
    lt.banks.make_bank({n: fleet[n] for n in names[:3]}, path, lt.RelativeError(epsilon))
    copy = tmp_path / "copy.lotr.safetensors"
    copy.write_bytes(path.read_bytes())
    for name in names[3:]:
        single = lt.banks.add_adapters(path, {name: fleet[name]})
        assert single.met
    joint = lt.banks.add_adapters(copy, {name: fleet[name] for name in names[3:]})
    assert joint.names == tuple(names[3:])
    fleets.require_true(single.bank, fleet, epsilon)
    fleets.require_true(joint.bank, fleet, epsilon)
    assert path.read_bytes() == copy.read_bytes()


def test_an_adapter_of_the_lineage_costs_little_more_than_its_cores(path):
    fleet = fleets.fleet(9, noise=0.0)
    names = list(fleet)
    made = lt.banks.make_bank({n: fleet[n] for n in names[:8]}, path, RULE, format="lotr")
    grown = lt.banks.add_adapters(path, {"a8": fleet["a8"]})
    assert grown.new_directions == 0
    more = fleets.stack_bytes(grown.bank) - fleets.stack_bytes(made.bank)
    assert more == grown.bank.figures("a8").own_bytes
    assert more < 0.4 * 4 * fleet["a8"].parameters


def test_a_stranger_never_costs_more_than_its_own_factors(path):
    bank = fleets.bank_of(fleets.fleet(8), path)
    odd = fleets.adapter(99, rank=2)
    grown = lt.banks.add_adapters(path, {"odd": odd})
    more = fleets.stack_bytes(grown.bank) - fleets.stack_bytes(bank)
    assert more <= 4 * odd.parameters
    fleets.require_true(grown.bank, {"odd": odd}, 0.05)


def test_new_directions_are_added_where_they_pay(path):
    """Fresh directions that all later adapters of a kind use are stored once."""
    kinds = {"q": ((40, 30), Layout())}
    fleet = fleets.fleet(8, kinds=kinds, layers=1, noise=0.0, shared=3, ranks=(3,))
    made = lt.banks.make_bank(fleet, path, RULE, format="lotr")
    modules = fleets.paths(kinds, 1)
    u, v = fleets.spaces([0, 0], modules, 3)["model.layers.0.q"]
    rng = np.random.default_rng(3)
    wider = {"model.layers.0.q": (np.hstack([u, rng.standard_normal((40, 1))]), v)}
    grown, added = None, []
    for seed in range(3):
        one = fleets.adapter(50 + seed, planted=wider, modules=modules, noise=0.0)
        fleet[f"wide{seed}"] = one
        grown = lt.banks.add_adapters(path, {f"wide{seed}": one})
        added.append(grown.new_directions)
    assert added == [1, 0, 0]
    (group,) = grown.bank.groups.values()
    assert [tensor.shape[1] for tensor in group.outputs] == [3, 1]
    assert [tensor.shape[1] for tensor in group.inputs] == [3, 0]
    assert fleets.formats_of(made.bank) == {"lotr"}
    fleets.require_true(grown.bank, fleet, 0.05)


def test_another_error_may_be_asked_of_new_adapters(path):
    fleet = fleets.fleet(6, noise=0.2)
    names = list(fleet)
    lt.banks.make_bank({n: fleet[n] for n in names[:4]}, path, RULE)
    fine = lt.banks.add_adapters(path, {"a4": fleet["a4"]}, rule=lt.RelativeError(1e-4))
    coarse = lt.banks.add_adapters(path, {"a5": fleet["a5"]}, rule=lt.RelativeError(0.3))
    fleets.require_true(coarse.bank, fleet)
    assert fine.bank.figures("a4").relative_error <= 1e-4
    assert 0.1 < coarse.bank.figures("a5").relative_error <= 0.3
    assert coarse.bank.asked["relative_error"] == 0.05


def test_a_module_that_none_had_gets_a_group_of_its_own(path, tmp_path):
    modules = fleets.paths(fleets.QV, layers=3)
    few = {key: form for key, form in modules.items() if "layers.2" not in key}
    fleet = {
        "few": fleets.adapter(0, modules=few),
        "all": fleets.adapter(1, modules=modules),
        "more": fleets.adapter(2, modules=modules),
    }
    made = lt.banks.make_bank({"few": fleet["few"]}, path, RULE)
    known = fleets.exports(made.bank, tmp_path / "out")
    for name in ("all", "more"):
        grown = lt.banks.add_adapters(path, {name: fleet[name]})
    fleets.require_true(grown.bank, fleet, 0.05)
    assert set(fleets.dense(grown.bank["few"])) == set(few)
    assert fleets.exports(grown.bank, tmp_path / "out", ["few"]) == known
    stack, names = grown.bank.stack("model.layers.2.v")
    assert names == ("all", "more")
    assert stack.shape == (2, 11, 17)


def test_a_bank_made_for_a_size_needs_an_error_for_new_adapters(path):
    fleet = fleets.fleet(4)
    fleets.bank_of(fleet, path, lt.FixedRank(3))
    before = path.read_bytes()
    with pytest.raises(lt.errors.OptionError, match="made for a size, not for an error"):
        lt.banks.add_adapters(path, {"new": fleets.adapter(9)})
    assert path.read_bytes() == before
    new = fleets.adapter(9)
    grown = lt.banks.add_adapters(path, {"new": new}, rule=lt.RelativeError(0.1))
    fleets.require_true(grown.bank, {"new": new}, 0.1)
    fleets.require_true(grown.bank, fleet)


def test_one_that_fails_among_several_changes_nothing(path):
    fleets.bank_of(fleets.fleet(3), path)
    before = path.read_bytes()
    bad = fleets.adapter(9, base="acme/other")
    with pytest.raises(lt.errors.CheckpointError, match="bad belongs to the base acme/other"):
        lt.banks.add_adapters(path, {"good": fleets.adapter(8), "bad": bad})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    lt.banks.add_adapters(path, {"good": fleets.adapter(8), "bad": bad}, any_base=True)


OTHER = {"q": ((23, 19), Layout()), "v": ((11, 17), Layout())}
TURNED = {"q": ((23, 17), Layout("embedding")), "v": ((11, 17), Layout())}


@pytest.mark.parametrize(
    ("name", "one", "words"),
    [
        ("a1", {}, "holds an adapter 'a1' already"),
        ("new", {"modules": fleets.paths(OTHER)}, "23x17 in .* and 23x19 in new"),
        ("new", {"modules": fleets.paths(TURNED)}, "a linear module in .* in new"),
        ("new", {"base": "acme/other"}, "belongs to the base acme/other"),
        ("new", {"modules": {"x": ((3, 2), Layout())}, "empty": True}, "updates no module"),
        ("", {}, "no name|empty"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, one, words, path):
    from dataclasses import replace

    fleets.bank_of(fleets.fleet(3), path)
    before = path.read_bytes()
    options = {key: value for key, value in one.items() if key != "empty"}
    adapter = fleets.adapter(9, **options)
    if "empty" in one:
        adapter = replace(adapter, modules=())
    with pytest.raises(lt.errors.CheckpointError, match=words) as caught:
        lt.banks.add_adapters(path, {name: adapter})
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("error", [-0.1, float("nan"), 1.5])
def test_errors_that_make_no_sense_are_refused(error, path):
    fleets.bank_of(fleets.fleet(3), path)
    before = path.read_bytes()
    with pytest.raises(lt.errors.LotrError):
        lt.banks.add_adapters(path, {"new": fleets.adapter(9)}, rule=lt.RelativeError(error))
    assert path.read_bytes() == before


def test_an_error_of_nothing_keeps_the_adapter_as_it_is(path):
    fleets.bank_of(fleets.fleet(3), path)
    one = fleets.adapter(9, dtype="bfloat16", scale=1 / 3)
    grown = lt.banks.add_adapters(path, {"exact": one}, rule=lt.RelativeError(0.0))
    assert grown.met
    assert grown.bank.figures("exact").relative_error == 0.0
    assert fleets.error(fleets.dense(grown.bank["exact"]), fleets.dense(one)) == 0.0


def test_no_adapter_changes_nothing(path):
    fleets.bank_of(fleets.fleet(3), path)
    before = path.read_bytes()
    try:
        done = lt.banks.add_adapters(path, {})
    except lt.errors.LotrError:
        return
    assert done.names == ()
    assert fleets.exports(done.bank, path.parent / "out").keys() == {"a0", "a1", "a2"}
    assert path.read_bytes() == before
