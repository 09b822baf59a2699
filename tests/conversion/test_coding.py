"""Groups in bits: smaller files within what was asked, measured on the numbers that come back."""

import json
from dataclasses import replace

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.adapters.adapter import LoRAGroup
from lotr_tn.adapters.asked import Asked, Where
from lotr_tn.conversion.coding import coded_at
from lotr_tn.conversion.convert import Converting
from lotr_tn.decompose.coded import codable
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.files.container import read_container, write_container
from lotr_tn.files.dialects.native import native_size
from lotr_tn.files.packed_tensors import PackedTensors
from lotr_tn.files.packing import unpacked
from tests.banks import fleets

SHAPES = {"q": ((120, 96), fleets.Layout()), "v": ((80, 96), fleets.Layout())}
MODULES = fleets.paths(SHAPES, 6)
BIAS, NORM = "base_model.model.score.bias", "base_model.model.norm.weight"


@pytest.fixture(scope="module")
def lora():
    extras = {fleets.HEAD: fleets.head(0), BIAS: fleets.head(0), NORM: fleets.head(1)}
    return fleets.adapter(
        0, planted=fleets.spaces(0, MODULES, 8), modules=MODULES, extras=extras, rank=8
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "small.lotr.safetensors"


def both(lora, rule, path, **options):
    """A conversion in numbers, and one in bits that is written and read again."""
    plain = lt.convert_adapter(lora, rule, format="auto", **options)
    coded = lt.convert_adapter(lora, rule, format="auto", coding="auto", **options)
    lt.save_adapter(plain.adapter, path, force=True)
    size = path.stat().st_size
    lt.save_adapter(coded.adapter, path, force=True)
    return plain, size, coded, lt.load_adapter(path)


def test_other_tensors_are_packed_without_a_loss(lora, path):
    *_, found = both(lora, lt.RelativeError(0.1), path)
    assert isinstance(found.extras, PackedTensors)
    for key, tensor in lora.extras.items():
        assert found.extras[key].data.tobytes() == tensor.data.tobytes()
        assert (found.extras[key].code, found.extras[key].shape) == (tensor.code, tensor.shape)
    assert found.extras.stream.nbytes < sum(tensor.nbytes for tensor in lora.extras.values())
    plain = lt.convert_adapter(lt.to_lora(found).adapter, 4)
    assert not isinstance(plain.adapter.extras, PackedTensors)


@pytest.mark.parametrize("rule", [lt.RelativeError(0.05), lt.Energy(0.9), lt.TotalError(0.2)])
def test_a_smaller_file_within_the_error(lora, rule, path):
    _, size, coded, found = both(lora, rule, path)
    assert set(found.coded) == set(found.groups)
    assert path.stat().st_size < 0.7 * size
    assert found.nbytes == coded.adapter.nbytes
    error = fleets.error(fleets.dense(found), fleets.dense(lora))
    assert error == pytest.approx(coded.relative_error, rel=1e-6)
    errors = [g.certificate.relative_error for g in coded.groups] + [error]
    worst = error if isinstance(rule, lt.TotalError) else max(errors)
    assert 0.9 * rule.epsilon < worst <= rule.epsilon
    assert found.extras.keys() == lora.extras.keys()


def test_every_layer_within_the_error(lora):
    asked = Asked(lt.RelativeError(0.1), "auto", each_layer=True, coding="auto")
    made = Converting.of(lora, asked, Where()).run()
    assert made.adapter.coded
    assert max(group.certificate.worst_error for group in made.groups) <= 0.1


@pytest.mark.parametrize("size", [14_000, 18_000, 22_000])
def test_a_budget_is_filled(lora, size, path):
    head = sum(tensor.nbytes for tensor in lora.extras.values())
    plain, _, coded, _ = both(lora, lt.Budget(bytes=size + head), path)
    assert 0.99 * (size + head) <= path.stat().st_size <= size + head
    assert coded.relative_error < 0.5 * plain.relative_error


def test_no_other_step_within_a_budget_loses_less(lora):
    budget = 18_000
    made = lt.convert_adapter(lora, lt.Budget(bytes=budget), format="auto", coding="auto")
    groups = [LoRAGroup(name, group.modules) for name, group in lt.group_modules(lora).items()]
    codables = [codable(group.stack) for group in groups]
    largest = max(one.largest for one in codables)
    squares = [np.inf]
    for step in largest / np.geomspace(4, 400, 150):
        done = [coded_at(*pair, step) for pair in zip(groups, codables, strict=True)]
        file = replace(made.adapter, groups={group.name: group for group in done})
        if native_size(file) <= budget:
            squares.append(sum(one.lost(step).sum() for one in codables))
    energy = sum(one.energies.sum() for one in codables)
    assert made.relative_error <= 1.02 * (min(squares) / energy) ** 0.5


def test_a_budget_too_small_for_numbers(lora, path):
    budget = lt.Budget(bytes=3_000 + sum(tensor.nbytes for tensor in lora.extras.values()))
    with pytest.raises(OptionError, match="the budget is"):
        lt.convert_adapter(lora, budget, format="auto")
    made = lt.convert_adapter(lora, budget, format="auto", coding="auto")
    lt.save_adapter(made.adapter, path)
    assert path.stat().st_size <= budget.size
    assert made.relative_error < 1


@pytest.mark.parametrize("epsilon", [0, 1e-6])
def test_errors_that_no_step_is_fine_enough_for_are_met_in_numbers(lora, epsilon):
    made = lt.convert_adapter(lora, lt.RelativeError(epsilon), format="auto", coding="auto")
    assert made.adapter.coded == ()
    assert made.relative_error <= epsilon


def test_groups_that_are_kept_or_zero_hold_numbers(lora, path):
    made = lt.convert_adapter(lora, lt.TotalError(0.1), format="auto", coding="auto", keep=r"\.q$")
    lt.save_adapter(made.adapter, path)
    assert fleets.error(fleets.dense(lt.load_adapter(path)), fleets.dense(lora)) <= 0.1
    zero = fleets.without_update(lora)
    made = lt.convert_adapter(zero, lt.RelativeError(0.1), format="auto", coding="auto")
    lt.save_adapter(made.adapter, path, force=True)
    assert not any(x.any() for x in fleets.dense(lt.load_adapter(path)).values())


def test_what_is_read_is_written_again_bit_for_bit(lora, path, tmp_path):
    *_, found = both(lora, lt.RelativeError(0.1), path)
    again = tmp_path / "again.lotr.safetensors"
    lt.save_adapter(found, again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coding": "zip"}, "coding must be auto or none; found 'zip'"),
        ({"format": "lotr"}, "a lotr has none; leave the format at auto, or ask for truncated"),
        ({"dtype": "float16"}, "leave out the dtype float16"),
        ({"limits": lt.RankLimits(most=3)}, "leave out the limits on the ranks"),
        ({"ranks": 3}, "ask for an error or for bytes"),
        ({"ranks": lt.Budget(params=3000)}, "ask for an error or for bytes"),
    ],
)
def test_what_bits_know_nothing_of_is_refused(lora, options, words):
    asked = {"ranks": lt.RelativeError(0.1), "format": "auto", "coding": "auto"} | options
    with pytest.raises(OptionError, match=words):
        lt.convert_adapter(lora, **asked)


def changed(path, change):
    """The file with another header, and digests that fit it."""
    container = read_container(path, "lotr")
    header = json.loads(unpacked(container.text))
    entries = {name: container.entry(name) for name in container.tensors}
    change(header, entries)
    made = path.with_name("changed.lotr.safetensors")
    write_container(made, entries, json.dumps(header), "lotr")
    return made


def _another_coding(header, entries):
    header["groups"]["q"]["coding"] = 2


def _another_form(header, entries):
    header["groups"]["q"]["format"] = "lotr"


def _a_larger_rank(header, entries):
    header["groups"]["q"]["ranks"][0] += 1


def _no_end_of_layers(header, entries):
    header["groups"]["q"]["shape"] = [6, 10**9, 10**9]


def _no_bytes(header, entries):
    del entries["coded"]


def _fewer_bytes(header, entries):
    header["groups"]["v"]["bytes"] -= 1


def _more_bytes(header, entries):
    header["groups"]["v"]["bytes"] += 1


def _negative_bytes(header, entries):
    header["groups"]["v"]["bytes"] = -3


def _no_others(header, entries):
    del entries["others"]


def _another_packing(header, entries):
    header["others"]["packing"] = 2


def _a_dtype_of_nothing(header, entries):
    header["others"]["tensors"][0][1] = "F7"


def _twice(header, entries):
    header["others"]["tensors"] *= 2


def _a_terabyte(header, entries):
    header["others"]["tensors"][-1][2] = [1 << 40]


def _a_copy_of_nothing(header, entries):
    header["others"]["tensors"][0].append("x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_another_coding, "coded in a way that this version does not know; upgrade"),
        (_another_form, "is coded, which a lotr cannot be"),
        (_a_larger_rank, "the stream of coded numbers is damaged"),
        (_no_end_of_layers, "the stream of coded numbers is damaged"),
        (_no_bytes, "has no bytes coded"),
        (_fewer_bytes, "damaged|there are bits of no group"),
        (_more_bytes, "v has no bits"),
        (_negative_bytes, "the bytes of v is -3, not a whole number"),
        (_no_others, "there are no bytes others"),
        (_another_packing, "packed in an unknown way"),
        (_a_dtype_of_nothing, "has the unknown dtype 'F7'"),
        (_twice, "is there twice"),
        (_a_terabyte, "the stream of other tensors is too short"),
        (_a_copy_of_nothing, "is no copy of 'x'"),
    ],
)
def test_headers_that_make_no_sense_are_refused(lora, path, change, words):
    both(lora, lt.RelativeError(0.1), path)
    with pytest.raises(CheckpointError, match=words):
        lt.load_adapter(changed(path, change))


def test_it_is_exported_compared_and_merged(lora, path, tmp_path):
    *_, found = both(lora, lt.RelativeError(0.1), path)
    assert lt.compare_adapters(lora, found).relative_error <= 0.1
    lt.save_adapter(lt.to_lora(found).adapter, tmp_path / "lora")
    back = lt.load_adapter(tmp_path / "lora")
    assert fleets.error(fleets.dense(back), fleets.dense(found)) < 1e-6
