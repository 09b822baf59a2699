"""Stored forms are records, and their table is open: one of the tests' own goes everywhere."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

import lotr_tn as lt
from lotr_tn.adapters.as_lora import to_lora
from lotr_tn.adapters.storage import format_of, stored_ranks
from lotr_tn.analysis.forms import FORMS, Look, auto_forms, form_named, form_of, register_form
from lotr_tn.banks.changing.appending import add_adapters
from lotr_tn.banks.changing.editing import drop_adapters
from lotr_tn.banks.file import load_bank
from lotr_tn.banks.making.conversion import make_bank
from lotr_tn.cli.main import app
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.files.dialects.native import load_native, save_native
from lotr_tn.inspection.analyze import analyze_adapters
from lotr_tn.inspection.compare import compare_adapters
from lotr_tn.linalg.ranks import Budget, FixedRank, RankLimits, RelativeError, TotalError
from lotr_tn.ops.primitives import unregister_format
from lotr_tn.report.analysis import analysis_record, with_surfaces
from lotr_tn.report.page import page_html
from lotr_tn.report.plots import save_plot
from lotr_tn.report.records import inspection_record
from tests.analysis import own_form

PACKAGE = Path(lt.__file__).parent
DEMO = PACKAGE / "demo" / "adapter"
HERE = Path(own_form.__file__)


@pytest.fixture
def own() -> Iterator[None]:
    """The form of the tests, registered as a person would."""
    own_form.register()
    yield
    del FORMS["diagonal"]
    unregister_format(own_form.Diagonal)


@pytest.fixture(scope="module")
def demo() -> lt.LoRAAdapter:
    return lt.load_adapter(DEMO)


def converted(adapter) -> lt.LoTRAdapter:
    return lt.convert_adapter(adapter, FixedRank(4), format="diagonal").adapter


@pytest.mark.usefixtures("own")
def test_the_native_file_keeps_it(demo, tmp_path):
    adapter = converted(demo)
    save_native(adapter, tmp_path / "a.lotr.safetensors", force=False)
    back = load_native(tmp_path / "a.lotr.safetensors")
    for name, group in adapter.groups.items():
        found = back.groups[name]
        assert type(found.stack) is own_form.Diagonal
        assert (format_of(found), stored_ranks(found)) == ("diagonal", [group.stack.rank])
        for field in ("a", "w", "b"):
            assert np.array_equal(getattr(found.stack, field), getattr(group.stack, field))
        assert found.certificate.relative_error == group.certificate.relative_error
    assert {group["format"] for group in inspection_record(back, "kind", 1)["groups"]} == {
        "diagonal"
    }


def test_a_file_of_a_form_that_is_gone_says_so(demo, tmp_path):
    own_form.register()
    try:
        save_native(converted(demo), tmp_path / "a.lotr.safetensors", force=False)
    finally:
        del FORMS["diagonal"]
        unregister_format(own_form.Diagonal)
    with pytest.raises(CheckpointError, match=r"unknown format 'diagonal'; upgrade .* or install"):
        load_native(tmp_path / "a.lotr.safetensors")


@pytest.mark.usefixtures("own")
def test_it_is_exported_and_compared(demo):
    adapter = converted(demo)
    export = to_lora(adapter, ranks="minimal", dtype="float64").adapter
    assert compare_adapters(adapter, export).relative_error < 1e-7
    measured = compare_adapters(demo, adapter).relative_error
    whole = [group.certificate for group in adapter.groups.values()]
    lost = np.linalg.norm([c.distance for c in whole]) / np.linalg.norm([c.norm for c in whole])
    assert measured == pytest.approx(lost, rel=1e-6)
    cosine = lt.inspection.compare_many({"a": demo, "b": adapter}).cosine[0, 1]
    assert cosine == pytest.approx((1 - lost**2) ** 0.5, rel=1e-5)


def shared(layers: int = 6, rank: int = 3) -> lt.LoRAStack:
    """Layers that the form holds exactly at this rank."""
    rng = np.random.default_rng(5)
    a, b = (np.linalg.qr(rng.standard_normal((size, rank)))[0] for size in (14, 11))
    weights = np.array([4.0, 2.0, 1.0]) * rng.uniform(0.9, 1.1, (layers, rank))
    up = np.concatenate([a * w for w in weights], axis=1)
    return lt.LoRAStack(up, np.tile(b.T, (layers, 1)), (rank,) * layers)


@pytest.mark.usefixtures("own")
def test_an_error_is_met_at_the_least_rank():
    stack = shared()
    for epsilon, rank in ((0.9, 1), (0.3, 2), (1e-6, 3), (0.0, 3)):
        made = lt.compress(stack, RelativeError(epsilon), "diagonal", dtype="float64")
        assert made.rank == rank, epsilon
        assert form_of(made).name == "diagonal"
    limits = RankLimits(most=2)
    assert lt.compress(stack, RelativeError(1e-6), "diagonal", limits=limits).rank == 2


@pytest.mark.usefixtures("own")
def test_without_a_curve_it_is_no_choice_of_auto_and_no_size_is_divided(demo):
    assert "diagonal" not in auto_forms()
    conversion = lt.convert_adapter(demo, TotalError(0.3), format="auto")
    assert conversion.bound_forms == auto_forms()
    for rule in (TotalError(0.3), Budget(40_000)):
        with pytest.raises(OptionError, match="what the form diagonal would lose at each size"):
            lt.convert_adapter(demo, rule, format="diagonal")


@pytest.mark.usefixtures("own")
def test_it_is_analysed_and_drawn(demo, tmp_path):
    analysis = analyze_adapters([demo], RelativeError(0.9), groups=["q_proj"], formats=["diagonal"])
    record = analysis_record(analysis)
    (group,) = record["groups"]
    found = {c["format"]: c for c in group["candidates"]}["diagonal"]
    assert found["label"] == "diagonal cores"
    assert found["measured"]
    assert 0.9 < found["relative_error"] < 1, "shown, though it loses more than was asked"
    assert group["recommended"] != "diagonal"
    page = page_html(with_surfaces(record, analysis))
    assert ".form-diagonal { --own: #223344; }" in page
    assert ".curve.form-diagonal { stroke-dasharray: 8 2; }" in page
    assert '"diagonal":{"label":"diagonal cores"' in page
    assert "<span" in page.split("diagonal cores")[0]
    save_plot(record, tmp_path / "a.svg", force=False)
    assert "diagonal cores" in (tmp_path / "a.svg").read_text()
    assert "#112233" in (tmp_path / "a.svg").read_text()


@pytest.mark.usefixtures("own")
def test_a_bank_holds_it_in_its_own_fields(demo, tmp_path):
    path = tmp_path / "bank.lotr.safetensors"
    other = replace(demo, modules=tuple(replace(m, scale=2 * m.scale) for m in demo.modules))
    done = make_bank({"a": demo, "b": other}, path, FixedRank(3), format="diagonal")
    assert set(done.bank.figures("a").formats) == {"diagonal"}
    for name, original in (("a", demo), ("b", other)):
        found = load_bank(path)[name]
        assert all(type(g.stack) is own_form.Diagonal for g in found.groups.values())
        error = compare_adapters(original, found).relative_error
        assert error == pytest.approx(done.bank.figures(name).relative_error, rel=1e-5)
    module = done.bank.modules[0]
    stack, names = done.bank.stack(module)
    assert (type(stack), names) == (own_form.Diagonal, ("a", "b"))
    before = to_lora(load_bank(path)["b"], ranks="minimal", dtype="float64").adapter
    add_adapters(path, {"c": demo}, rule=lt.RelativeError(0.05))
    assert load_bank(path).figures("c").relative_error <= 0.05
    drop_adapters(path, ["a"])
    after = to_lora(load_bank(path)["b"], ranks="minimal", dtype="float64").adapter
    assert compare_adapters(before, after).relative_error < 1e-12
    assert len(load_bank(path).stack(module)[1]) == 2


@pytest.mark.usefixtures("own")
def test_a_bank_refuses_what_it_cannot_lay_out(demo, tmp_path):
    path = tmp_path / "bank.lotr.safetensors"
    with pytest.raises(OptionError, match="what the form diagonal would lose at each size"):
        make_bank({"a": demo}, path, RelativeError(0.1), format="diagonal")
    register_form(replace(own_form.FORM, axes={"a": "out r", "w": "head r", "b": "in r"}))
    sentence = r"diagonal holds a \(out r\); w \(head r\); b \(in r\); choose another form"
    with pytest.raises(OptionError, match=sentence):
        make_bank({"a": demo}, path, FixedRank(3), format="diagonal")
    assert not path.exists()


def test_what_is_registered_is_checked():
    with pytest.raises(OptionError, match=r"small letters, digits and hyphens.*found 'My Form'"):
        register_form(replace(own_form.FORM, name="My Form"))
    with pytest.raises(OptionError, match="the name lotr is taken, by Tucker2"):
        register_form(replace(own_form.FORM, name="lotr"))
    with pytest.raises(OptionError, match="to be a dataclass with a field q"):
        register_form(replace(own_form.FORM, axes={"q": "out r"}))
    with pytest.raises(OptionError, match="leaves out b of Diagonal"):
        register_form(replace(own_form.FORM, axes={"a": "out r", "w": "layer r"}))
    with pytest.raises(OptionError, match="needs curve, losses and make, or none of them"):
        register_form(replace(own_form.FORM, curve=FORMS["lotr"].curve))
    with pytest.raises(OptionError, match="#rrggbb; found 'red'"):
        Look("red")
    assert "diagonal" not in FORMS


def test_an_unknown_form_is_told_the_names():
    with pytest.raises(OptionError, match=r"one of auto, .*found 'lort'; did you mean lotr\?"):
        form_named("lort")
    with pytest.raises(OptionError, match="Tensor2 is stored in no form"):
        form_of(type("Tensor2", (), {})())


def installed(folder: Path, source: str) -> Path:
    """A folder with an installed package that has a form."""
    info = folder / "diagonal_forms-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: diagonal-forms\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[lotr_tn.formats]\ndiagonal = diagonal_forms:register\n"
    )
    (folder / "diagonal_forms.py").write_text(source)
    return folder


def lotr(*words: str | Path) -> Result:
    """The command line as a new process finds it: no form of a package is known yet."""
    done = CliRunner().invoke(app, [*map(str, words)])
    FORMS.pop("diagonal", None)
    module = sys.modules.pop("diagonal_forms", None)
    if module is not None:
        unregister_format(module.Diagonal)
    return done


def test_the_command_line_finds_it_through_an_entry_point(tmp_path, monkeypatch):
    folder = installed(tmp_path / "site", HERE.read_text())
    out, words = tmp_path / "a.lotr.safetensors", ("--format", "diagonal", "--rank", "4")
    done = subprocess.run(
        [sys.executable, "-m", "lotr_tn", "convert", DEMO, *words, "-o", out, "--json"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(PACKAGE.parent)])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {group["format"] for group in json.loads(done.stdout)["groups"]} == {"diagonal"}

    monkeypatch.syspath_prepend(folder)
    seen = lotr("inspect", out)
    assert "diagonal" in seen.stdout, seen.output
    export = lotr("export", out, "-o", tmp_path / "lora")
    assert export.exit_code == 0, export.output
    words = ("--group", "q_proj", "--rel-error", "0.9", "--formats", "all", "--json")
    (group,) = json.loads(lotr("analyze", DEMO, *words).stdout)["groups"]
    assert "diagonal" in [candidate["format"] for candidate in group["candidates"]]


def test_a_broken_package_is_named_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(
        installed(tmp_path / "site", "raise RuntimeError('half installed')\n")
    )
    done = lotr("convert", DEMO, "--format", "diagonal", "-o", tmp_path / "a.lotr.safetensors")
    assert done.exit_code == 2
    words = " ".join(done.stderr.replace("│", " ").split())
    assert "the forms of the package diagonal-forms could not be loaded" in words
    assert "half installed" in words
    assert "Traceback" not in done.stderr
    fine = lotr("inspect", DEMO)
    assert fine.exit_code == 0, "packages are looked at for unknown names alone"


def compared_with_forms(tree: ast.Module) -> Iterator[int]:
    """Lines that compare with a form's name, match it, or have it in a Literal or as a key."""
    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "Literal":
            parts = [node.slice]
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
        for part in parts:
            for leaf in ast.walk(part):
                if isinstance(leaf, ast.Constant) and leaf.value in FORMS:
                    yield node.lineno


def test_no_comparison_with_a_form_s_name():
    own = PACKAGE / "analysis" / "forms"
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if own not in path.parents
        for line in compared_with_forms(ast.parse(path.read_text()))
    ]
    assert not found
    assert list(compared_with_forms(ast.parse("x == 'lotr' or y in ('a', 'shared-in')"))) == [1, 1]


ROOMS = ("adapters", "analysis", "banks", "cli", "conversion", "files", "inspection", "report")
KINDS = {"Dense", "LoRAStack", "LowRankTucker2", "Tucker1", "Tucker2"}


def formats_asked_for(tree: ast.Module) -> Iterator[int]:
    """Lines that ask for a stack's format by `isinstance` or `match`."""
    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        if isinstance(node, ast.MatchClass):
            parts = [node.cls]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            parts = [node.args[1]]
        names = {leaf.id for part in parts for leaf in ast.walk(part) if isinstance(leaf, ast.Name)}
        if names & KINDS:
            yield node.lineno if isinstance(node, ast.Call) else node.cls.lineno


def test_no_room_above_the_algebra_asks_for_a_format():
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for room in ROOMS
        for path in sorted((PACKAGE / room).rglob("*.py"))
        for line in formats_asked_for(ast.parse(path.read_text()))
    ]
    assert not found
    faulty = "isinstance(x, Tucker1 | Dense)\nmatch x:\n    case LoRAStack(): pass"
    assert list(formats_asked_for(ast.parse(faulty))) == [1, 3]
