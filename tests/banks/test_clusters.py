"""Lineages: adapters that share bases, and those that had better have their own."""

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.adapters import Layout
from tests.banks import fleets

KINDS = {"q": ((48, 40), Layout()), "v": ((32, 40), Layout())}
RULE = lt.RelativeError(0.05)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.lotr.safetensors"


def lineages(count=18, number=3, *, seed=0, **options):
    """Adapters of planted lineages, in turn: a0, a3, a6, … share."""
    return fleets.fleet(
        count, lineages=number, seed=seed, kinds=KINDS, shared=6, ranks=(3, 4, 5), **options
    )


def partition(labels):
    """Which adapters are together, whatever the labels are called."""
    return {frozenset(np.flatnonzero(np.array(labels) == label)) for label in set(labels)}


@pytest.mark.parametrize(
    ("seed", "stack"),
    [(0, "auto"), (1, "layers"), (2, "adapters")],
)
def test_planted_lineages_are_found(seed, stack, path):
    fleet = lineages(seed=seed)
    bank = fleets.bank_of(fleet, path, RULE, stack=stack)
    labels = [adapter.cluster for adapter in bank.adapters]
    assert partition(labels) == {frozenset(range(start, 18, 3)) for start in range(3)}
    fleets.require_true(bank, fleet, 0.05)
    splits = bank.explanation["splits"]
    done = [s for s in splits if s["apart"] is not None and s["apart"] < 0.99 * s["together"]]
    assert len(done) == 2
    assert sorted(done[0]["sizes"]) == [6, 12]
    assert sorted(done[1]["sizes"]) == [6, 6]
    assert all(split["common"] < 0.5 for split in done)
    for group in bank.groups.values():
        owners = {int(at) for part in group.parts for at in part.index[:, 0]}
        assert {labels[at] for at in owners} == {group.cluster}


def test_clusters_take_less_than_one_set(path, tmp_path):
    fleet = lineages()
    bank = fleets.bank_of(fleet, path, RULE, stack="auto")
    one = lt.banks.make_bank(fleet, tmp_path / "one.lotr.safetensors", RULE, cluster=False)
    assert {adapter.cluster for adapter in one.bank.adapters} == {0}
    assert one.bank.explanation["splits"] == []
    fleets.require_true(one.bank, fleet, 0.05)
    assert fleets.stack_bytes(bank) < 0.8 * fleets.stack_bytes(one.bank)


@pytest.mark.parametrize("fleet", [lineages(8, 1), lineages(1), fleets.strangers(2)])
def test_what_is_one_set_is_not_split(fleet, path):
    made = lt.banks.make_bank(fleet, path, RULE)
    assert {adapter.cluster for adapter in made.bank.adapters} == {0}
    fleets.require_true(made.bank, fleet, 0.05)


def test_lineages_are_found_between_growing_bases(path):
    fleet = lineages()
    made = lt.banks.make_bank(fleet, path, RULE, route="updated")
    labels = [adapter.cluster for adapter in made.bank.adapters]
    assert partition(labels) == {frozenset(range(start, 18, 3)) for start in range(3)}
    fleets.require_true(made.bank, fleet, 0.05)


@pytest.mark.parametrize("seed", range(2))
def test_a_new_adapter_goes_to_the_lineage_that_it_belongs_to(seed, path, tmp_path):
    fleet = lineages(18, seed=seed)
    names = list(fleet)
    bank = fleets.bank_of({n: fleet[n] for n in names[:12]}, path, RULE)
    labels = [adapter.cluster for adapter in bank.adapters]
    known = fleets.exports(bank, tmp_path / "out")
    size = fleets.stack_bytes(bank)
    for at, name in enumerate(names[12:]):
        grown = lt.banks.add_adapters(path, {name: fleet[name]})
        assert grown.bank.adapters[-1].cluster == labels[at % 3]
        mine = [
            group.cluster
            for group in grown.bank.groups.values()
            for part in group.parts
            if 12 + at in part.index[:, 0]
        ]
        assert set(mine) == {labels[at % 3]}
        more = fleets.stack_bytes(grown.bank) - size
        assert more < 0.5 * 4 * fleet[name].parameters
        size += more
        after = fleets.exports(grown.bank, tmp_path / "out")
        assert {key: after[key] for key in known} == known
        known = after
    fleets.require_true(grown.bank, fleet, 0.05)


def test_a_lineage_is_told_by_what_it_holds_and_not_by_its_width(path):
    """The first lineage has many directions; the new adapter belongs to the narrow one."""
    modules = fleets.paths(KINDS, 2)
    wide, narrow = (fleets.spaces(seed, modules, size) for seed, size in ((1, 20), (2, 4)))
    fleet = {
        **{f"w{i}": fleets.adapter(i, planted=wide, modules=modules, rank=6) for i in range(10)},
        **{f"n{i}": fleets.adapter(50 + i, planted=narrow, modules=modules) for i in range(6)},
    }
    made = lt.banks.make_bank(fleet, path, RULE, stack="adapters")
    labels = dict(zip(made.bank.names, (a.cluster for a in made.bank.adapters), strict=True))
    assert labels["w0"] != labels["n0"], "the test needs two clusters"
    for kind, planted in (("n", narrow), ("w", wide)):
        new = fleets.adapter(90, planted=planted, modules=modules)
        grown = lt.banks.add_adapters(path, {f"{kind} new": new})
        assert grown.bank.adapters[-1].cluster == labels[f"{kind}0"]
        fleets.require_true(grown.bank, {f"{kind} new": new}, 0.05)


def test_a_module_that_a_lineage_lacks_gets_a_group_in_it(path):
    modules = fleets.paths(KINDS, 2)
    few = {key: form for key, form in modules.items() if not key.endswith("1.v")}
    one, other = fleets.spaces(1, modules, 5), fleets.spaces(2, modules, 5)
    fleet = {
        **{f"x{i}": fleets.adapter(i, planted=one, modules=modules) for i in range(12)},
        **{f"y{i}": fleets.adapter(50 + i, planted=other, modules=few) for i in range(12)},
    }
    made = lt.banks.make_bank(fleet, path, RULE, stack="adapters")
    cluster = made.bank.adapters[-1].cluster
    assert cluster != made.bank.adapters[0].cluster
    for at in range(2):
        fleet[f"new{at}"] = fleets.adapter(90 + at, planted=other, modules=modules)
        bank = lt.banks.add_adapters(path, {f"new{at}": fleet[f"new{at}"]}).bank
        assert bank.adapters[-1].cluster == cluster
    fleets.require_true(bank, fleet, 0.05)
    holding = [g for g in bank.groups.values() if "model.layers.1.v" in dict(g.modules)]
    assert len(holding) == 2
    stack, names = bank.stack("model.layers.1.v")
    assert set(names) == {name for name in fleet if not name.startswith("y")}
    assert stack.shape[0] == len(names)


def test_compacting_keeps_lineages_apart(path):
    fleet = lineages(18, noise=0.02)
    names = list(fleet)
    lt.banks.make_bank({n: fleet[n] for n in names[:9]}, path, RULE)
    for name in names[9:]:
        lt.banks.add_adapters(path, {name: fleet[name]})
    done = lt.banks.compact_bank(path, rule=lt.RelativeError(0.15))
    assert done.bytes_after < done.bytes_before
    fleets.require_true(done.bank, fleet, 0.15)
    labels = [adapter.cluster for adapter in done.bank.adapters]
    assert partition(labels) == {frozenset(range(start, 18, 3)) for start in range(3)}
    new = lineages(21)["a19"]
    grown = lt.banks.add_adapters(path, {"a19": new})
    assert grown.bank.adapters[-1].cluster == labels[1]


def test_a_lineage_may_be_dropped_altogether(path):
    fleet = lineages(12)
    fleets.bank_of(fleet, path, RULE)
    gone = [name for at, name in enumerate(fleet) if at % 3 == 0]
    bank = lt.banks.drop_adapters(path, gone).bank
    left = {name: one for name, one in fleet.items() if name not in gone}
    fleets.require_true(bank, left, 0.05)
    bank = lt.banks.add_adapters(path, {"a0": fleet["a0"]}).bank
    fleets.require_true(bank, {**left, "a0": fleet["a0"]}, 0.05)
    done = lt.banks.compact_bank(path, rule=lt.RelativeError(0.1))
    fleets.require_true(done.bank, {**left, "a0": fleet["a0"]}, 0.1)
