"""Adapters that are added to a bank in bits: in its bases and new directions, or by themselves."""

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.banks import add_adapters, compact_bank, drop_adapters, load_bank, make_bank
from lotr_tn.banks.coded import CodedBasis
from lotr_tn.errors import CheckpointError
from lotr_tn.files.dialects.native import native_size
from tests.banks import fleets

SHAPES = {"q": ((90, 72), fleets.Layout()), "v": ((60, 72), fleets.Layout())}
MODULES = fleets.paths(SHAPES, 2)
RULE = lt.RelativeError(0.05)


def one(seed, spaces=0):
    """An adapter, in spaces that it has in common with all others of these."""
    planted = fleets.spaces(spaces, MODULES, 8)
    return fleets.adapter(seed, planted=planted, modules=MODULES, rank=8, size=1.0 + seed)


def partly(seed):
    """One with two directions of each module that the others lack."""
    known, other = fleets.spaces(0, MODULES, 8), fleets.spaces(5, MODULES, 2)
    planted = {
        path: tuple(np.hstack([x[:, :6], y]) for x, y in zip(known[path], other[path], strict=True))
        for path in MODULES
    }
    return fleets.adapter(seed, planted=planted, modules=MODULES, rank=8)


@pytest.fixture(scope="module")
def kin():
    return {name: one(at) for at, name in enumerate(("one", "two", "three"))}


@pytest.fixture(scope="module")
def made(kin, tmp_path_factory):
    path = tmp_path_factory.mktemp("coded") / "bank.lotr.safetensors"
    make_bank(kin, path, RULE, coding="auto")
    return path.read_bytes()


@pytest.fixture
def path(made, tmp_path):
    path = tmp_path / "bank.lotr.safetensors"
    path.write_bytes(made)
    return path


def alone(adapter):
    """Bytes of a file of it alone, in bits."""
    rule = lt.TotalError(RULE.epsilon)
    return native_size(lt.convert_adapter(adapter, rule, format="auto", coding="auto").adapter)


def error_of(bank, name, adapter):
    return fleets.error(fleets.dense(bank[name]), fleets.dense(adapter))


def test_one_like_the_others_takes_little(path, kin):
    before = {name: fleets.dense(load_bank(path)[name]) for name in kin}
    size, new = path.stat().st_size, one(7)
    done = add_adapters(path, {"four": new})
    bank = load_bank(path)
    assert done.met
    assert path.stat().st_size - size < 0.5 * alone(new)
    assert all(part.is_coded for _, part in bank.parts)
    told = bank.figures("four").relative_error
    assert 0.9 * RULE.epsilon < told <= RULE.epsilon
    assert error_of(bank, "four", new) == pytest.approx(told, rel=1e-6)
    for name in kin:  # bit for bit
        now = fleets.dense(bank[name])
        assert all(np.array_equal(before[name][key], now[key]) for key in now)


def test_another_finds_the_directions_that_the_first_has_brought(path):
    first = add_adapters(path, {"four": partly(11)})
    assert first.new_directions
    assert first.met
    again = add_adapters(path, {"five": partly(12)})
    assert again.met
    assert again.bytes_after - again.bytes_before < 0.85 * (first.bytes_after - first.bytes_before)
    assert error_of(load_bank(path), "five", partly(12)) <= RULE.epsilon


def test_a_stranger_takes_hardly_more_than_alone(path):
    stranger = one(9, spaces=5)
    done = add_adapters(path, {"four": stranger})
    assert done.met
    assert done.bytes_after - done.bytes_before < 1.1 * alone(stranger)
    assert error_of(load_bank(path), "four", stranger) <= RULE.epsilon


def test_a_small_adapter_of_zeros_and_one_of_a_new_module(path):
    nothing = fleets.without_update(one(3))
    modules = dict(list(MODULES.items())[:1]) | fleets.paths(
        {"new": ((30, 20), fleets.Layout())}, 1
    )
    planted = fleets.spaces(3, modules, 8)
    other = fleets.adapter(3, planted=planted, modules=modules, rank=8)
    done = add_adapters(path, {"nothing": nothing, "other": other})
    assert done.met
    bank = load_bank(path)
    assert not any(x.any() for x in fleets.dense(bank["nothing"]).values())
    assert error_of(bank, "other", other) <= RULE.epsilon


def test_changed_afterwards(path, kin):
    new = one(7)
    add_adapters(path, {"four": new})
    drop_adapters(path, ["one"])
    assert error_of(load_bank(path), "four", new) <= RULE.epsilon
    done = compact_bank(path, rule=lt.RelativeError(0.12))
    assert done.met
    assert error_of(load_bank(path), "four", new) <= 0.12


def test_an_error_finer_than_any_step_is_met_in_numbers(path):
    new = one(7)
    assert add_adapters(path, {"four": new}, rule=lt.RelativeError(1e-6)).met
    assert error_of(load_bank(path), "four", new) <= 1e-6
    later = one(8)
    assert add_adapters(path, {"five": later}).met  # between bases some of which are numbers
    assert error_of(load_bank(path), "five", later) <= RULE.epsilon


def test_damage_in_new_directions_is_told(path):
    add_adapters(path, {"four": partly(11)})
    bank = load_bank(path)
    group = next(x for x in bank.groups.values() if len(x.outputs) > 1)
    basis = group.outputs[1]
    assert isinstance(basis, CodedBasis)
    bits, data = basis.raw().data.tobytes(), bytearray(path.read_bytes())
    data[bytes(data).index(bits) + 2] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError):
        load_bank(path)["four"]
