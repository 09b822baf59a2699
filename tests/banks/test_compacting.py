"""A bank made anew: what is certified stays true, though the originals are gone."""

import math
from functools import partial

import pytest

import lotr_tn as lt
from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.adapters import Layout
from lotr_tn.banks.making.settling import excess
from tests.banks import fleets


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.lotr.safetensors"


def built(path, fleet, first, epsilon, **options):
    return fleets.grown(fleet, path, first, lt.RelativeError(epsilon), **options)


@pytest.mark.parametrize("epsilon", [0.3, 1e-4])
def test_ten_appends_a_drop_and_a_compact_keep_every_certificate_true(epsilon, path):
    fleet = fleets.fleet(13, ranks=(2, 3, 4), noise=0.02, extras={fleets.HEAD: fleets.head(0)})
    bank = built(path, fleet, 3, epsilon)
    fleets.require_true(bank, fleet, epsilon)
    for name in fleet:
        figures = bank.figures(name)
        true = fleets.error(fleets.dense(bank[name]), fleets.dense(fleet[name]))
        assert figures.bound == figures.relative_error
        assert f"{true:.4g}" == f"{figures.relative_error:.4g}"
    bank = lt.banks.drop_adapters(path, ["a1", "a7"]).bank
    del fleet["a1"], fleet["a7"]
    fleets.require_true(bank, fleet, epsilon)
    for rule in (None, lt.RelativeError(1.5 * epsilon), None):
        done = lt.banks.compact_bank(path, rule=rule)
        fleets.require_true(done.bank, fleet)
        assert done.bytes_after <= done.bytes_before
        assert done.bytes_after == path.stat().st_size
    for name, one in fleet.items():
        assert done.bank.figures(name).bound <= 1.5 * epsilon + 4 * UNIT_ROUNDOFF["float32"]
        assert fleets.extras_of(done.bank[name]) == fleets.extras_of(one)
        assert done.bank.config_text(name) == one.config_text
    assert done.met
    assert lt.banks.verify_bank(path) == []


def test_a_larger_error_makes_a_smaller_bank_and_bounds_add_up(path):
    fleet = fleets.fleet(8, noise=0.05)
    before = built(path, fleet, 8, 0.05, format="lotr")
    done = lt.banks.compact_bank(path, rule=lt.RelativeError(0.3))
    assert done.met
    assert done.bytes_after < done.bytes_before
    moved = 0
    for name, one in fleet.items():
        figures = done.bank.figures(name)
        true = fleets.error(fleets.dense(done.bank[name]), fleets.dense(one))
        assert figures.relative_error == pytest.approx(before.figures(name).relative_error)
        assert true <= figures.bound <= 0.3 + 1e-6
        drift = fleets.error(fleets.dense(done.bank[name]), fleets.dense(before[name]))
        assert figures.bound <= (figures.relative_error + 1.05 * drift) + 1e-9
        moved += figures.bound > figures.relative_error
    assert moved == len(fleet)
    assert done.bank.asked["relative_error"] == 0.3


def test_appends_one_by_one_are_made_up_for(path, tmp_path):
    """Bases that grew one adapter at a time are found together."""
    fleet = fleets.fleet(12, noise=0.0, shared=4)
    built(path, fleet, 1, 0.05)
    joint = tmp_path / "joint.lotr.safetensors"
    lt.banks.make_bank(fleet, joint, lt.RelativeError(0.05))
    done = lt.banks.compact_bank(path, rule=lt.RelativeError(0.06))
    fleets.require_true(done.bank, fleet, 0.06)
    assert fleets.stack_bytes(done.bank) < 1.3 * fleets.stack_bytes(lt.banks.load_bank(joint))


def test_directions_that_only_the_dropped_used_are_found(path):
    near = fleets.fleet(8, noise=0.0)
    far = {f"far{i}": one for i, one in enumerate(fleets.fleet(8, seed=1, noise=0.0).values())}
    lt.banks.make_bank({**near, **far}, path, lt.RelativeError(0.02), format="lotr", cluster=False)
    before = lt.banks.drop_adapters(path, list(far)).bank
    done = lt.banks.compact_bank(path, rule=lt.RelativeError(0.021))
    fleets.require_true(done.bank, near, 0.021)
    assert fleets.stack_bytes(done.bank) < 0.6 * fleets.stack_bytes(before)


def test_where_nothing_is_gained_nothing_changes(path):
    fleet = fleets.fleet(6, noise=0.0)
    built(path, fleet, 6, 0.05)
    lt.banks.compact_bank(path)
    before = path.read_bytes()
    done = lt.banks.compact_bank(path)
    assert path.read_bytes() == before
    assert done.bytes_before == done.bytes_after
    assert done.met


def test_every_kind_of_adapter_can_be_compacted(path, tmp_path):
    fleet = fleets.mixed()
    built(path, fleet, 4, 0.05)
    done = lt.banks.compact_bank(path, rule=lt.RelativeError(0.1))
    fleets.require_true(done.bank, fleet)
    for name, one in fleet.items():
        assert done.bank.figures(name).bound <= 0.1 + 1e-6
        assert fleets.extras_of(done.bank[name]) == fleets.extras_of(one)
        fleets.export(done.bank, name, tmp_path / "out")
        again = lt.load_adapter(tmp_path / "out")
        found, wanted = fleets.dense(again), fleets.dense(one)
        assert set(found) == set(wanted)
        assert fleets.error(found, wanted) <= 0.1


def test_narrow_banks_stay_narrow_and_true(path):
    fleet = fleets.fleet(6, dtype="bfloat16", noise=0.1)
    bank = built(path, fleet, 3, 0.5)
    assert bank.dtype in ("float16", "bfloat16")
    done = lt.banks.compact_bank(path, rule=lt.RelativeError(0.6))
    assert done.bank.dtype in ("float16", "bfloat16")
    fleets.require_true(done.bank, fleet, 0.6)


def test_ranks_of_the_loras_are_remembered(path):
    fleet = fleets.fleet(6, ranks=(2, 5), noise=0.1)
    built(path, fleet, 6, 0.02)
    bank = lt.banks.compact_bank(path, rule=lt.RelativeError(0.2)).bank
    for at, name in enumerate(fleet):
        ranks = lt.to_lora(bank[name], ranks="minimal").ranks
        assert max(ranks.values()) <= (2, 5)[at % 2]


def test_what_makes_no_sense_is_refused(path):
    fleet = fleets.fleet(3)
    fleets.bank_of(fleet, path, lt.FixedRank(3))
    before = path.read_bytes()
    with pytest.raises(lt.errors.OptionError, match="made for a size, not for an error"):
        lt.banks.compact_bank(path)
    with pytest.raises(lt.errors.OptionError, match="error of 0 changes nothing"):
        lt.banks.compact_bank(path, rule=lt.RelativeError(0.0))
    with pytest.raises(lt.errors.LotrError):
        lt.banks.compact_bank(path, rule=lt.RelativeError(-1.0))
    assert path.read_bytes() == before
    done = lt.banks.compact_bank(path, rule=lt.RelativeError(0.99))
    fleets.require_true(done.bank, fleet)


def test_progress_names_adapters_and_stacks(path):
    fleet = fleets.fleet(4)
    fleets.bank_of(fleet, path)
    seen = []
    lt.banks.compact_bank(path, rule=lt.RelativeError(0.1), progress=seen.append)
    assert seen[:4] == list(fleet)
    assert len(seen) > 4


def test_adapters_that_have_no_error_left_cost_the_others_nothing(path):
    """No dtype of 16 bits holds all of what float16 held as near as that: no other pays for it."""
    shapes = {"q": (9, 7), "v": (5, 7), "g": (6, 8)}
    modules = fleets.paths({name: (size, Layout()) for name, size in shapes.items()}, 1)
    few = dict(list(modules.items())[:2])
    made = partial(fleets.adapter, noise=0.1)
    fleet = {
        "tiny": made(0, modules=few, rank=2, dtype="float16", scale=0.7, size=1e-3),
        "even": made(1, modules=few, planted=fleets.spaces(0, modules, 3), dtype="float16"),
        "narrow": made(2, modules=modules, noise=0.0, dtype="bfloat16", scale=-2.0),
        "thin": made(3, modules=modules, rank=1, dtype="float64", scale=0.7),
    }
    lt.banks.make_bank(fleet, path, lt.RelativeError(0.4), stack="adapters")
    lt.banks.compact_bank(path, rule=lt.RelativeError(0.05))
    for new, pair in {"first": ("thin", "tiny"), "second": ("first", "tiny")}.items():
        bank = lt.banks.load_bank(path)
        weights = dict(zip(pair, (-1.0, 0.3), strict=True))
        found = lt.merge_adapters({x: bank[x] for x in pair}, weights, dtype="float64").adapter
        lt.banks.add_adapters(path, {new: found}, rule=lt.RelativeError(0.05))
    bank = lt.banks.load_bank(path)
    before = {name: bank.figures(name).bound for name in bank}
    done = lt.banks.compact_bank(path, rule=lt.RelativeError(0.05))
    for name, bound in before.items():
        most = max(0.05, bound) + 4 * UNIT_ROUNDOFF["float16"]
        assert done.bank.figures(name).bound <= most * (1 + 1e-9), name


def test_an_error_that_is_not_met_is_as_near_as_can_be():
    assert [excess(x) for x in (0.0, 1.0, 1.05, 1.25, 9.0, math.inf)] == [0, 0, 1, 3, 80, math.inf]
