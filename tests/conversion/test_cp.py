"""CP through the house: files, export, comparing, merging, analysis and banks."""

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.adapters.as_lora import to_lora
from lotr_tn.analysis.forms import auto_forms
from lotr_tn.banks.file import load_bank
from lotr_tn.banks.making.conversion import make_bank
from lotr_tn.errors import OptionError
from lotr_tn.linalg.ranks import Budget, FixedRank, RelativeError
from tests.cli.conftest import lotr, of_json
from tests.cli.runs import LAYERS, SHAPES, history, stranger

__all__ = ["lotr"]

FIELDS = ("a", "weights", "b")


@pytest.fixture
def source(tmp_path):
    return stranger(tmp_path / "source", 0)


@pytest.fixture
def adapter(source):
    return lt.load_adapter(source)


def test_the_native_file_keeps_terms_and_certificate(adapter, tmp_path):
    made = lt.convert_adapter(adapter, FixedRank(5), format="cp").adapter
    lt.save_adapter(made, tmp_path / "cp.safetensors")
    back = lt.load_adapter(tmp_path / "cp.safetensors")
    for name, group in made.groups.items():
        stack, known = back.groups[name].stack, group.certificate
        assert type(stack) is lt.CP
        assert all(np.array_equal(getattr(stack, k), getattr(group.stack, k)) for k in FIELDS)
        assert stack.certificate.relative_error == known.relative_error
        assert stack.certificate.method == "cp-als"
    measured = lt.compare_adapters(adapter, back).relative_error
    told = [group.certificate for group in back.groups.values()]
    lost = np.linalg.norm([c.distance for c in told]) / np.linalg.norm([c.norm for c in told])
    assert measured == pytest.approx(lost, rel=1e-6)


def test_an_error_is_kept_to_and_the_export_is_exact(adapter):
    done = lt.convert_adapter(adapter, RelativeError(0.3), format="cp", dtype="float32")
    assert done.met
    for group in done.adapter.groups.values():
        assert group.certificate.relative_error <= 0.3
    exported = to_lora(done.adapter, ranks="minimal", dtype="float64").adapter
    assert lt.compare_adapters(done.adapter, exported).relative_error < 1e-7
    with pytest.raises(OptionError, match="what the form cp would lose at each size"):
        lt.convert_adapter(adapter, Budget(500), format="cp")


def test_the_commands_take_it(lotr, source):
    made = of_json(
        lotr("convert", source, "--format", "cp", "--rank", 5, "-o", "cp.safetensors", "--json")
    )
    assert {group["format"] for group in made["groups"]} == {"cp"}
    assert made["params_after"] == sum(5 * (LAYERS + m + n) for m, n in SHAPES.values())
    seen = of_json(lotr("inspect", "cp.safetensors", "--json"))
    assert {group["format"] for group in seen["groups"]} == {"cp"}
    assert lotr("export", "cp.safetensors", "-o", "exported", "--quiet")[0] == 0
    assert of_json(lotr("compare", "cp.safetensors", "exported", "--json"))["relative_error"] < 1e-3
    assert lotr("merge", "cp.safetensors", "exported", "-o", "merged", "--quiet")[0] == 0
    assert of_json(lotr("compare", "merged", "exported", "--json"))["relative_error"] < 1e-3


def test_what_is_analysed_is_what_is_made(lotr, source):
    assert "cp" not in auto_forms()
    arguments = ("--rel-error", "0.5", "--group-by", "kind", "--dtype", "float32", "--json")
    record = of_json(lotr("analyze", source, *arguments, "--formats", "all"))
    made = of_json(lotr("convert", source, *arguments, "--format", "cp", "-o", "cp.safetensors"))
    sizes = {group["name"]: group["params_after"] for group in made["groups"]}
    for group in record["groups"]:
        found = {one["format"]: one for one in group["candidates"]}
        assert found["cp"]["params"] == sizes[group["name"]]
        assert found["cp"]["relative_error"] <= 0.5
        least = min(found.values(), key=lambda one: one["bytes"])
        headers = 600  # of files count too, and differ between forms
        assert found[group["recommended"]]["bytes"] <= least["bytes"] + headers


def test_a_bank_of_checkpoints_shares_its_terms(tmp_path):
    folders = history(tmp_path, 1000, 1100, 1200)
    adapters = {folder.name: lt.load_adapter(folder) for folder in folders}
    path = tmp_path / "bank.lotr.safetensors"
    made = make_bank(adapters, path, FixedRank(14), format="cp")
    assert set(made.bank.figures("checkpoint-1000").formats) == {"cp"}
    for name, original in adapters.items():
        found = load_bank(path)[name]
        error = lt.compare_adapters(original, found).relative_error
        assert error == pytest.approx(made.bank.figures(name).relative_error, rel=1e-5)
        assert error < 0.5
