"""Heads and configurations of banks in bits: packed, each once, and the same when they come out."""

import json
from dataclasses import replace

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.banks import add_adapters, compact_bank, drop_adapters, load_bank, make_bank
from lotr_tn.banks.contents import PackedContent
from lotr_tn.errors import CheckpointError
from lotr_tn.files.container import read_container, write_container
from lotr_tn.files.packing import unpacked
from tests.banks import fleets

MODULES = fleets.paths({"q": ((60, 48), fleets.Layout())}, 2)
HEAD, BIAS, COUNT, ZEROS = (f"base_model.model.{x}" for x in ("score", "bias", "steps", "zeros"))
RULE = lt.RelativeError(0.1)


def others(seed):
    """A large head, a small tensor, one of another dtype, and one that stands for too much."""
    count = np.arange(300, dtype=np.int64) + seed
    return {
        HEAD: fleets.head(seed, (40, 30)),
        BIAS: fleets.head(seed, (7,)),
        COUNT: RawTensor("I64", (300,), count.view(np.uint8)),
        ZEROS: RawTensor("F32", (20_000,), np.zeros(80_000, np.uint8)),
    }


@pytest.fixture(scope="module")
def fleet():
    planted = fleets.spaces(0, MODULES, 4)
    one, two = (
        fleets.adapter(at, planted=planted, modules=MODULES, rank=4, extras=others(at))
        for at in (0, 1)
    )
    return {"one": one, "two": two, "again": replace(one)}


@pytest.fixture
def path(fleet, tmp_path):
    path = tmp_path / "bank.lotr.safetensors"
    make_bank(fleet, path, RULE, coding="auto")
    return path


def same(bank, fleet):
    return all(
        bank[name].extras[key].data.tobytes() == tensor.data.tobytes()
        and bank[name].extras[key].shape == tensor.shape
        and bank[name].extras[key].code == tensor.code
        for name in bank.names
        for key, tensor in fleet[name].extras.items()
    )


def test_they_come_out_as_they_were(path, fleet):
    bank = load_bank(path)
    assert same(bank, fleet)
    assert bank.config_text("one") == fleet["one"].config_text
    kinds = {key: isinstance(bank.contents[at], PackedContent) for key, at in _places(bank, "two")}
    assert kinds == {HEAD: True, BIAS: False, COUNT: True, ZEROS: False}
    head = bank.contents[dict(_places(bank, "two"))[HEAD]]
    assert head.entry.nbytes < 0.95 * fleet["two"].extras[HEAD].nbytes


def _places(bank, name):
    return bank.adapters[bank.place(name)].extras.items()


def test_each_is_there_once(path, fleet):
    bank = load_bank(path)
    assert _places(bank, "one") == _places(bank, "again")
    before = len(bank.contents)
    add_adapters(path, {"more": fleet["two"]})
    assert len(load_bank(path).contents) == before
    assert same(load_bank(path), fleet | {"more": fleet["two"]})


def test_they_stay_packed_when_the_bank_changes(path, fleet):
    streams = {c.entry.checksum for c in load_bank(path).contents if isinstance(c, PackedContent)}
    drop_adapters(path, ["two"])
    left = [c for c in load_bank(path).contents if isinstance(c, PackedContent)]
    assert left
    assert {c.entry.checksum for c in left} < streams
    compact_bank(path, rule=lt.RelativeError(0.3))
    assert same(load_bank(path), fleet)


def test_numbers_are_not_packed(fleet, tmp_path):
    made = make_bank(fleet, tmp_path / "b.safetensors", RULE)
    assert not any(isinstance(one, PackedContent) for one in made.bank.contents)


DAMAGES = {
    "another way": (lambda h, at: h.update(packing=2), "packed in an unknown way"),
    "no table": (lambda h, at: h.update(packed=[]), "is no table|not a table"),
    "no list": (lambda h, at: h["packed"].update({at: 3}), "not a list"),
    "no dtype": (lambda h, at: h["packed"][at].__setitem__(0, "F7"), "unknown dtype 'F7'"),
    "a terabyte": (lambda h, at: h["packed"][at].__setitem__(1, [1 << 40]), "is too short"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_makes_no_sense_is_refused(path, damage):
    change, words = DAMAGES[damage]
    container = read_container(path)
    header = json.loads(unpacked(container.text))
    change(header, next(iter(header["packed"])))
    entries = {name: container.entry(name) for name in container.tensors}
    made = path.with_name("changed.safetensors")
    write_container(made, entries, json.dumps(header))
    with pytest.raises(CheckpointError, match=words):
        load_bank(made)


def test_another_size_is_refused_when_it_is_used(path):
    bank = load_bank(path)
    at = dict(_places(bank, "one"))[HEAD]
    packed = bank.contents[at]
    wrong = PackedContent(packed.entry, packed.raw, packed.code, (40, 29))
    with pytest.raises(CheckpointError, match="damaged"):
        wrong.whole()
