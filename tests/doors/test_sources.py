"""Adapters that a user names: by folder, file, bank and folder of adapters."""

import gc
from pathlib import Path

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.banks import make_bank
from lotr_tn.doors import sources
from lotr_tn.doors.loading import place_in_bank
from lotr_tn.doors.sources import folder_names, is_collection, named_adapters
from lotr_tn.errors import CheckpointError, OptionError
from tests.cli import runs


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, which is the current one, with a run and another one."""
    monkeypatch.chdir(tmp_path)
    runs.history(tmp_path / "run", 2000, 500, 1000)
    runs.history(tmp_path / "again", 500, run=1)
    return tmp_path


@pytest.fixture
def bank(here):
    """A bank of the run, below the current folder."""
    path = Path("history.lotr.safetensors")
    make_bank(named_adapters([Path("run")]), path, lt.RelativeError(0.1))
    return path


def named(*paths, names=None):
    return named_adapters([Path(path) for path in paths], names)


def test_a_folder_of_adapters(here):
    (here / "run" / "logs").mkdir()
    (here / "run" / ".checkpoint-1").mkdir()
    (here / "run" / ".checkpoint-1" / "adapter_model.safetensors").write_text("half")
    found = named("run")
    assert list(found) == ["checkpoint-500", "checkpoint-1000", "checkpoint-2000"]
    assert found["checkpoint-1000"].source == Path("run/checkpoint-1000")
    assert found.files == tuple(Path("run") / name for name in found)
    assert is_collection(Path("run"))
    for path in ("run/checkpoint-500", "run/logs", "run/checkpoint-500/adapter_model.safetensors"):
        assert not is_collection(Path(path))


def test_an_adapter_with_checkpoints_below_is_one(here):
    runs.checkpoint(here / "whole", 3000)
    runs.checkpoint(here / "whole" / "checkpoint-1", 1)
    assert list(named("whole")) == ["whole"]


def test_equal_names_are_told_apart_by_the_path_as_typed(here, bank):
    found = named("run", "again")
    assert list(found) == [
        "run/checkpoint-500", "checkpoint-1000", "checkpoint-2000", "again/checkpoint-500",
    ]  # fmt: skip
    both = named("again/checkpoint-500", bank)
    assert list(both) == [
        "again/checkpoint-500", f"{bank}/checkpoint-500", "checkpoint-1000", "checkpoint-2000",
    ]  # fmt: skip
    assert isinstance(both[f"{bank}/checkpoint-500"], lt.LoTRAdapter)


@pytest.mark.parametrize("twice", [["run", "run/checkpoint-500"], ["again", "again"]])
def test_twice(here, twice):
    with pytest.raises(CheckpointError, match="checkpoint-500 is named twice; name every adapter"):
        named(*twice)


def test_an_adapter_of_a_bank_twice(bank):
    with pytest.raises(CheckpointError, match="is named twice"):
        named(bank, f"{bank}/checkpoint-500")


def test_nothing_is_read_before_it_is_asked_for_nor_held(here, monkeypatch):
    read = []
    real = sources.load_adapter

    def counted(path):
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(sources, "load_adapter", counted)
    found = named("run")
    assert len(found) == 3
    assert "checkpoint-500" in found
    assert "checkpoint-501" not in found
    assert read == []
    first = found["checkpoint-500"]
    assert found["checkpoint-500"] is first
    assert read == ["checkpoint-500"]
    del first
    gc.collect()
    assert found["checkpoint-500"].parameters
    assert read == ["checkpoint-500"] * 2


def test_adapters_of_a_bank_share_its_bases(bank):
    found = named(bank)
    a, b = found["checkpoint-500"], found["checkpoint-2000"]
    assert list(found) == ["checkpoint-500", "checkpoint-1000", "checkpoint-2000"]
    assert found.files == (bank,)
    shared = [
        array
        for name in a.groups
        for array in vars(a.groups[name].stack).values()
        if isinstance(array, np.ndarray)
        and any(array is other for other in vars(b.groups[name].stack).values())
    ]
    assert shared


def test_one_adapter_of_a_bank(bank):
    inside = bank / "checkpoint-1000"
    found = named(inside, "again")
    assert list(found) == ["checkpoint-1000", "checkpoint-500"]
    apart = lt.compare_adapters(found["checkpoint-1000"], lt.load_adapter(inside))
    assert apart.relative_error < 1e-12
    assert place_in_bank(inside) == (bank, "checkpoint-1000")
    assert place_in_bank(bank) is None
    assert place_in_bank(Path("again/nothing")) is None
    assert list(named(inside, f"{bank}/checkpoint-500")) == ["checkpoint-1000", "checkpoint-500"]
    with pytest.raises(CheckpointError, match="holds no adapter 'nobody'"):
        named(bank / "nobody")
    with pytest.raises(CheckpointError, match="holds no adapter 'nobody'"):
        lt.load_adapter(bank / "nobody")


def test_other_names(here):
    found = named("run", names=["a", "b", "c"])
    assert list(found) == ["a", "b", "c"]
    assert found["c"].source == Path("run/checkpoint-2000")
    with pytest.raises(OptionError, match=r"found 2 names for 3 adapters; .*: checkpoint-500, ch"):
        named("run", names=["a", "b"])
    with pytest.raises(OptionError, match="'a' is given 2 times"):
        named("run", names=["a", "b", "a"])
    with pytest.raises(OptionError, match="empty name"):
        named("run", names=["a", "b", ""])


def test_a_damaged_bank_is_refused_at_once(bank):
    content = bytearray(bank.read_bytes())
    place = content.index(b"checkpoint-1000")
    content[place] ^= 1
    bank.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        named(bank)


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["a", "A", "a-2"], ["a", "A-2", "a-2-2"]),
        (["x/y", "x\\y", "x//y"], ["x-y", "x-y-2", "x-y-3"]),
        (["", " ", "..", "-"], ["adapter", "adapter-2", "adapter-3", "adapter-4"]),
        (["-rf", ".hidden", "end."], ["rf", "hidden", "end"]),
        (["\u00fc", "u\u0308"], ["\u00fc", "u\u0308-2"]),
        (["tab\there"], ["tab-here"]),
    ],
)
def test_names_of_folders(names, folders, tmp_path):
    found = folder_names(names)
    assert list(found) == names
    assert list(found.values()) == folders
    for folder in found.values():
        (tmp_path / folder).mkdir()
        assert (tmp_path / folder).parent == tmp_path


def test_long_names_of_folders(tmp_path):
    found = folder_names(["ü" * 400, "ü" * 401])
    assert len(set(found.values())) == 2
    for folder in found.values():
        (tmp_path / f".{folder}.123456.abcdef01.partial").mkdir()
