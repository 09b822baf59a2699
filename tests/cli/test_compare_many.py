"""`lotr compare` of three adapters and more, and what it leaves as it was for two."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.adapters import LoRAModule
from tests.cli.conftest import of_json, run_in
from tests.files import peft_models as pm

DEMO = Path(lt.__file__).parent / "demo" / "adapter"
KEYS = {
    "adapters", "modules", "cosine", "overlap_out", "overlap_in", "chance_out", "chance_in",
    "common_modules", "chance", "order", "groups", "group_cosine",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The demo adapter, a LoTR of it, and the same exported, made once."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(DEMO, folder / "demo-adapter")
    lotr = "demo.lotr.safetensors"
    run_in(folder, "convert", "demo-adapter", "--rel-error", 0.3, "-o", lotr, "-q")
    run_in(folder, "export", lotr, "-o", "again", "-q")
    return folder


@pytest.fixture
def three(made, tmp_path):
    """Copies of the three."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "demo-adapter", "demo.lotr.safetensors", "again"


def test_three_as_json(lotr, three):
    record = of_json(lotr("compare", *three, "--json"))
    assert set(record) >= KEYS
    assert [a["name"] for a in record["adapters"]] == ["demo-adapter", "demo", "again"]
    assert len(record["modules"]) == 40
    for i, j in ((0, 1), (0, 2), (1, 2)):
        pair = of_json(lotr("compare", three[i], three[j], "--json"))
        assert set(pair) == {"relative_error", "cosine", "modules"}
        assert record["cosine"][i][j] == pytest.approx(pair["cosine"], abs=1e-9)
    assert record["cosine"][1][2] == pytest.approx(1, abs=1e-9)
    assert record["common_modules"] == [[40] * 3] * 3


def test_three_as_text(lotr, three):
    status, out, err = lotr("compare", *three)
    assert (status, err) == (0, "")
    assert "Adapters        3, all of the same 40 modules" in out
    assert "Pairs, closest first" in out
    assert max(map(len, out.splitlines())) <= 80
    assert lotr("compare", *three, "--quiet") == (0, "", "")
    assert "Overlaps: outputs below" in lotr("compare", *three, "--all")[1]


def test_a_bank_stands_for_its_adapters(lotr, demo_adapter, tmp_path):
    """Of two adapters it is compared as two; beside another adapter there are three."""
    for rank in (2, 3, 4):
        pm.adapt(pm.llama, tmp_path / f"rank-{rank}", r=rank, target_modules=["q_proj", "v_proj"])
    asked = ["bank", "make", "rank-2", "rank-3", "--rel-error", 1e-3]
    lotr(*asked, "-o", "two.lotr.safetensors", "-q")
    pair = of_json(lotr("compare", "two.lotr.safetensors", "--json"))
    wanted = of_json(lotr("compare", "rank-2", "rank-3", "--json"))
    assert pair["relative_error"] == pytest.approx(wanted["relative_error"], rel=1e-2)
    three = of_json(lotr("compare", "two.lotr.safetensors", "rank-4", "--json"))
    assert [adapter["name"] for adapter in three["adapters"]] == ["rank-2", "rank-3", "rank-4"]
    assert three["cosine"][0][1] == pytest.approx(pair["cosine"], abs=1e-9)


def test_adapters_that_differ_in_modules_and_one_that_is_zero(lotr, tmp_path):
    pm.adapt(pm.llama, tmp_path / "queries", r=2, target_modules=["q_proj"])
    pm.adapt(pm.llama, tmp_path / "values", r=3, target_modules=["v_proj"])
    pm.adapt(pm.llama, tmp_path / "both", r=3, target_modules=["q_proj", "v_proj"])
    names = ["queries", "values", "both", "zero"]
    adapter = lt.load_adapter(tmp_path / "both")
    zeros = [LoRAModule(m.target, 0 * m.up, m.down) for m in adapter.modules]
    zero = lt.LoRAAdapter(tuple(zeros), {}, adapter.config, adapter.config_text)
    lt.save_adapter(zero, tmp_path / "zero")
    record = of_json(lotr("compare", *names, "--json"))
    assert record["cosine"][0][1] == 0
    assert record["overlap_out"][0][1] is None
    assert record["cosine"][3] == [None] * 4
    assert record["common_modules"] == [[3, 0, 3, 0], [0, 3, 3, 0], [3, 3, 6, 0], [0] * 4]
    status, out, _ = lotr("compare", *names)
    assert status == 0
    assert "Zero            zero: no angle" in out
    assert "3 to 6 of 6 modules; one that is lacking counts as zero" in out
    status, _, err = lotr("compare", "queries", "values")
    assert (status, "needed two adapters of the same modules" in err) == (1, True)


def test_a_figure(lotr, three, tmp_path):
    status, out, err = lotr("compare", *three, "--plot", "a.svg")
    assert (status, err) == (0, "")
    assert "Written         a.svg" in out
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<?xml")
    status, _, err = lotr("compare", *three, "--plot", "a.svg")
    assert (status, "a.svg exists" in err) == (1, True)
    assert lotr("compare", *three, "--plot", "a.svg", "--force", "-q") == (0, "", "")
    assert of_json(lotr("compare", *three, "--plot", "b.png", "--json"))
    assert (tmp_path / "b.png").exists()


def test_a_figure_without_matplotlib(lotr, three, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = lotr("compare", *three, "--plot", "a.svg")
    assert status == 1
    assert "figures need matplotlib" in err
    assert lotr("compare", *three)[0] == 0


@pytest.mark.parametrize(
    ("count", "options", "sentence"),
    [
        (1, [], "there must be two adapters or more; found 1, demo-adapter"),
        (3, ["--max-rel-error", "0.1"], "--max-rel-error is a limit for two adapters; found 3"),
        (2, ["--plot", "a.svg"], "--plot draws three adapters or more; found 2"),
        (3, ["--plot", "a.jpg"], "a figure is written as .png, .svg or .pdf"),
    ],
)
def test_wrong_usage_is_one_sentence(lotr, demo_adapter, count, options, sentence):
    for copy in ("b", "c"):
        shutil.copytree(demo_adapter, copy)
    status, out, err = lotr("compare", *["demo-adapter", "b", "c"][:count], *options)
    assert (status, out) == (2, "")
    assert err.startswith(f"lotr: {sentence}")
    assert err.count("\n") == 1


def test_refusals_name_the_adapter(lotr, demo_adapter):
    status, _, err = lotr("compare", demo_adapter, demo_adapter, "none")
    assert (status, "named twice" in err) == (1, True)
    status, _, err = lotr("compare", demo_adapter, "none", "nothing")
    assert (status, "none" in err) == (1, True)
    adapter = lt.load_adapter(demo_adapter)
    first, *rest = adapter.modules
    rows = np.repeat(first.up, 2, axis=0)
    wide = LoRAModule(first.target, rows, first.down, first.scale)
    lt.save_adapter(lt.LoRAAdapter((wide, *rest), {}, adapter.config, adapter.config_text), "other")
    shutil.copytree(demo_adapter, "third")
    status, _, err = lotr("compare", demo_adapter, "third", "other")
    m, n = first.shape
    assert status == 1
    assert f"{first.target.name} is {m}x{n} in demo-adapter and {2 * m}x{n} in other" in err


def test_one_adapter_twice_is_still_a_comparison(lotr, demo_adapter):
    record = json.loads(lotr("compare", demo_adapter, demo_adapter, "--json")[1])
    assert record["relative_error"] == pytest.approx(0, abs=1e-12)
    assert record["cosine"] == pytest.approx(1, abs=1e-12)
    status, _, err = lotr("compare", demo_adapter, "none")
    assert (status, "none" in err) == (1, True)
