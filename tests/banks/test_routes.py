"""Every way to make large stacks small keeps the error, and says what it is."""

from itertools import product

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.adapters import Layout, LoRAModule, Target
from lotr_tn.banks.making import stacks
from lotr_tn.banks.making.survey import survey_of
from lotr_tn.files.spool import Spool
from tests.banks import fleets

ROUTES = {"whole": {}, "updated": {}, "apart": {}, "sketch": {"sketch": 16}, "auto": {}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.lotr.safetensors"


EPSILONS, STACKS = (0.3, 1e-3), ("adapters", "layers")
PAIRWISE = [
    (route, STACKS[(at + number) % 2], epsilon)
    for at, route in enumerate(ROUTES)
    for number, epsilon in enumerate(EPSILONS)
]
"""Every two of route, way of stacking and error meet."""


def test_every_two_options_meet():
    assert {(r, s) for r, s, _ in PAIRWISE} == set(product(ROUTES, STACKS))
    assert {(r, e) for r, _, e in PAIRWISE} == set(product(ROUTES, EPSILONS))
    assert {(s, e) for _, s, e in PAIRWISE} == set(product(STACKS, EPSILONS))


@pytest.mark.parametrize(("route", "stack", "epsilon"), PAIRWISE)
def test_every_route_keeps_every_adapter_to_the_error(route, stack, epsilon, path):
    fleet = fleets.mixed(4)
    options = {**ROUTES[route], "sketch": 40} if route == "sketch" else {}
    rule = lt.RelativeError(epsilon)
    made = lt.banks.make_bank(fleet, path, rule, stack=stack, route=route, **options)
    assert made.met
    fleets.require_true(made.bank, fleet, epsilon)


def drifting(count=90, *, step=0.03, bend=0.2, rank=2, shape=(40, 30), seed=0):
    """Adapters whose directions turn on and on, as those of a training run."""
    rng = np.random.default_rng(seed)
    (m, n), found = shape, {}
    up, down = (rng.standard_normal((6, size, rank)) for size in (m, n))
    for at in range(count):
        waves = np.cos(step * at * np.arange(1, 7)) * bend ** np.arange(6)
        x, y = (np.tensordot(waves, side, 1) for side in (up, down))
        target = Target("model.layers.0.q", Layout(), rank)
        module = LoRAModule(target, x.astype(np.float32), y.T.astype(np.float32), 0.7)
        found[f"a{at}"] = fleets.assembled([module], rank=rank)
    return found


@pytest.mark.parametrize("epsilon", [0.3, 0.1, 0.03])
@pytest.mark.parametrize("route", ["updated", "sketch"])
def test_directions_that_come_late_are_measured_for_early_adapters(route, epsilon, path):
    """An adapter has something of a direction that was found only after it had passed."""
    fleet = drifting()
    options = {"sketch": 6} if route == "sketch" else {}
    rule = lt.RelativeError(epsilon)
    made = lt.banks.make_bank(
        fleet, path, rule, route=route, cluster=False, stack="adapters", **options
    )
    fleets.require_true(made.bank, fleet)
    assert made.met == (max(made.errors.values()) <= epsilon)
    if route == "updated":
        fleets.require_true(made.bank, fleet, epsilon)


def test_bases_that_are_too_small_are_reported(path):
    fleet = fleets.strangers(8)
    made = lt.banks.make_bank(
        fleet, path, lt.RelativeError(0.05), route="sketch", sketch=4, format="lotr"
    )
    assert not made.met
    fleets.require_true(made.bank, fleet)
    assert max(made.errors.values()) > 0.3


def test_a_sketch_depends_on_its_seed_alone(path):
    fleet, seen = fleets.fleet(8, noise=0.1), []
    for seed in (0, 0, 1):
        options = {"route": "sketch", "sketch": 9, "seed": seed, "force": True}
        lt.banks.make_bank(fleet, path, lt.RelativeError(0.3), **options)
        seen.append(path.read_bytes())
    assert seen[0] == seen[1] != seen[2]


def test_what_is_large_grows_bases_and_what_shares_nothing_is_cut_apart(path, monkeypatch):
    monkeypatch.setattr("lotr_tn.banks.making.stacks.SMALL", 0)
    kinds = {"q": ((60, 50), Layout())}
    options = {"kinds": kinds, "layers": 1, "ranks": (4,)}
    near = fleets.fleet(140, shared=8, noise=1e-3, **options)
    made = lt.banks.make_bank(near, path, lt.RelativeError(0.05))
    assert set(made.routes.values()) == {"updated"}
    assert made.bank.explanation["chosen"] == "shared"
    fleets.require_true(made.bank, near, 0.05)
    whole = sum(4 * one.parameters for one in near.values())
    assert fleets.stack_bytes(made.bank) < 0.25 * whole

    far = {f"s{i}": fleets.adapter(i, modules=fleets.paths(kinds, 1), rank=4) for i in range(140)}
    made = lt.banks.make_bank(far, path, lt.RelativeError(0.01), force=True)
    assert set(made.routes.values()) == {"whole"}
    assert len(made.bank.groups) == 2, "560 rank terms in pieces of 512"
    assert made.bank.explanation["chosen"] == "separate"
    fleets.require_true(made.bank, far, 0.01)
    whole = sum(4 * one.parameters for one in far.values())
    assert fleets.stack_bytes(made.bank) <= whole
    stack, names = made.bank.stack("model.layers.0.q")
    assert set(names) == set(far)
    assert stack.shape == (140, 60, 50)


def test_an_appended_adapter_may_go_to_any_of_several_pieces(path):
    kinds = {"q": ((60, 50), Layout())}
    fleet = fleets.fleet(140, kinds=kinds, layers=1, ranks=(4,), shared=8)
    made = lt.banks.make_bank(
        fleet, path, lt.RelativeError(0.05), route="apart", cluster=False, format="lotr"
    )
    assert len(made.bank.groups) == 2
    new = fleets.fleet(141, kinds=kinds, layers=1, ranks=(4,), shared=8)["a140"]
    grown = lt.banks.add_adapters(path, {"new": new})
    fleets.require_true(grown.bank, {"new": new}, 0.05)
    assert fleets.stack_bytes(grown.bank) - fleets.stack_bytes(made.bank) < 4 * new.parameters
    done = lt.banks.compact_bank(path, rule=lt.RelativeError(0.1))
    fleets.require_true(done.bank, {**fleet, "new": new}, 0.1)


@pytest.mark.parametrize("scale", [0.0, -1.5, 1e-3])
def test_blocks_pass_with_their_scales(scale, tmp_path):
    modules = fleets.paths(layers=1)
    fleet = {
        "odd": fleets.adapter(0, modules=modules, scale=scale),
        "plain": fleets.adapter(1, modules=modules, scale=2.0),
    }
    with Spool(tmp_path) as spool:
        survey = survey_of(fleet, spool, packs=False)
        for one in stacks.stacks_of(survey, "adapters"):
            for _, block, scales in one.blocks():
                assert scales.tolist() == [scale, 2.0]
                layers = fleets.dense_layers(block)
                for layer, factor, adapter in zip(layers, scales, fleet.values(), strict=True):
                    wanted = fleets.dense(adapter)[one.places[0][0]]
                    assert np.allclose(factor * layer, wanted, rtol=1e-12, atol=0)
    path = tmp_path / "bank.lotr.safetensors"
    for route in ("updated", "sketch"):
        options = {"sketch": 20} if route == "sketch" else {}
        made = lt.banks.make_bank(
            fleet, path, lt.RelativeError(0.05), route=route, force=True, **options
        )
        fleets.require_true(made.bank, fleet, 0.05)
