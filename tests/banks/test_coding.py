"""Banks in bits: smaller files within what was asked, of which one adapter is decoded alone."""

import json

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.banks import (
    add_adapters,
    compact_bank,
    drop_adapters,
    load_bank,
    make_bank,
    rename_adapter,
    verify_bank,
)
from lotr_tn.banks import coded as coded_tensors
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.files.container import read_container, write_container
from lotr_tn.files.packing import unpacked
from tests.banks import fleets

SHAPES = {"q": ((90, 72), fleets.Layout()), "v": ((60, 72), fleets.Layout())}
MODULES = fleets.paths(SHAPES, 2)
NAMES = ("one", "two", "three")


def fleet(*, alike=True):
    """Three adapters of very different norms, in common spaces or each in its own."""
    found = {}
    for at, name in enumerate(NAMES):
        planted = fleets.spaces(0 if alike else at, MODULES, 8)
        size = (1.0, 30.0, 0.2)[at]
        found[name] = fleets.adapter(at, planted=planted, modules=MODULES, rank=8, size=size)
    return found


@pytest.fixture(scope="module")
def alike():
    return fleet()


@pytest.fixture(scope="module")
def coded(alike, tmp_path_factory):
    path = tmp_path_factory.mktemp("coded") / "bank.lotr.safetensors"
    return make_bank(alike, path, lt.RelativeError(0.05), coding="auto")


@pytest.fixture
def copy(coded, tmp_path):
    path = tmp_path / "bank.lotr.safetensors"
    path.write_bytes(coded.bank.source.read_bytes())
    return path


def errors(bank, adapters):
    each = bank.names
    return [fleets.error(fleets.dense(bank[x]), fleets.dense(adapters[x])) for x in each]


def test_smaller_within_the_error_of_each(alike, coded, tmp_path):
    plain = make_bank(alike, tmp_path / "n.lotr.safetensors", lt.RelativeError(0.05))
    assert coded.bank.source.stat().st_size < 0.6 * plain.bank.source.stat().st_size
    assert all(part.is_coded for _, part in coded.bank.parts)
    found = errors(coded.bank, alike)
    assert found == pytest.approx(list(coded.errors.values()), rel=1e-6)
    assert 0.045 < max(found) <= 0.05
    assert coded.met


def test_what_is_alike_shares_bases_and_what_is_not_does_not(coded, tmp_path):
    assert all(group.outputs for group in coded.bank.groups.values())
    others = fleet(alike=False)
    made = make_bank(others, tmp_path / "b.lotr.safetensors", lt.RelativeError(0.1), coding="auto")
    assert not any(group.outputs for group in made.bank.groups.values())
    assert max(errors(made.bank, others)) <= 0.1


@pytest.mark.parametrize("rule", [lt.TotalError(0.1), lt.Budget(bytes=11_000)])
def test_together_and_within_bytes(rule, alike, tmp_path):
    made = make_bank(alike, tmp_path / "b.lotr.safetensors", rule, coding="auto")
    whole = [fleets.dense(alike[name]) for name in NAMES]
    found = [fleets.dense(made.bank[name]) for name in NAMES]
    pairs = zip(found, whole, strict=True)
    lost = sum(fleets.error(f, w) ** 2 * fleets.squared(w) for f, w in pairs)
    error = (lost / sum(map(fleets.squared, whole))) ** 0.5
    assert error == pytest.approx(made.bank.relative_error, rel=1e-6)
    if isinstance(rule, lt.Budget):
        assert 0.99 * 11_000 < made.bank.source.stat().st_size <= 11_000
    else:
        assert 0.095 < error <= 0.1


def test_bytes_that_no_step_uses_up_hold_numbers(alike, tmp_path):
    made = make_bank(alike, tmp_path / "b.lotr.safetensors", lt.Budget(bytes=40_000), coding="auto")
    assert not any(part.is_coded for _, part in made.bank.parts)
    assert made.bank.relative_error < 0.001


@pytest.mark.parametrize("epsilon", [0.6, 0.99])
def test_what_hardly_anything_is_left_of(epsilon, alike, tmp_path):
    adapters = {**alike, "none": fleets.without_update(alike["one"])}
    made = make_bank(adapters, tmp_path / "b.safetensors", lt.RelativeError(epsilon), coding="auto")
    assert all(part.is_coded for _, part in made.bank.parts)
    assert not any(x.any() for x in fleets.dense(made.bank["none"]).values())
    found = [fleets.error(fleets.dense(made.bank[x]), fleets.dense(alike[x])) for x in NAMES]
    assert max(found) <= epsilon


def test_one_adapter_is_decoded_alone(copy, monkeypatch):
    seen, decode = [], coded_tensors.decode_core
    monkeypatch.setattr(coded_tensors, "decode_core", lambda *a: seen.append(1) or decode(*a))
    load_bank(copy)["two"]
    assert len(seen) == len(MODULES)


def test_others_stay_bit_for_bit_when_a_bank_is_changed(copy, alike):
    before = {name: fleets.dense(load_bank(copy)[name]) for name in NAMES}
    streams = [part.tensors["coded"].raw().data.tobytes() for _, part in load_bank(copy).parts]
    rename_adapter(copy, "one", "uno")
    assert [p.tensors["coded"].raw().data.tobytes() for _, p in load_bank(copy).parts] == streams
    added = add_adapters(copy, {"four": alike["one"]})
    assert added.met
    drop_adapters(copy, ["two"])
    bank = load_bank(copy)
    for old, new in (("one", "uno"), ("three", "three")):
        now = fleets.dense(bank[new])
        assert all(np.array_equal(before[old][key], now[key]) for key in now)
    assert fleets.error(fleets.dense(bank["four"]), fleets.dense(alike["one"])) <= 0.05
    assert not verify_bank(copy)


def test_compacting_codes_anew_within_the_error(copy, alike):
    add_adapters(copy, {"four": alike["one"]}, rule=lt.RelativeError(1e-6))  # in numbers
    done = compact_bank(copy, rule=lt.RelativeError(0.1))
    assert done.bytes_after < done.bytes_before
    assert all(part.is_coded for _, part in done.bank.parts)
    originals = {**alike, "four": alike["one"]}
    found = errors(done.bank, originals)
    bounds = [done.bank.figures(name).bound for name in done.bank.names]
    assert all(f <= b * (1 + 1e-9) for f, b in zip(found, bounds, strict=True))
    assert max(bounds) <= 0.1


def test_stacks_are_applied_as_any_other(coded, alike):
    module = coded.bank.modules[0]
    stack, names = coded.bank.stack(module)
    assert names == NAMES
    dense = lt.to_dense(stack)
    for at, name in enumerate(names):
        assert np.allclose(dense[at], fleets.dense(coded.bank[name])[module], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("what", [".coded", "index", "figures"])
@pytest.mark.parametrize("at", [1, -1])
def test_damage_is_told(what, at, copy):
    container = read_container(copy)
    key = next(key for key in container.tensors if key.endswith(what))
    data, bits = bytearray(copy.read_bytes()), container.tensors[key].data.tobytes()
    data[bytes(data).index(bits) + at % len(bits)] ^= 4
    copy.write_bytes(bytes(data))
    with pytest.raises(CheckpointError):
        list(map(load_bank(copy).load, NAMES))
    assert len(read_container(copy).tensors) == len(SHAPES) * 2 + 3, "one for each stack"


def changed(path, change):
    """The file with another header, which is then the one written."""
    container = read_container(path)
    header = fleets.told_whole(json.loads(unpacked(container.text)))
    change(header)
    entries = {name: container.entry(name) for name in container.tensors}
    made = path.with_name("changed.lotr.safetensors")
    write_container(made, entries, json.dumps(header))
    return made


HOSTILE = {
    "many columns": lambda group: group["columns"][0].__setitem__(0, 10**9),
    "another way": lambda group: group["parts"][0].__setitem__("coding", 2),
    "another form": lambda group: group["parts"][0].__setitem__("format", "lora"),
    "a missing side": lambda group: group["columns"].pop(),
    "fewer bytes": lambda group: group["bytes"].__setitem__(0, 1),
    "bytes of another": lambda group: group["bytes"].__setitem__(
        slice(2), [group["bytes"][0] + 1, group["bytes"][1] - 1]
    ),
    "a piece too few": lambda group: group["bytes"].__setitem__(
        slice(2), [sum(group["bytes"][:2])]
    ),
    "a piece too many": lambda group: group["bytes"].append(0),
    "less than no bytes": lambda group: group["bytes"].extend([5, -5]),
    "more layers": lambda group: group["parts"][0].__setitem__("layers", 4),
    "numbers": lambda group: group["parts"][0].pop("coding"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_header_is_refused(what, copy):
    made = changed(copy, lambda header: HOSTILE[what](next(iter(header["groups"].values()))))
    with pytest.raises(CheckpointError):
        load_bank(made).load("one")


@pytest.mark.parametrize(
    "options",
    [{"format": "lotr"}, {"route": "updated"}, {"dtype": "float16"}],
)
def test_what_coding_does_not_go_with_is_refused(options, alike, tmp_path):
    with pytest.raises(OptionError, match="coding"):
        make_bank(
            alike, tmp_path / "b.safetensors", lt.RelativeError(0.1), coding="auto", **options
        )


def test_a_part_in_bits_is_told(coded):
    (part, *_) = (part for _, part in coded.bank.parts)
    assert part.names == ("coded",)
    assert coded.bank.dtype == "float32"
    figures = coded.bank.figures("one")
    assert 0 < figures.own_bytes < coded.bank.nbytes
