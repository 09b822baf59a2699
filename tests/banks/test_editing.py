"""Adapters dropped and renamed: all others stay as they are, bit for bit."""

import os

import pytest

import lotr_tn as lt
from tests.banks import fleets


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.lotr.safetensors"


def grown(path, fleet, first=3, **options):
    return fleets.grown(fleet, path, first, **options)


@pytest.mark.parametrize("format", ["auto", "lotr", "lotr-low-rank", "shared-out", "truncated"])
def test_what_is_left_is_exported_as_before_byte_for_byte(format, path, tmp_path):
    fleet = fleets.mixed()
    before = grown(path, fleet, format=format)
    known = fleets.exports(before, tmp_path / "out")
    for gone in (["half"], ["zero", "plain"], ["partly"]):
        size = path.stat().st_size
        done = lt.banks.drop_adapters(path, gone)
        assert (done.bytes_before, done.bytes_after) == (size, path.stat().st_size)
        assert done.bytes_after < size
        for name in gone:
            del fleet[name], known[name]
        assert done.bank.names == tuple(fleet)
        assert fleets.exports(done.bank, tmp_path / "out") == known
        fleets.require_true(done.bank, fleet, 0.05)
    assert lt.banks.verify_bank(path) == []


def test_what_only_the_dropped_adapter_held_is_gone(path):
    fleet = fleets.mixed()
    fleets.bank_of(fleet, path)
    own = fleets.head(1).data.tobytes()
    assert own in path.read_bytes()
    assert fleets.head(0).data.tobytes() in path.read_bytes()
    bank = lt.banks.drop_adapters(path, ["brain"]).bank
    assert own not in path.read_bytes()
    assert fleets.head(0).data.tobytes() in path.read_bytes()
    bank = lt.banks.drop_adapters(path, ["half"]).bank
    assert bank.figures("plain").own_bytes > fleets.head(0).data.nbytes, "now it is alone with it"
    texts = {one.config_text for name, one in fleet.items() if name not in ("brain", "half")}
    heads = 1
    assert len(bank.contents) == len(texts) + heads


def test_a_dropped_adapter_may_come_back(path):
    fleet = fleets.fleet(4)
    grown(path, fleet)
    lt.banks.drop_adapters(path, ["a1"])
    with pytest.raises(lt.errors.CheckpointError, match="holds no adapter 'a1'"):
        lt.banks.load_bank(path).load("a1")
    bank = lt.banks.add_adapters(path, {"a1": fleet["a1"]}).bank
    assert bank.names == ("a0", "a2", "a3", "a1")
    fleets.require_true(bank, fleet, 0.05)


def test_modules_that_nobody_has_any_more_are_gone(path):
    wide = fleets.adapter(0, modules=fleets.paths(layers=3))
    fleet = {"wide": wide, **fleets.fleet(3)}
    fleets.bank_of(fleet, path, stack="adapters")
    bank = lt.banks.drop_adapters(path, ["wide"]).bank
    assert set(bank.modules) == set(fleets.paths())
    with pytest.raises(
        lt.errors.CheckpointError, match=r"no adapter of .* updates model.layers.2.q"
    ):
        bank.stack("model.layers.2.q")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["nobody"], "holds no adapter 'nobody'; it holds a0, a1, a2"),
        (["a0", "nobody"], "holds no adapter 'nobody'"),
        (["a0", "a1", "a2"], "would hold no adapter any more; delete the file instead"),
    ],
)
def test_drops_that_make_no_sense_change_nothing(names, words, path):
    fleets.bank_of(fleets.fleet(3), path)
    before = path.read_bytes()
    with pytest.raises(lt.errors.CheckpointError, match=words):
        lt.banks.drop_adapters(path, names)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_dropping_one_twice_is_dropping_it(path):
    fleets.bank_of(fleets.fleet(3), path)
    assert lt.banks.drop_adapters(path, ["a1", "a1"]).bank.names == ("a0", "a2")


def test_renaming_changes_the_name_alone(path, tmp_path):
    fleet = fleets.mixed()
    known = fleets.exports(grown(path, fleet), tmp_path / "out")
    for old, new in (("plain", "größer/2"), ("tiny", "plain"), ("plain", "tiny")):
        done = lt.banks.rename_adapter(path, old, new)
        known[new] = known.pop(old)
        assert fleets.exports(done.bank, tmp_path / "out") == known
    assert lt.banks.load_bank(path).names == (
        "größer/2",
        "half",
        "brain",
        "double",
        "tiny",
        "zero",
        "partly",
    )
    assert lt.banks.verify_bank(path) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("nobody", "x", "holds no adapter 'nobody'"),
        ("a0", "a1", "holds an adapter 'a1' already; choose another name"),
        ("a0", "", "the new name of 'a0' is empty"),
    ],
)
def test_names_that_make_no_sense_change_nothing(old, new, words, path):
    fleets.bank_of(fleets.fleet(3), path)
    before = path.read_bytes()
    with pytest.raises(lt.errors.CheckpointError, match=words):
        lt.banks.rename_adapter(path, old, new)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


CHANGES = {
    "drop": lambda path: lt.banks.drop_adapters(path, ["a1"]),
    "append": lambda path: lt.banks.add_adapters(path, {"new": fleets.adapter(9)}),
    "rename": lambda path: lt.banks.rename_adapter(path, "a0", "b"),
    "compact": lambda path: lt.banks.compact_bank(path, rule=lt.RelativeError(0.3)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_damaged_numbers_are_not_carried_into_a_new_file(change, path):
    fleet = fleets.fleet(4)
    bank = grown(path, fleet)
    raw = bytearray(path.read_bytes())
    bulky = max(bank.tensors, key=lambda tensor: tensor.entry.nbytes).raw().data.tobytes()
    at = bytes(raw).index(bulky)
    raw[at + 2] ^= 1
    path.write_bytes(raw)
    assert len(lt.banks.verify_bank(path)) == 1
    with pytest.raises(lt.errors.CheckpointError, match="damaged"):
        CHANGES[change](path)
    assert path.read_bytes() == bytes(raw)
    assert os.listdir(path.parent) == [path.name]
