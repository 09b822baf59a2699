"""The analysis of real adapters: what it says is what a conversion then gives."""

import json
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lotr_tn as lt
from lotr_tn.adapters.stackings import stackings_of
from lotr_tn.analysis.forms import auto_forms
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.inspection.analyze import analyze_adapters
from lotr_tn.report.analysis import analysis_record
from lotr_tn.testing import laws
from tests.analysis.planted import hosvd_errors
from tests.conversion.test_real_adapters import GOOD, ROOT, name_of

pytestmark = pytest.mark.skipif(ROOT is None, reason="real adapters not found: set LOTR_REAL_DATA")
SINGLE = [format for format in auto_forms() if format != "lora"]
CHECKPOINTS = [f for f in GOOD if f.parent.name == "roberta-pt-18ckpt"]
EPSILONS = (0.3, 0.1, 0.05, 0.01)
OTHERS = [folder for folder in GOOD if folder not in CHECKPOINTS]
ASKED = [*product(OTHERS, EPSILONS), *zip(CHECKPOINTS, EPSILONS, strict=False)]
"""Each adapter with each error; the checkpoints of one run share the errors among them."""

ONE_OF_A_RUN = [*OTHERS, *CHECKPOINTS[:1]]
COVERING = [
    (folder, EPSILONS[(place + turn) % len(EPSILONS)], format)
    for place, folder in enumerate(ONE_OF_A_RUN)
    for turn, format in enumerate(SINGLE)
]
"""Each adapter with each form and with each error, and each form with each error."""


@cache
def adapter_of(folder: Path):
    return lt.load_adapter(folder)


@cache
def analysed(folder: Path, epsilon: float):
    return analyze_adapters([adapter_of(folder)], lt.RelativeError(epsilon))


@pytest.mark.parametrize(("folder", "epsilon"), ASKED, ids=name_of)
def test_what_is_recommended_is_what_a_conversion_gives(folder, epsilon):
    adapter, rule = adapter_of(folder), lt.RelativeError(epsilon)
    analysis = analysed(folder, epsilon)
    assert analysis.met
    conversion = lt.convert_adapter(adapter, rule, format="auto")
    assert analysis.dtype in (conversion.adapter.dtype, "float32")
    assert len(conversion.groups) == len(analysis.groups)
    for group, predicted in zip(conversion.groups, analysis.groups, strict=True):
        candidate = predicted.choice.candidate
        assert group.name == predicted.stacked.name
        assert group.format == candidate.format
        assert group.parameters_after == candidate.parameters
        assert group.certificate.relative_error <= candidate.relative_error + 1e-9
        assert group.certificate.relative_error <= epsilon
        assert group.parameters_after <= group.parameters_before
    assert conversion.total("parameters_after") <= adapter.parameters
    assert conversion.relative_error <= analysis.relative_error + 1e-9


@pytest.mark.parametrize(("folder", "epsilon", "format"), COVERING, ids=name_of)
def test_no_single_format_stores_less(folder, epsilon, format):
    adapter, rule = adapter_of(folder), lt.RelativeError(epsilon)
    analysis = analysed(folder, epsilon)
    other = lt.convert_adapter(adapter, rule, format=format)
    assert other.met
    for group, predicted in zip(other.groups, analysis.groups, strict=True):
        assert group.name == predicted.stacked.name
        assert predicted.choice.candidate.parameters <= group.parameters_after
        listed = next(c for c in predicted.choice.all if c.format == format)
        assert group.parameters_after <= listed.parameters
        assert group.parameters_after == listed.parameters or format == "lotr"


@pytest.mark.parametrize("rule", [lt.TotalError(0.1), lt.Budget(150_000), lt.Budget(bytes="700kB")])
def test_other_questions_are_answered_as_a_conversion_does(data, rule):
    adapter = adapter_of(data / "gpt2-cls-deepbio")
    analysis = analyze_adapters([adapter], rule)
    conversion = lt.convert_adapter(adapter, rule, format="auto")
    assert conversion.relative_error == pytest.approx(analysis.relative_error, abs=1e-9)
    for group, predicted in zip(conversion.groups, analysis.groups, strict=True):
        assert group.format == predicted.choice.candidate.format
        assert group.parameters_after == predicted.choice.candidate.parameters
    assert analysis.met
    sizes = [sum(candidate.parameters for candidate in point) for point in analysis.path]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("name", "kind", "layers"),
    [("gpt2-cls-deepbio", "attn.c_proj", [0, 3, 7, 11]), ("distilgpt2-niket", "c_attn", [1, 2, 5])],
)
def test_every_entry_of_the_surface(data, name, kind, layers):
    """A block of real updates; layers that grow weaker bring errors down to 1e-10 of the norm."""
    stack = lt.group_modules(adapter_of(data / name))[kind].stack
    part = lt.astype(lt.take_layers(stack, layers), "float64")
    weights = np.repeat(10.0 ** (-4.5 * np.arange(len(layers)) / (len(layers) - 2)), part.ranks)
    block = lt.LoRAStack(part.up[:61] * weights, part.down[:, :53], part.ranks)
    surface = lt.analysis.error_surface(block)
    dense = laws.dense_updates(block)
    most = surface.errors.shape[0] - 1, surface.errors.shape[1] - 1
    assert most == (sum(part.ranks),) * 2
    known = np.sqrt(hosvd_errors(dense, most).sum(axis=2)) / np.linalg.norm(dense)
    assert np.allclose(surface.errors, known, rtol=1e-10, atol=1e-14)
    assert ((known > 1e-10) & (known < 1e-6)).any()
    assert np.allclose(surface.errors[known > 1e-10], known[known > 1e-10], rtol=1e-6, atol=0)


def test_the_choices_of_options_cover_every_two_of_them():
    assert len(CHECKPOINTS) == len(EPSILONS)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        found = {(choice[one], choice[other]) for choice in COVERING}
        options = (ONE_OF_A_RUN, EPSILONS, SINGLE)
        assert found == set(product(options[one], options[other]))


@pytest.mark.parametrize(("epsilon", "kind"), [(0.05, "query"), (0.01, "value")])
def test_checkpoints_of_one_run_belong_together_module_by_module(epsilon, kind):
    adapters = [adapter_of(folder) for folder in CHECKPOINTS]
    assert len(adapters) == 4
    analysis = analyze_adapters(adapters, lt.RelativeError(epsilon), groups=[kind])
    costs = {cost.stacking: cost for cost in analysis.stackings}
    assert set(costs) == {"layers", "adapters", "adapters-layers"}
    assert [cost.stacking for cost in analysis.stackings if cost.chosen] == ["adapters"]
    best = costs["adapters"]
    assert best.stacks == len(analysis.groups) == 12
    for cost in costs.values():
        assert cost is best or best.bytes < cost.bytes
    apart = costs["layers"].parameters
    made = lost = energy = 0.0
    for group in analysis.groups:
        stack, choice = group.stacked.group.stack, group.choice
        assert group.shape == (4, 768, 768)
        assert group.stacked.labels == tuple(folder.name for folder in CHECKPOINTS)
        assert lt.parameter_count(choice.stack) == choice.candidate.parameters
        for layer in range(4):
            before, after = (
                laws.dense_updates(lt.astype(lt.take_layers(x, [layer]), "float64"))
                for x in (stack, choice.stack)
            )
            lost += float(np.linalg.norm(before - after)) ** 2
            energy += float(np.linalg.norm(before)) ** 2
        made += lt.parameter_count(choice.stack)
        assert choice.candidate.relative_error <= epsilon
    measured = (lost / energy) ** 0.5
    assert measured == pytest.approx(analysis.relative_error, rel=1e-4)
    assert measured <= epsilon
    assert made <= best.parameters
    assert made < (0.7 if epsilon == 0.05 else 0.9) * apart
    record = analysis_record(analysis)
    assert record["verdict"][-1].startswith("Best stacked: each module over the adapters, 0.")


def test_adapters_that_say_where_they_come_from():
    one, two = (adapter_of(folder) for folder in CHECKPOINTS[:2])
    with pytest.raises(CheckpointError, match=r"is named twice; name each adapter once"):
        analyze_adapters([one, one])
    with pytest.raises(CheckpointError, match="needs at least one adapter"):
        analyze_adapters([])
    with pytest.raises(OptionError, match="there is no group 'key'; the groups are query, value"):
        analyze_adapters([one, two], groups=["key"])
    part = analyze_adapters([one, two], groups=["value"])
    assert {cost.stacks for cost in part.stackings} == {12, 2, 1}
    with pytest.raises(OptionError, match="ranks are what it answers"):
        analyze_adapters([one], lt.FixedRank(3))


def sam_folder(name: str, folder: Path) -> Path:
    """SAM_LoRA's own keys, rewritten by hand as a PEFT folder."""
    assert ROOT is not None
    tensors, renamed = load_file(ROOT / "sam-vitb-lora" / f"{name}.safetensors"), {}
    for number in range(24):
        path = f"base_model.model.blocks.{number // 2}.attn.{'qv'[number % 2]}"
        a, b = (tensors[f"w_{side}_{number:03d}"] for side in "ab")
        renamed |= {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
        rank = a.shape[0]
    folder.mkdir()
    save_file(renamed, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["q", "v"],
        "base_model_name_or_path": "facebook/sam-vit-base",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def sam_adapter(rank: str, tmp_path: Path):
    return lt.load_adapter(sam_folder(f"lw_lora_{rank}", tmp_path / rank))


def test_runs_of_mixed_ranks_together(tmp_path):
    names = ["rank2_head", "rank4_head", "rank4_hist1", "rank6_head"]
    adapters = [sam_adapter(name, tmp_path) for name in names]
    rule = lt.RelativeError(0.1)
    analysis = analyze_adapters(adapters, rule, groups=["v"])
    assert analysis.base_model == "facebook/sam-vit-base"
    costs = {cost.stacking: cost for cost in analysis.stackings}
    assert {name: cost.stacks for name, cost in costs.items()} == {
        "layers": 4,
        "adapters": 12,
        "adapters-layers": 1,
    }
    assert analysis.parameters == 12 * 2 * 768 * (2 + 4 + 4 + 6)
    ranks = [[t.rank for t in group.stacked.group.targets] for group in analysis.groups]
    assert ranks == [[2] * 12 + [4] * 24 + [6] * 12]
    assert costs["adapters-layers"].chosen
    assert all(costs["adapters-layers"].bytes <= cost.bytes for cost in costs.values())
    named = dict(zip(names, adapters, strict=True))
    over = {way.name: way.groups for way in stackings_of(named, "kind")}["adapters"]
    assert {tuple(target.rank for target in stacked.group.targets) for stacked in over} == {
        (2, 4, 4, 6)
    }
    assert {stacked.labels for stacked in over} == {tuple(names)}
    for group in analysis.groups:
        assert group.choice.candidate.relative_error <= 0.1
        assert group.choice.candidate.parameters <= group.subject.stored
        found = lt.compress(group.stacked.group.stack, rule)
        assert lt.parameter_count(found) == group.choice.candidate.parameters


def test_an_untrained_adapter_is_all_zero(tmp_path):
    folder = sam_folder("zeroB_rank4_untrained", tmp_path / "zero")
    adapter = lt.load_adapter(folder)
    analysis = analyze_adapters([adapter])
    record = analysis_record(analysis)
    assert record["verdict"] == ["All updates are zero: there is nothing to keep."]
    file = record["recommended"].pop("bytes")
    assert record["recommended"] == {"params": 0, "update_bytes": 0, "relative_error": 0.0}
    json.dumps(record, allow_nan=False)
    for rule in (lt.RelativeError(0.05), lt.TotalError(0.05), lt.Budget(1000)):
        conversion = lt.convert_adapter(adapter, rule, format="auto")
        assert conversion.total("parameters_after") == 0
        path = tmp_path / "zero.lotr.safetensors"
        lt.save_adapter(conversion.adapter, path, force=True)
        assert path.stat().st_size == file or not isinstance(rule, lt.RelativeError)
        export = lt.to_lora(lt.load_adapter(path)).adapter
        lt.save_adapter(export, tmp_path / "again", force=True)
        again = lt.load_adapter(tmp_path / "again")
        assert {m.target.name for m in again.modules} == {m.target.name for m in adapter.modules}
        for module in again.modules:
            up, down = module.factors()
            assert not (up @ down).any()
        compared = lt.compare_adapters(adapter, again)
        assert compared.relative_error == 0
        assert len(compared.modules) == 24


def test_random_factors_do_not_compress(data):
    (folder,) = (f for f in GOOD if f.parent.name == "opt-regression-random")
    analysis = analyze_adapters([adapter_of(folder)], lt.RelativeError(0.05), dtype="float32")
    assert {group.choice.candidate.format for group in analysis.groups} == {"lora"}
    record = analysis_record(analysis)
    assert record["verdict"][0].startswith("Nothing compresses: at most 0.05 relative error")
    assert "do not share a subspace" in record["verdict"][1]
    assert record["recommended"]["params"] == record["params"]


def test_bits_of_several_for_a_size_are_refused(demo_adapter):
    adapters = [lt.load_adapter(demo_adapter)] * 2
    with pytest.raises(OptionError, match="told for an error of each"):
        analyze_adapters(adapters, lt.Budget(bytes=50_000), coding="auto")
