"""What an analysis says in words, for adapters whose structure is known."""

import json
import math

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.adapters.adapter import Layout, LoRAAdapter, LoRAModule, Target
from lotr_tn.analysis.forms import FORMS, auto_forms
from lotr_tn.inspection.analyze import analyze_adapters
from lotr_tn.report.advice import group_advice, question_text, verdict_lines
from lotr_tn.report.analysis import analysis_record
from lotr_tn.report.numbers import byte_size
from tests.analysis.planted import clustered, lora, one_side, shared

UNSHARED = {"shape": (6, 211, 173), "ranks": (4, 3, 4, 2, 4, 3)}


def adapter_of(**stacks):
    """An adapter in memory with one kind of module for each stack, in float32."""
    modules = []
    for kind, stack in stacks.items():
        for layer, part in enumerate(stack.slices):
            target = Target(f"model.layers.{layer}.{kind}", Layout(), part.stop - part.start)
            up, down = (x.astype(np.float32) for x in (stack.up[:, part], stack.down[part]))
            modules.append(LoRAModule(target, np.ascontiguousarray(up), down))
    return LoRAAdapter(tuple(modules), {}, {"base_model_name_or_path": "a/base"}, "{}")


def zeros(layers=3, m=19, n=13):
    return lt.LoRAStack(np.zeros((m, 2 * layers)), np.ones((2 * layers, n)), (2,) * layers)


def record_of(question=None, *, surfaces=False, dtype="auto", **stacks):
    analysis = analyze_adapters([adapter_of(**stacks)], question, dtype=dtype)
    return analysis_record(analysis, surfaces=surfaces)


def group_of(record, name):
    return next(group for group in record["groups"] if group["name"] == name)


def test_layers_that_share():
    record = record_of(q_proj=shared(0, noise=0.01))
    assert record["groups"][0]["recommended"] == "lotr"
    (sentence,) = record["verdict"]
    before, after = 9 * 3 * (31 + 23), record["recommended"]["params"]
    assert after <= 31 * 4 + 23 * 3 + 9 * 12
    size, bytes = record["recommended"]["update_bytes"], 4 * before
    assert size == after * (2 if record["dtype"].endswith("16") else 4)
    start = f"Smallest: LoTR takes {size / bytes:.2f}x the bytes "
    shown = f"{byte_size(bytes)} -> {byte_size(size)}, in a file of"
    assert sentence.startswith(f"{start}({shown} {byte_size(record['recommended']['bytes'])}) at ")
    assert sentence.endswith("% error, measured.")
    advice = record["groups"][0]["advice"]
    assert advice.startswith("Sharing U and V across these 9 layers costs 0.1")
    assert "these layers share a subspace (outputs overlap" in advice


def test_layers_that_do_not_share():
    record = record_of(q_proj=lora(0, **UNSHARED, decay=0.15))
    assert record["groups"][0]["recommended"] == "truncated"
    first, second = record["verdict"]
    assert first.startswith("Smallest: a LoRA with each layer's rank cut takes 0.")
    lotr = next(c for c in record["groups"][0]["candidates"] if c["format"] == "lotr")
    ratio = lotr["bytes"] / record["bytes"]
    words = f"LoTR for all groups would take {ratio:.2f}x: these layers do not share a subspace."
    assert second == words
    assert "these layers do not share a subspace (outputs overlap" in record["groups"][0]["advice"]


@pytest.mark.parametrize("side", ["out", "in"])
def test_layers_that_share_one_side(side):
    record = record_of(q_proj=one_side(0, side))
    assert record["groups"][0]["recommended"] == f"shared-{side}"
    letter = {"out": "U", "in": "V"}[side]
    assert record["verdict"][0].startswith(f"Smallest: one shared {letter} takes 0.")


def test_zero():
    record = record_of(q_proj=zeros(), v_proj=zeros(2, 11, 7))
    assert record["verdict"] == ["All updates are zero: there is nothing to keep."]
    assert [g["advice"] for g in record["groups"]] == record["verdict"] * 2
    header = record["recommended"].pop("bytes")
    assert record["recommended"] == {"params": 0, "update_bytes": 0, "relative_error": 0.0}
    assert 0 < header < record["bytes"] + 2000
    one = record_of(q_proj=zeros(), v_proj=shared(1))
    assert one["verdict"][0].startswith("Smallest: LoTR takes")
    assert group_of(one, "q_proj")["advice"] == record["verdict"][0]
    assert group_of(one, "q_proj")["front"] == []


def test_nothing_compresses():
    record = record_of(dtype="float32", q_proj=lora(1, (5, 97, 83), (3,) * 5, decay=1.0))
    assert record["groups"][0]["recommended"] == "lora"
    assert record["verdict"][0] == (
        "Nothing compresses: at most 0.05 relative error in each group needs all 2,700 "
        "parameters of the LoRA."
    )
    assert record["recommended"]["params"] == record["params"] == 2700
    room = record_of(lt.Budget(10_000), q_proj=lora(1, (5, 97, 83), (3,) * 5, decay=1.0))
    assert "The LoRA as it is, of 2,700 parameters, has room" in room["verdict"][0]


def test_hardly():
    stack = lora(1, (9, 97, 83), (4,) * 9, decay=1.0)
    weak = stack.up.copy()
    weak[:, 7] *= 0.01
    record = record_of(dtype="float32", q_proj=lt.LoRAStack(weak, stack.down, stack.ranks))
    assert record["recommended"]["params"] == 35 * 180
    assert record["verdict"][0].startswith(
        "It hardly compresses: the smallest form, a LoRA with each layer's rank cut, takes 0.97x"
    )


def test_groups_of_different_forms():
    record = record_of(
        dtype="float32",
        q_proj=shared(0),
        v_proj=lora(0, **UNSHARED, decay=0.15),
        k_proj=one_side(3, "out"),
        o_proj=lora(1, (5, 97, 83), (3,) * 5, decay=1.0),
        x_proj=one_side(4, "out"),
    )
    words = (
        "the LoRA as it is for 1 group, a LoRA with each layer's rank cut for 1 group, "
        "LoTR for 1 group and one shared U for 2 groups"
    )
    assert record["verdict"][0].startswith(f"Smallest: {words} takes 0.")
    total = sum(
        c["bytes"] for g in record["groups"] for c in g["candidates"] if c["format"] == "lotr"
    )
    ratio = f"LoTR for all groups would take {total / record['bytes']:.2f}x"
    assert record["verdict"][1].startswith(ratio)


def test_another_way_of_stacking_is_named():
    stack = shared(0, (12, 37, 29), (3, 4), 2)
    halves = [lt.take_layers(stack, list(range(start, start + 6))) for start in (0, 6)]
    record = record_of(q_proj=halves[0], v_proj=halves[1])
    other = next(s for s in record["stackings"] if not s["chosen"])
    assert other["name"] == "shape"
    assert other["params"] < record["recommended"]["params"]
    assert record["verdict"][-1] == (
        f"Stacked as all modules of a shape it would take {byte_size(other['bytes'])}: "
        "--group-by shape."
    )


def test_sets_of_layers_are_named():
    record = record_of(lt.RelativeError(0.001), q_proj=clustered(3))
    (group,) = record["groups"]
    assert sorted(layer for c in group["clusters"] for layer in c["layers"]) == list(range(8))
    least = min(candidate["params"] for candidate in group["candidates"])
    assert group["clustered_params"] < least
    ratio = group["clustered_params"] / group["params"]
    assert (
        f"apart, in 2 sets of layers, they would take {ratio:.2f}x the parameters"
        in group["advice"]
    )


def test_one_layer():
    record = record_of(q_proj=lora(2, (1, 19, 17), (4,), decay=0.2))
    assert "across one layer" in record["groups"][0]["advice"]
    assert "subspace" not in record["groups"][0]["advice"]
    assert record["groups"][0]["overlap"]["left"] == [[1.0]]


@pytest.mark.parametrize(
    ("question", "kind", "value", "words"),
    [
        (lt.RelativeError(0.1), "rel_error", 0.1, "at most 0.1 relative error in each group"),
        (lt.Energy(0.99), "rel_error", 0.1, "at most 0.1 relative error in each group"),
        (lt.TotalError(0.25), "total_error", 0.25, "at most 0.25 relative error over all groups"),
        (lt.Budget(700), "max_params", 700, "at most 700 parameters"),
        (lt.Budget(bytes="9kB"), "max_bytes", 9000, "at most 9 kB in the file"),
    ],
    ids=str,
)
def test_questions(question, kind, value, words):
    record = record_of(question, q_proj=shared(0), v_proj=lora(0, (3, 29, 17), (2, 3, 2)))
    assert record["question"] == {"kind": kind, "value": pytest.approx(value)}
    assert question_text(record["question"]) == words
    start = "Best of this size: " if kind.startswith("max") else "Smallest: "
    assert record["verdict"][0].startswith(start)
    assert record["met"]


def test_what_cannot_be_met_is_said():
    record = record_of(dtype="float32", q_proj=shared(0)) | {"met": False}
    assert verdict_lines(record)[-1] == (
        "What was asked, at most 0.05 relative error in each group, cannot be met in float32."
    )


def test_advice_leaves_out_formats_that_are_no_candidates():
    group = dict(record_of(q_proj=shared(0))["groups"][0])
    group["candidates"] = [c for c in group["candidates"] if c["format"] != "lotr"]
    assert not group_advice(group).startswith("Sharing")
    assert group_advice(group)[0].isupper()


def finite(value):
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize("surfaces", [False, True])
def test_every_number_is_what_it_says(surfaces):
    """With a zero layer, rank-deficient layers, and layers that another holds."""
    stack = shared(4, rank=4, noise=0.03)
    up = stack.up.copy()
    up[:, 4:8] = 0
    up[:, 9] = up[:, 8]
    odd = lt.LoRAStack(up, stack.down, stack.ranks)
    record = record_of(lt.RelativeError(0.1), surfaces=surfaces, q_proj=odd, v_proj=lora(0))
    json.dumps(record, allow_nan=False)
    assert finite(record)
    dense = {"q_proj": odd, "v_proj": lora(0)}
    for name, given in dense.items():
        group, (layers, m, n) = group_of(record, name), given.shape
        assert group["shape"] == [layers, m, n]
        assert group["layer_ranks"] == list(given.ranks)
        assert group["params"] == sum(given.ranks) * (m + n)
        assert group["bytes"] == 4 * group["params"]
        assert group["norm"] == pytest.approx(float(lt.norm(given)), rel=1e-6)
        assert len(group["labels"]) == len(group["modules"]) == layers
        labels = [FORMS[name].label for name in auto_forms()]
        assert [c["label"] for c in group["candidates"]] == labels
        for candidate in group["candidates"]:
            assert candidate["ratio"] == pytest.approx(candidate["params"] / group["params"])
            assert candidate["relative_error"] <= 0.1
        best = next(c for c in group["candidates"] if c["format"] == group["recommended"])
        sizes = [c["bytes"] + FORMS[c["format"]].header(layers) for c in group["candidates"]]
        assert best["bytes"] + FORMS[best["format"]].header(layers) == min(sizes)
        params = [point["params"] for point in group["front"]]
        assert params == sorted(set(params))
        assert params[-1] <= 2.5 * group["params"]
        for point in group["front"]:
            assert point["params"] == m * point["r1"] + n * point["r2"] + (
                layers * point["r1"] * point["r2"]
            )
            made = lt.hosvd(lt.astype(given, "float64"), (point["r1"], point["r2"]))
            error = made.certificate.relative_error
            assert point["relative_error"] == pytest.approx(error, rel=1e-4, abs=1e-6)
            assert point["lower_bound"] <= point["relative_error"]
            assert len(point["layer_errors"]) == layers
        for curve in group["curves"]:
            assert len(curve["params"]) == len(curve["relative_error"]) <= 200
            for bound, size in group["params_within"][curve["format"]].items():
                pairs = zip(curve["params"], curve["relative_error"], strict=True)
                assert size == min(p for p, e in pairs if e <= float(bound))
        assert ("surface" in group) == surfaces
        if surfaces:
            surface = group["surface"]
            assert surface["r1"][0] == surface["r2"][0] == 0
            assert np.shape(surface["errors"]) == (len(surface["r1"]), len(surface["r2"]))
            assert np.shape(surface["lower"]) == np.shape(surface["errors"])
    assert group_of(record, "q_proj")["front"][-1]["layer_errors"][1] is None
    sizes = [budget["params"] for budget in record["budgets"]]
    assert sizes == sorted(set(sizes))
    for budget in record["budgets"]:
        assert budget["params"] == sum(group["params"] for group in budget["groups"])
        lost = sum(
            (part["relative_error"] * group["norm"]) ** 2
            for part, group in zip(budget["groups"], record["groups"], strict=True)
        )
        whole = sum(group["norm"] ** 2 for group in record["groups"])
        assert budget["relative_error"] == pytest.approx((lost / whole) ** 0.5, abs=1e-12)
