"""The default is the smallest file: of all groupings, forms and dtypes, and as large as is told."""

import itertools

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.analysis.forms import auto_forms
from lotr_tn.files.dialects.native import native_size
from tests.cli.conftest import of_json
from tests.cli.runs import gap, history, save, stranger

ERRORS = ("0.3", "0.05", "0.002")


def one_subspace(folder):
    """All layers of both kinds, which have one shape, in the same subspaces."""
    rng = np.random.default_rng(5)
    u, v = rng.standard_normal((36, 4)), rng.standard_normal((4, 36))
    factors = {
        f"layers.{layer}.{kind}": (u @ rng.standard_normal((4, 4)), rng.standard_normal((4, 4)) @ v)
        for layer in range(6)
        for kind in ("q_proj", "v_proj")
    }
    return save(folder, factors)


MADE = {
    "shared": one_subspace,
    "stranger": lambda folder: stranger(folder, 1),
    "checkpoint": lambda folder: history(folder, 1000)[0],
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("kind", MADE)
def test_no_other_choice_is_a_smaller_file(lotr, tmp_path, kind, error):
    source = MADE[kind](tmp_path / "adapter")
    asked = ("--rel-error", error, "--json", "--force", "-o", "a.safetensors")
    record = of_json(lotr("convert", source, *asked))
    told = of_json(lotr("analyze", source, "--rel-error", error, "--json"))
    size = (tmp_path / "a.safetensors").stat().st_size
    assert size == record["bytes_after"] == told["recommended"]["bytes"]
    assert record["relative_error"] <= float(error)
    forms = [form for form in auto_forms() if form != "lora"]
    pairs = itertools.product(enumerate(forms), enumerate(("float16", "bfloat16", "float32")))
    for (at, form), (place, dtype) in pairs:
        by = ("kind", "shape")[(at + place) % 2]  # each with every form and every dtype
        more = ("--format", form, "--group-by", by, "--dtype", dtype)
        status, out, _ = lotr("convert", source, *more, *asked)
        if status == 0:
            assert size <= of_json((status, out, ""))["bytes_after"] + 64, more
    assert size <= record["bytes_before"]


def test_what_is_told_is_what_is_written(tmp_path):
    adapter = lt.load_adapter(one_subspace(tmp_path / "adapter"))
    for error in (0, 0.01, 0.3):
        made = lt.convert_adapter(adapter, lt.RelativeError(error), format="auto").adapter
        path = tmp_path / f"{error}.safetensors"
        lt.save_adapter(made, path)
        assert native_size(made) == path.stat().st_size


def test_each_layer_keeps_to_the_error(lotr, tmp_path):
    source = stranger(tmp_path / "adapter", 3)
    free, each = (
        of_json(lotr("convert", source, "--rel-error", "0.3", *more, "--force", "--json"))
        for more in ((), ("--each-layer",))
    )
    assert max(group["worst_error"] for group in free["groups"]) > 0.3
    assert max(group["worst_error"] for group in each["groups"]) <= 0.3
    told = of_json(lotr("analyze", source, "--rel-error", "0.3", "--each-layer", "--json"))
    assert told["recommended"]["bytes"] == each["bytes_after"]
    assert lotr("convert", source, "--rank", "2", "--each-layer")[0] == 2


def test_a_bank_is_the_smallest_of_all_ways_and_forms(lotr, tmp_path):
    sources = [*history(tmp_path / "run", 500, 2000), stranger(tmp_path / "other", 1)]
    for error in ("0.3", "0.02"):
        asked = ("--rel-error", error, "--json", "--force", "-o", "b.safetensors")
        record = of_json(lotr("bank", "make", *sources, *asked))
        size = (tmp_path / "b.safetensors").stat().st_size
        chosen = {way["stacking"]: way["bytes"] for way in record["stackings"]}
        assert size == record["bytes_after"] == chosen[record["stacking"]]
        assert size <= record["bytes_before"]
        for more in (
            *(("--stack", way) for way in ("adapters", "layers", "all")),
            *(("--format", form) for form in ("lotr", "lotr-low-rank", "truncated")),
            *(("--dtype", dtype) for dtype in ("float16", "bfloat16", "float32")),
        ):
            other = of_json(lotr("bank", "make", *sources, *more, *asked))
            assert size <= other["bytes_after"] + 64, more


def test_an_analysis_of_several_tells_what_their_bank_takes(lotr, tmp_path):
    sources = history(tmp_path / "run", 500, 1000, 2000)
    for error in ("0.3", "0.02"):
        asked = ("--rel-error", error, "--json")
        told = of_json(lotr("analyze", tmp_path / "run", *asked))
        assert told["sources"] == [str(source) for source in sources]
        if error == "0.3":
            named = of_json(lotr("analyze", *sources, *asked))
            assert told == named | {"seconds": told["seconds"]}
        made = of_json(lotr("bank", "make", *sources, *asked, "--force", "-o", "b.safetensors"))
        size = (tmp_path / "b.safetensors").stat().st_size
        assert told["recommended"]["bytes"] == made["bytes_after"] == size
        assert told["recommended"]["stacking"] == made["stacking"]
        again = of_json(lotr("analyze", "b.safetensors", *asked))
        assert again["params"] <= told["params"]


def test_a_newcomer_says_what_it_shares(lotr, tmp_path):
    first, second, third = history(tmp_path / "run", 500, 1000, 2000)
    lotr(
        "bank",
        "make",
        first,
        second,
        "--stack",
        "adapters",
        "--rel-error",
        "0.05",
        "-o",
        "b.safetensors",
    )
    record = of_json(lotr("bank", "add", "b.safetensors", third, "--json"))
    assert record["shared"][0] > 0.9
    other = stranger(tmp_path / "other", 1)
    _, out, _ = lotr("bank", "add", "b.safetensors", other, "--name", "other")
    assert "other: almost nothing shared with this bank" in " ".join(out.split())
    out_of = tmp_path / "out"
    assert lotr("bank", "export", "b.safetensors", "other", "-o", out_of)[0] == 0
    assert gap(out_of, other) <= 0.051


@pytest.mark.parametrize("size", ["100kB", "185kB", "200kB"])
def test_the_bound_of_a_size_is_below_what_is_reached(demo_adapter, size):
    """Numbers in half precision may lose less by rounding than they could."""
    adapter = lt.load_adapter(demo_adapter)
    ways = [
        lt.convert_adapter(adapter, lt.Budget(bytes=size), format="auto", group_by=by)
        for by in ("kind", "shape", "auto")
    ]
    for made in ways:
        assert made.bound <= made.relative_error * (1 + 1e-9)
    assert ways[-1].relative_error <= min(way.relative_error for way in ways) * (1 + 1e-9)
