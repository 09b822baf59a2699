"""Banks in the program: looked at, taken apart, and changed in place."""

import importlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.banks import load_bank
from lotr_tn.errors import CheckpointError
from lotr_tn.files.container import read_container
from tests.cli import runs
from tests.cli.conftest import of_json, run_in

BANK = "history.lotr.safetensors"
STEPS = (500, 1000, 2000, 3000)
NAMES = [f"checkpoint-{step}" for step in STEPS]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Checkpoints below `run` and a bank of them at an error of 5%, made once."""
    folder = tmp_path_factory.mktemp("made")
    runs.history(folder / "run", *STEPS)
    run_in(folder, "bank", "make", "run", "--rel-error", "0.05", "-o", BANK, "-q")
    return folder


@pytest.fixture
def bank(made, tmp_path):
    """A copy of that bank, beside the checkpoints."""
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True) / BANK


def words(text: str) -> str:
    return " ".join(text.split())


def refused(result, status: int = 1) -> str:
    """The one sentence of a run that was refused."""
    assert result[:2] == (status, "")
    assert result[2].startswith("lotr: ")
    assert result[2].count("\n") == 1
    return result[2]


def test_inspect(lotr, bank):
    record = of_json(lotr("bank", "show", BANK, "--json"))
    assert record["format"] == "bank"
    assert record["bytes"] == bank.stat().st_size
    assert record["asked"] == {"relative_error": 0.05, "each": True}
    assert [one["name"] for one in record["adapters"]] == NAMES
    assert 0 < record["worst_error"] <= record["worst_bound"] <= 0.05
    assert record["relative_error"] <= record["worst_error"]
    assert record["verified"] is None
    modules = {name for group in record["groups"] for name in group["modules"]}
    assert modules == set(runs.deltas(bank.parent / "run" / NAMES[0]))
    layers = sum(part["layers"] for group in record["groups"] for part in group["parts"])
    assert layers == sum(record["formats"].values()) == len(NAMES) * runs.MODULES
    own = sum(one["own_bytes"] for one in record["adapters"])
    assert record["bytes_stacks"] == record["bytes_bases"] + own
    assert record["contents"]["configurations"] == 1
    assert record["contents"]["tensors"] == 0


def test_what_a_reader_sees(lotr, bank):
    status, out, err = lotr("bank", "show", BANK)
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    text = words(out)
    assert "bank of 4 adapters, float16" in text
    assert "Base model tiny" in text
    assert "Asked at most 0.05 for each adapter" in text
    assert all(f"{name} {runs.MODULES} " in text for name in NAMES)
    assert "0.q_proj 40x24" in text
    assert "Verified" not in text
    assert "compacting" not in text


def test_of_many_the_first_are_shown(lotr, tmp_path):
    runs.history(tmp_path / "run", *range(100, 1500, 100))
    assert lotr("bank", "make", "run", "--rel-error", "0.1", "-o", BANK, "-q")[0] == 0
    out = words(lotr("bank", "show", BANK)[1])
    assert "The 3 first adapters; --all shows 11 more." in out
    assert "checkpoint-300 " in out
    assert "checkpoint-400 " not in out
    assert "checkpoint-1400 " in words(lotr("bank", "show", BANK, "--all")[1])


def test_other_tensors_are_counted(lotr, tmp_path):
    head = {"classifier.weight": np.ones((2, 24), np.float32)}
    runs.history(tmp_path / "run", 500, 1000, extras=head)
    runs.checkpoint(tmp_path / "run" / "last", 2000, extras={"classifier.weight": np.eye(3)})
    assert lotr("bank", "make", "run", "--rel-error", "0.1", "-o", BANK, "-q")[0] == 0
    contents = of_json(lotr("bank", "show", BANK, "--json"))["contents"]
    assert contents["tensors"] == 2
    assert contents["keys"] == ["base_model.model.classifier.weight"]
    assert "1 configuration and 2 other tensors" in words(lotr("bank", "show", BANK)[1])


def test_verify(lotr, bank):
    record = of_json(lotr("bank", "verify", BANK, "--json"))
    tensors = read_container(bank).tensors
    assert record["verified"] == len(tensors)
    out = lotr("bank", "verify", BANK)[1]
    assert f"Verified all {len(tensors)} tensors are as written" in words(out)
    assert lotr("bank", "verify", BANK, "-q") == (0, "", "")
    name = max(tensors, key=lambda name: ".outputs." in name)
    flip(bank, bytes(tensors[name].data))
    err = refused(lotr("bank", "verify", BANK))
    assert f"is damaged: 1 of {len(tensors)} tensors are not as they were written ({name})" in err
    assert lotr("bank", "show", BANK, "-q")[0] == 0
    flip(bank, b'{"peft_type"')
    err = refused(lotr("bank", "show", BANK))
    assert "the configuration of checkpoint-500 is no JSON" in err
    err = refused(lotr("bank", "verify", BANK))
    assert f"2 of {len(tensors)} tensors" in err


def flip(path, where: bytes) -> None:
    """Change the first byte of what is found in a file."""
    content = bytearray(path.read_bytes())
    content[content.index(where)] ^= 1
    path.write_bytes(content)


def test_inspect_shows_a_bank(lotr, bank):
    assert lotr("inspect", BANK) == lotr("bank", "show", BANK)
    assert lotr("inspect", BANK, "--all", "--json") == lotr("bank", "show", BANK, "--json")


def test_only_banks_are_verified(lotr, demo_adapter):
    for command in ("verify", "show", "merge"):
        assert f"{demo_adapter} is no bank" in refused(lotr("bank", command, demo_adapter))
    err = refused(lotr("inspect", demo_adapter, "--verify"), 2)
    assert f"lotr bank verify {demo_adapter}" in err


def test_export_one(lotr, bank, tmp_path):
    record = of_json(lotr("bank", "export", BANK, NAMES[1], "-o", "out", "--json"))
    assert record["adapter"] == NAMES[1]
    assert record["destination"] == "out"
    assert record["rank"] == runs.RANK
    assert record["bytes_after"] == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    found = runs.gap(tmp_path / "out", tmp_path / "run" / NAMES[1])
    assert found == pytest.approx(record["relative_error"], rel=1e-3, abs=1e-6)
    assert lotr("bank", "export", BANK, NAMES[1], "-q") == (0, "", "")
    assert runs.gap(tmp_path / f"{NAMES[1]}-peft", tmp_path / "out") == 0
    assert "exists" in refused(lotr("bank", "export", BANK, NAMES[1]))
    out = lotr("bank", "export", BANK, NAMES[1], "--force")[1]
    assert max(map(len, out.splitlines())) <= 80
    assert "measured when it was stored" in out
    assert "by now" not in out


def test_export_all(lotr, bank, tmp_path):
    record = of_json(lotr("bank", "export", BANK, "--all", "-o", "out", "--json"))
    assert [one["adapter"] for one in record["adapters"]] == NAMES
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(NAMES)
    for name in NAMES:
        assert runs.gap(tmp_path / "out" / name, tmp_path / "run" / name) <= 0.0501
    assert record["bytes_before"] == bank.stat().st_size
    weights = [tmp_path / "out" / name / "adapter_model.safetensors" for name in NAMES]
    assert record["bytes_after"] == sum(path.stat().st_size for path in weights)
    status, out, _ = lotr("bank", "export", BANK, "--all")
    assert status == 0
    assert "Written history-peft in" in words(out)
    assert max(map(len, out.splitlines())) <= 80
    assert "history-peft exists" in refused(lotr("bank", "export", BANK, "--all"))
    assert lotr("bank", "export", BANK, "--all", "-q", "--force") == (0, "", "")
    (tmp_path / "file").write_text("mine")
    assert "file is a file" in refused(
        lotr("bank", "export", BANK, "--all", "-o", "file", "--force")
    )


def test_names_that_are_no_folders(lotr, bank, tmp_path):
    for old, new in zip(NAMES, ["../up", "a/b", "a:b", ".."], strict=True):
        assert lotr("bank", "rename", BANK, old, new, "-q") == (0, "", "")
    before = set(tmp_path.parent.iterdir())
    status, out, _ = lotr("bank", "export", BANK, "--all", "-o", "out")
    assert status == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"up", "a-b", "a-b-2", "adapter"}
    assert "a:b in a-b-2" in words(out)
    assert lotr("bank", "export", BANK, "a/b", "-q") == (0, "", "")
    assert runs.gap(tmp_path / "a-b-peft", tmp_path / "run" / NAMES[1]) <= 0.0501
    assert set(tmp_path.parent.iterdir()) == before


def test_export_asks_which(lotr, bank, demo_adapter):
    err = refused(lotr("bank", "export", BANK), 2)
    assert "is a bank of 4 adapters; name one, such as checkpoint-500" in err
    assert "--all" in err
    assert "not both" in refused(lotr("bank", "export", BANK, "--all", NAMES[0]), 2)
    for option in (["--all"], ["x"]):
        assert "is no bank" in refused(lotr("bank", "export", demo_adapter, *option))
    assert "holds no adapter 'x'" in refused(lotr("bank", "export", BANK, NAMES[0], "x"))


def test_export_several(lotr, bank, tmp_path):
    asked = ["bank", "export", BANK, NAMES[3], NAMES[1], NAMES[3], "-o", "out"]
    record = of_json(lotr(*asked, "--json"))
    assert [one["adapter"] for one in record["adapters"]] == [NAMES[3], NAMES[1]]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {NAMES[1], NAMES[3]}
    assert runs.gap(tmp_path / "out" / NAMES[3], tmp_path / "run" / NAMES[3]) <= 0.0501


def test_one_adapter_by_its_path(lotr, bank, tmp_path):
    inside = f"{BANK}/{NAMES[2]}"
    figures = load_bank(bank).figures(NAMES[2])
    seen = of_json(lotr("inspect", inside, "--json"))
    assert seen["format"] == "lotr"
    assert seen["bytes"] == figures.own_bytes
    compared = of_json(lotr("compare", f"run/{NAMES[2]}", inside, "--json"))
    assert compared["relative_error"] == pytest.approx(figures.relative_error, rel=1e-3, abs=1e-6)
    assert lotr("export", inside, "-o", "out", "-q") == (0, "", "")
    assert runs.gap(tmp_path / "out", tmp_path / "run" / NAMES[2]) <= 0.0501
    merged = of_json(lotr("merge", inside, f"run/{NAMES[2]}", "--weights", "1,-1", "--json"))
    whole = lt.compare_adapters(lt.load_adapter(f"run/{NAMES[2]}"), lt.load_adapter(inside))
    assert merged["weights"] == {inside: 1.0, f"run/{NAMES[2]}": -1.0}
    assert whole.relative_error == pytest.approx(compared["relative_error"])
    assert "holds no adapter 'no'" in refused(lotr("inspect", f"{BANK}/no"))


def test_a_bank_in_place_of_one_adapter(lotr, bank):
    err = refused(lotr("convert", BANK, "--rel-error", "0.1"), 2)
    assert f"several are put into a bank: lotr bank make {BANK} --rel-error 0.1" in err
    assert f"taken by lotr bank export {BANK} NAME" in refused(lotr("export", BANK), 2)
    with pytest.raises(CheckpointError, match=r"load_bank\('history.lotr.safetensors'\)"):
        lt.load_adapter(BANK)


def test_a_bank_stands_for_all_its_adapters(lotr, bank):
    record = of_json(lotr("compare", BANK, "--json"))
    assert [one["name"] for one in record["adapters"]] == NAMES
    told = of_json(lotr("analyze", BANK, "--json"))
    assert told["sources"] == [f"{BANK}/{name}" for name in NAMES]
    both = of_json(lotr("compare", "run", BANK, "--json"))
    found = {one["name"] for one in both["adapters"]}
    assert found == {f"{x}/{name}" for x in ("run", BANK) for name in NAMES}
    weights = ["--weights", f"{NAMES[0]}=1,{NAMES[3]}=2", "--json"]
    merged = of_json(lotr("merge", BANK, *weights))
    assert set(merged["weights"]) == {NAMES[0], NAMES[3]}
    same = of_json(lotr("bank", "merge", BANK, *weights, "-o", "again"))
    assert same["weights"] == merged["weights"]
    assert same["relative_error"] == merged["relative_error"]


def test_append(lotr, bank, tmp_path):
    before = {name: export(lotr, tmp_path, name) for name in NAMES}
    size = bank.stat().st_size
    runs.checkpoint(tmp_path / "run" / "checkpoint-4000", 4000)
    runs.stranger(tmp_path / "other", 7)
    record = of_json(lotr("bank", "add", BANK, "run/checkpoint-4000", "other", "--json"))
    assert [one["name"] for one in record["adapters"]] == ["checkpoint-4000", "other"]
    assert (record["adapters_before"], record["adapters_after"]) == (4, 6)
    assert (record["bytes_before"], record["bytes_after"]) == (size, bank.stat().st_size)
    assert record["asked"] == 0.05
    assert record["met"]
    for one, path in zip(record["adapters"], ("run/checkpoint-4000", "other"), strict=True):
        export(lotr, tmp_path, one["name"])
        found = runs.gap(tmp_path / f"out-{one['name']}", tmp_path / path)
        assert found <= 0.05
        assert found == pytest.approx(one["relative_error"], rel=1e-3, abs=1e-6)
    assert {name: export(lotr, tmp_path, name) for name in NAMES} == before


def export(lotr, folder, name) -> bytes:
    """The weights of an adapter of the bank."""
    assert lotr("bank", "export", BANK, name, "-o", f"out-{name}", "-q", "--force")[0] == 0
    return (folder / f"out-{name}" / "adapter_model.safetensors").read_bytes()


def test_what_a_reader_sees_of_append(lotr, bank, tmp_path):
    runs.checkpoint(tmp_path / "new", 2500)
    runs.stranger(tmp_path / "other", 7)
    status, out, err = lotr("bank", "add", BANK, "new", "--name", "of friends")
    assert (status, err) == (0, "")
    text = words(out)
    assert "of friends" in text
    assert "Adapters 4 -> 5" in text
    assert "New directions none" in text
    assert "asked: at most 0.05" in text
    assert f"Changed {BANK} in" in text
    _, out, _ = lotr("bank", "add", BANK, "other", "--rel-error", "0.3")
    text = words(out)
    assert "asked: at most 0.3" in text
    assert "Adapters 5 -> 6" in text
    assert max(map(len, out.splitlines())) <= 80


def test_append_refuses(lotr, bank, tmp_path):
    size, content = bank.stat().st_size, bank.read_bytes()
    runs.checkpoint(tmp_path / "x", 100, base="huge")
    for arguments, message in (
        ([f"run/{NAMES[0]}"], f"holds an adapter {NAMES[0]!r} already"),
        (["x"], "--any-base"),
        (["nowhere"], "nowhere: no such file or folder"),
    ):
        assert message in refused(lotr("bank", "add", BANK, *arguments))
    assert (bank.stat().st_size, bank.read_bytes()) == (size, content)
    assert lotr("bank", "add", BANK, "x", "--any-base", "-q") == (0, "", "")
    assert "is no bank" in refused(lotr("bank", "add", "run", "x"))
    assert "no such file" in refused(lotr("bank", "add", "nowhere.safetensors", "x"))
    assert lotr("bank", "make", "run", "--max-bytes", "50kB", "-o", "b.safetensors", "-q")[0] == 0
    err = refused(lotr("bank", "add", "b.safetensors", "x", "--any-base"), 2)
    assert "--rel-error" in err


def test_an_error_that_append_cannot_meet(lotr, bank, tmp_path, monkeypatch):
    """None is known: an adapter may be kept as it is. If there were one, it would be said."""
    runs.checkpoint(tmp_path / "new", 2500)
    record = of_json(lotr("bank", "add", BANK, "new", "--rel-error", "1e-12", "--json"))
    assert record["worst_error"] <= 1e-12
    adding = importlib.import_module("lotr_tn.cli.bank.add")
    real = adding.add_adapters
    missed = lambda *given, **more: replace(real(*given, **more), met=False)  # noqa: E731
    monkeypatch.setattr(adding, "add_adapters", missed)
    asked = ["bank", "add", BANK, "new", "--name", "again", "--rel-error", "1e-12"]
    status, out, err = lotr(*asked, "--json")
    assert status == 3
    assert not json.loads(out)["met"]
    assert "float32, cannot hold the error asked for (at most 1e-12)" in err
    assert err.count("\n") == 1


def test_drop(lotr, bank, tmp_path):
    before = {name: export(lotr, tmp_path, name) for name in NAMES}
    record = of_json(lotr("bank", "drop", BANK, NAMES[0], NAMES[2], "--json"))
    assert record["dropped"] == [NAMES[0], NAMES[2]]
    assert (record["adapters_before"], record["adapters_after"]) == (4, 2)
    assert record["bytes_after"] == bank.stat().st_size < record["bytes_before"]
    assert list(load_bank(bank).names) == [NAMES[1], NAMES[3]]
    for name in (NAMES[1], NAMES[3]):
        assert export(lotr, tmp_path, name) == before[name]
    assert "holds no adapter" in refused(lotr("bank", "drop", BANK, NAMES[0]))
    assert "delete the file" in refused(lotr("bank", "drop", BANK, NAMES[1], NAMES[3]))
    _, out, _ = lotr("bank", "drop", BANK, NAMES[1], NAMES[1])
    assert f"Dropped {NAMES[1]} Adapters 2 -> 1" in words(out)
    assert f"lotr bank compact {BANK}" in out


def test_rename(lotr, bank, tmp_path):
    before = export(lotr, tmp_path, NAMES[3])
    _, out, _ = lotr("bank", "rename", BANK, NAMES[3], "the last")
    assert f"Renamed {NAMES[3]} -> the last" in words(out)
    assert load_bank(bank).names == (*NAMES[:3], "the last")
    assert export(lotr, tmp_path, "the last") == before
    record = of_json(lotr("bank", "rename", BANK, "the last", "z", "--json"))
    assert (record["old"], record["new"], record["adapters_after"]) == ("the last", "z", 4)
    assert f"{NAMES[0]!r} already" in refused(lotr("bank", "rename", BANK, "z", NAMES[0]))
    assert "holds no adapter" in refused(lotr("bank", "rename", BANK, "nobody", "x"))


def test_compact(lotr, bank, tmp_path):
    runs.stranger(tmp_path / "other", 7)
    assert lotr("bank", "add", BANK, "other", "--rel-error", "0.001", "-q")[0] == 0
    assert lotr("bank", "drop", BANK, "other", "-q")[0] == 0
    size = bank.stat().st_size
    record = of_json(lotr("bank", "compact", BANK, "--rel-error", "0.2", "--json"))
    assert record["bytes_before"] == size > record["bytes_after"] == bank.stat().st_size
    assert record["met"]
    assert record["asked"] == 0.2
    assert record["worst_error"] < record["worst_bound"] <= 0.2
    for one in record["adapters"]:
        export(lotr, tmp_path, one["name"])
        found = runs.gap(tmp_path / f"out-{one['name']}", tmp_path / "run" / one["name"])
        assert found <= one["bound"] * (1 + 1e-3)
    out = lotr("bank", "show", BANK)[1]
    assert "At most" in out
    assert "with what compacting has moved since" in out
    assert max(map(len, out.splitlines())) <= 80
    out = lotr("bank", "export", BANK, NAMES[0], "-o", "x")[1]
    assert "; by now at most" in words(out)


def test_what_a_reader_sees_of_compact(lotr, bank):
    status, out, err = lotr("bank", "compact", BANK, "--rel-error", "0.3")
    assert (status, err) == (0, "")
    text = words(out)
    assert "Asked at most 0.3" in text
    assert f"Changed {BANK} in" in text
    assert max(map(len, out.splitlines())) <= 80


def test_compact_finds_nothing(lotr, bank):
    content = bank.read_bytes()
    status, out, err = lotr("bank", "compact", BANK)
    assert (status, err) == (0, "")
    assert bank.read_bytes() == content
    assert ", unchanged: nothing smaller was found" in words(out)
    assert "Changed" not in out


def test_compact_says_what_it_cannot_do(lotr, bank, demo_adapter):
    status, out, err = lotr("bank", "compact", BANK, "--rel-error", "1e-6", "--json")
    assert status == 3
    assert not json.loads(out)["met"]
    assert "what was lost before cannot come back" in err
    assert "is no bank" in refused(lotr("bank", "compact", demo_adapter))


@pytest.mark.parametrize("command", [["add", BANK], ["drop", BANK], ["rename", BANK, "a"]])
def test_wrong_usage(lotr, command):
    status, out, err = lotr("bank", *command)
    assert (status, out) == (2, "")
    assert "Missing argument" in err
