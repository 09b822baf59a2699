"""Many adapters into one bank: every option keeps the error, by a plain loop over dense layers."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open

import lotr_tn as lt
from lotr_tn.adapters import Layout
from lotr_tn.banks.making import choosing
from lotr_tn.files.header import SCHEMA
from lotr_tn.linalg.ranks import ITEM_SIZES
from tests.banks import fleets

FORMATS = ("lotr", "lotr-low-rank", "shared-in", "shared-out", "truncated", "lora")
STACKS = ("auto", "adapters", "layers", "all")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.lotr.safetensors"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Adapters that differ in all that they may differ in, and a bank of them at 5%."""
    fleet, path = fleets.mixed(), tmp_path_factory.mktemp("mixed") / "bank.lotr.safetensors"
    return fleet, lt.banks.make_bank(fleet, path, lt.RelativeError(0.05))


def test_ways_of_stacking_are_compared(mixed):
    fleet, made = mixed
    assert made.met
    fleets.require_true(made.bank, fleet, 0.05)
    assert made.errors == {n: made.bank.figures(n).relative_error for n in fleet}


@pytest.mark.parametrize(
    ("stack", "epsilon"),
    [("auto", 0.3), ("auto", 1e-5), ("adapters", 0.3), ("layers", 1e-5), ("all", 0.3)],
)
def test_every_way_of_stacking_keeps_every_adapter_to_the_error(stack, epsilon, path):
    fleet = fleets.mixed()
    made = lt.banks.make_bank(fleet, path, lt.RelativeError(epsilon), stack=stack)
    assert made.met
    fleets.require_true(made.bank, fleet, epsilon)
    assert made.errors == {n: made.bank.figures(n).relative_error for n in fleet}
    if stack != "auto":
        assert made.bank.stacking == stack
        assert [way.stacking for way in made.stackings] == [stack]


@pytest.mark.parametrize(
    ("format", "epsilon"), [*zip(FORMATS, itertools.cycle([0.3, 0.05]), strict=False)]
)
def test_every_format_keeps_every_adapter_to_the_error(format, epsilon, path):
    fleet = fleets.mixed(1)
    made = lt.banks.make_bank(fleet, path, lt.RelativeError(epsilon), format=format)
    assert made.met
    fleets.require_true(made.bank, fleet, epsilon)
    if format == "lora":
        assert set(made.errors.values()) == {0.0}
    assert fleets.formats_of(made.bank) == {format}


@pytest.mark.parametrize("method", ["hooi", "st-hosvd", "hosvd"])
def test_every_method_keeps_every_adapter_to_the_error(method, path):
    fleet = fleets.fleet(5, ranks=(2, 4))
    made = lt.banks.make_bank(fleet, path, lt.RelativeError(0.1), format="lotr", method=method)
    assert made.met
    fleets.require_true(made.bank, fleet, 0.1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_storage_dtype_keeps_the_error_and_measures_its_rounding(dtype, path):
    fleet = fleets.fleet(5, size=1e-3)
    made = lt.banks.make_bank(fleet, path, lt.RelativeError(0.05), format="lotr", dtype=dtype)
    assert made.met
    assert made.bank.dtype == dtype
    fleets.require_true(made.bank, fleet, 0.05)


def test_float16_without_room_becomes_float32(path):
    fleet = fleets.fleet(4, size=1e9)
    made = lt.banks.make_bank(fleet, path, lt.RelativeError(0.05), dtype="float16")
    assert made.bank.dtype == "float32"
    fleets.require_true(made.bank, fleet, 0.05)


def test_narrow_adapters_stay_narrow_where_their_rounding_is_invisible(path):
    fleet = fleets.fleet(6, dtype="bfloat16")
    made = lt.banks.make_bank(fleet, path, lt.RelativeError(0.5))
    assert ITEM_SIZES[made.bank.dtype] == 2
    exact = lt.banks.make_bank(fleet, path, lt.RelativeError(1e-4), format="lotr", force=True)
    assert exact.bank.dtype == "float32"
    fleets.require_true(exact.bank, fleet, 1e-4)


def test_float16_and_bfloat16_are_kept_together_without_a_change(path):
    fleet = {
        "half": fleets.adapter(0, dtype="float16"),
        "brain": fleets.adapter(1, dtype="bfloat16"),
    }
    made = lt.banks.make_bank(fleet, path, lt.RelativeError(1e-6), format="lora")
    for name, one in fleet.items():
        found, wanted = fleets.dense(made.bank[name]), fleets.dense(one)
        assert all(np.array_equal(found[key], wanted[key]) for key in wanted)


def test_a_scale_that_float32_has_not_is_not_rounded(path):
    fleet = fleets.fleet(3, scale=1 / 3, noise=0.0)
    for route, epsilon in (("whole", 1e-12), ("updated", 1e-5), ("apart", 1e-12)):
        rule = lt.RelativeError(epsilon)
        made = lt.banks.make_bank(fleet, path, rule, dtype="float64", route=route, force=True)
        assert made.met
        fleets.require_true(made.bank, fleet, epsilon)


@pytest.mark.parametrize("rule", [lt.RelativeError(0.1), lt.TotalError(0.1)])
def test_the_error_may_be_that_of_all_together(rule, path):
    loud = fleets.fleet(3, size=10.0)
    quiet = {f"quiet {name}": one for name, one in fleets.strangers(3, size=0.01).items()}
    fleet = loud | quiet
    options = {"each": False} if isinstance(rule, lt.RelativeError) else {}
    made = lt.banks.make_bank(fleet, path, rule, **options)
    assert made.met
    assert fleets.joint_error(made.bank, fleet) <= 0.1
    assert abs(fleets.joint_error(made.bank, fleet) / made.bank.relative_error - 1) < 1e-4
    fleets.require_true(made.bank, fleet)
    assert max(made.errors[name] for name in quiet) > 0.5, "what is quiet may be lost"
    assert made.bank.asked == {"relative_error": 0.1, "each": False}
    apart = lt.banks.make_bank(fleet, path, lt.RelativeError(0.1), force=True)
    fleets.require_true(apart.bank, fleet, 0.1)
    assert fleets.stack_bytes(made.bank) < fleets.stack_bytes(apart.bank)


@pytest.mark.parametrize("size", [26_000, 30_000, 60_000])
@pytest.mark.parametrize("route", ["auto", "updated", "apart"])
def test_a_budget_of_bytes_is_that_of_the_file(size, route, path):
    fleet = fleets.fleet(6, extras={fleets.HEAD: fleets.head(0)})
    made = lt.banks.make_bank(fleet, path, lt.Budget(bytes=size), route=route)
    assert path.stat().st_size <= size
    assert made.met
    fleets.require_true(made.bank, fleet)


@pytest.mark.parametrize("route", ["auto", "updated", "apart"])
def test_a_budget_of_bytes_is_used(route, path):
    """What a header takes is known once there is one; bytes that it leaves go to the stacks."""
    fleet = fleets.fleet(12, noise=0.5)
    made = lt.banks.make_bank(fleet, path, lt.Budget(bytes=20_000), route=route)
    assert 0.85 * 20_000 < path.stat().st_size <= 20_000
    fleets.require_true(made.bank, fleet)


def test_a_budget_of_bytes_holds_for_stacks_in_many_pieces(path):
    one = {"deep": ((23, 17), fleets.Layout())}
    fleet = fleets.fleet(300, kinds=one, layers=1, ranks=(8,), noise=0.5)
    for size in (150_000, 300_000):
        made = lt.banks.make_bank(fleet, path, lt.Budget(bytes=size), route="apart", force=True)
        assert len(made.bank.groups) > 4
        assert 0.9 * size < path.stat().st_size <= size


def test_more_bytes_buy_less_error(path):
    fleet, errors = fleets.fleet(12, noise=0.5), []
    for size in (16_000, 20_000, 24_000, 28_000):
        made = lt.banks.make_bank(fleet, path, lt.Budget(bytes=size), force=True)
        errors.append(math.hypot(*made.errors.values()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]


def test_a_budget_of_parameters_is_that_of_the_stacks(path):
    fleet = fleets.fleet(6)
    for count in (600, 1000, 3000):
        made = lt.banks.make_bank(fleet, path, lt.Budget(params=count), force=True)
        held = sum(
            math.prod(tensor.shape)
            for group in made.bank.groups.values()
            for part in group.parts
            for tensor in (*group.outputs, *group.inputs, *part.tensors.values())
        )
        assert made.parameters_after == held <= count
        fleets.require_true(made.bank, fleet)


def test_ranks_that_are_named_are_the_ranks(path):
    fleet = fleets.fleet(5)
    made = lt.banks.make_bank(fleet, path, lt.FixedRank(3, 5))
    for group in made.bank.groups.values():
        assert [t.shape[1] for t in (*group.outputs, *group.inputs)] == [3, 5]
    assert made.bank.asked == {"ranks": [3, 5], "each": True}
    fleets.require_true(made.bank, fleet)


def test_ranks_weigh_adapters_alike_whatever_their_norms(path):
    fleet = fleets.strangers(4)
    loud = {**fleet, "s0": fleets.adapter(0, size=100.0)}
    errors = {}
    for each in (True, False):
        made = lt.banks.make_bank(loud, path, lt.FixedRank(6), each=each, force=True)
        fleets.require_true(made.bank, loud)
        errors[each] = made.errors
    assert errors[False]["s0"] < 0.01 < 0.2 < errors[True]["s0"]
    assert math.hypot(*errors[True].values()) < 0.95 * math.hypot(*errors[False].values())


def test_a_module_that_an_adapter_lacks_is_absent_and_not_zero(mixed, tmp_path):
    fleet, made = mixed
    wanted = {module.target.name for module in fleet["double"].modules}
    assert "model.layers.1.v" not in wanted
    assert set(fleets.dense(made.bank["double"])) == wanted
    export = lt.to_lora(made.bank["double"]).adapter
    lt.save_adapter(export, tmp_path / "out")
    again = lt.load_adapter(tmp_path / "out")
    assert {module.target.name for module in again.modules} == wanted
    assert made.bank.figures("double").modules == len(wanted)


def test_every_export_is_a_peft_folder_within_the_error(mixed, tmp_path):
    fleet, made = mixed
    for name, one in fleet.items():
        for ranks in ("uniform", "minimal"):
            export = lt.to_lora(made.bank[name], ranks=ranks).adapter
            folder = tmp_path / name / ranks
            folder.parent.mkdir(exist_ok=True)
            lt.save_adapter(export, folder)
            again = lt.load_adapter(folder)
            found = fleets.error(fleets.dense(again), fleets.dense(one))
            assert abs(found - made.errors[name]) <= 1e-4 * found + 1e-12
            assert fleets.extras_of(again) == fleets.extras_of(one)


def test_configurations_and_other_tensors_are_kept_byte_for_byte_and_once(mixed):
    fleet, made = mixed
    for name, one in fleet.items():
        assert made.bank.config_text(name) == one.config_text
        assert fleets.extras_of(made.bank[name]) == fleets.extras_of(one)
    heads = [c for c in made.bank.contents if c.shape == fleets.head(0).shape]
    assert len(heads) == 2, "two adapters share a head, one has its own"


def test_an_adapter_without_update_comes_back_as_one(path, tmp_path):
    fleet = {"zero": fleets.without_update(fleets.adapter(0)), **fleets.fleet(3)}
    for stack in STACKS:
        made = lt.banks.make_bank(fleet, path, lt.RelativeError(0.05), stack=stack, force=True)
        assert made.errors["zero"] == 0.0
        assert fleets.squared(fleets.dense(made.bank["zero"])) == 0.0
        export = fleets.export(made.bank, "zero", tmp_path / "zero")
        assert set(export) == {"adapter_config.json", "adapter_model.safetensors"}


def test_nothing_but_adapters_without_update(path):
    fleet = {name: fleets.without_update(one) for name, one in fleets.fleet(3).items()}
    made = lt.banks.make_bank(fleet, path, lt.RelativeError(0.05))
    assert made.met
    fleets.require_true(made.bank, fleet, 0.0)


def test_a_single_adapter_is_a_bank(path):
    fleet = fleets.fleet(1)
    made = lt.banks.make_bank(fleet, path, lt.RelativeError(0.1))
    assert made.bank.names == ("a0",)
    fleets.require_true(made.bank, fleet, 0.1)


def test_stored_lotr_adapters_go_in_as_loras_do(path):
    fleet = fleets.fleet(4)
    stored = {
        name: lt.convert_adapter(one, lt.RelativeError(1e-6)).adapter for name, one in fleet.items()
    }
    made = lt.banks.make_bank(stored, path, lt.RelativeError(0.05))
    fleets.require_true(made.bank, stored, 0.05)
    for name, one in fleet.items():
        assert fleets.error(fleets.dense(made.bank[name]), fleets.dense(one)) < 0.0501


def test_the_same_input_gives_the_same_bytes(mixed, path):
    _, made = mixed
    lt.banks.make_bank(fleets.mixed(), path, lt.RelativeError(0.05))
    assert path.read_bytes() == made.bank.source.read_bytes()


def test_progress_names_adapters_and_stacks(path):
    seen = []
    made = lt.banks.make_bank(fleets.fleet(3), path, lt.RelativeError(0.1), progress=seen.append)
    assert seen[:3] == ["a0", "a1", "a2"]
    assert {name.split("@")[0] for name in made.bank.groups} <= {n.split("@")[0] for n in seen}


def test_no_stack_is_decomposed_again_with_weights_that_it_had(path, monkeypatch):
    seen, plain = [], choosing._subject

    def counted(reduced, factors, options):
        seen.append((reduced, factors.tobytes()))
        return plain(reduced, factors, options)

    monkeypatch.setattr(choosing, "_subject", counted)
    lt.banks.make_bank(fleets.fleet(5, ranks=(2, 4)), path, lt.RelativeError(0.01))
    assert len(seen) > 4
    assert len({(id(reduced), factors) for reduced, factors in seen}) == len(seen)


def test_common_subspaces_are_found_and_reported(path):
    fleet = fleets.fleet(12, noise=1e-3)
    made = lt.banks.make_bank(fleet, path, lt.RelativeError(0.02))
    assert made.bank.explanation["chosen"] == "shared"
    assert fleets.stack_bytes(made.bank) < 0.5 * made.bytes_separate
    assert made.parameters_before == sum(one.parameters for one in fleet.values())
    assert made.bytes_before == sum(4 * one.parameters for one in fleet.values())


# --- what is refused


def refused(error, words, fleet, path, rule=None, **options):
    """Refused in one sentence, and nothing is written."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(error, match=words) as caught:
        lt.banks.make_bank(fleet, path, rule or lt.RelativeError(0.05), **options)
    assert "\n" not in str(caught.value)
    assert sorted(path.parent.iterdir()) == before


def test_adapters_of_another_base_are_refused(path):
    fleet = {**fleets.fleet(2), "odd": fleets.adapter(9, base="acme/other")}
    refused(lt.errors.CheckpointError, "odd belongs to the base acme/other", fleet, path)
    made = lt.banks.make_bank(fleet, path, lt.RelativeError(0.05), any_base=True)
    fleets.require_true(made.bank, fleet, 0.05)


@pytest.mark.parametrize("base", ["/models/Tiny/", None, "other/tiny"])
def test_one_base_may_have_several_names(base, path):
    fleet = {**fleets.fleet(2), "local": fleets.adapter(9, base=base)}
    lt.banks.make_bank(fleet, path, lt.RelativeError(0.05))


def test_adapters_of_other_shapes_are_refused(path):
    other = {"q": ((23, 19), Layout()), "v": ((11, 17), Layout())}
    fleet = {**fleets.fleet(2), "odd": fleets.adapter(9, modules=fleets.paths(other))}
    words = r"model.layers.0.q is 23x17 in a0 and 23x19 in odd"
    refused(lt.errors.CheckpointError, words, fleet, path)


def test_adapters_of_other_layouts_are_refused(path):
    other = {"q": ((23, 17), Layout("embedding")), "v": ((11, 17), Layout())}
    fleet = {**fleets.fleet(2), "odd": fleets.adapter(9, modules=fleets.paths(other))}
    words = "q is a linear module in a0 and .* in odd"
    refused(lt.errors.CheckpointError, words, fleet, path)


def test_an_adapter_without_modules_is_refused(path):
    empty = replace(fleets.adapter(0), modules=())
    refused(lt.errors.CheckpointError, "empty updates no module", {"empty": empty}, path)


def test_no_adapter_is_refused(path):
    refused(lt.errors.CheckpointError, "at least one adapter; found none", {}, path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stack": "rows"}, "stack must be auto, adapters, layers, all; found 'rows'"),
        ({"format": "zip"}, "format must be one of .* found 'zip'"),
        ({"route": "quick"}, "route must be .* found 'quick'"),
        ({"route": "sketch"}, "needs the size of its bases"),
        ({"sketch": 8}, "needs the size of its bases"),
        ({"route": "sketch", "sketch": 0}, "sketch"),
        ({"dtype": "int8"}, "dtype must be .* found 'int8'"),
        ({"method": "magic"}, "method must be .* found 'magic'"),
        ({"rule": lt.Budget(bytes=500)}, "the budget is 500"),
        ({"rule": lt.Budget(params=3)}, "3"),
        ({"rule": lt.Energy(0.9)}, "asked for an error, a size or ranks; found Energy"),
        ({"rule": lt.FixedRank(2), "format": "lora"}, "lora has no ranks to be told"),
        ({"route": "updated", "format": "truncated"}, "choose the route whole or apart"),
        ({"route": "sketch", "sketch": 9, "format": "lora"}, "choose the route whole or apart"),
        ({"group_by": "("}, r"\("),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words, path):
    if "group_by" in options:
        options = {**options, "stack": "layers"}
    refused(lt.errors.OptionError, words, fleets.fleet(2), path, **options)


@pytest.mark.parametrize("rule", [lt.FixedRank(0), lt.FixedRank(0, 3)])
def test_ranks_that_keep_nothing_are_refused(rule, path):
    words = "rank 0 keeps nothing of the updates; found 0,"
    refused(lt.errors.RankError, words, fleets.fleet(2), path, rule=rule)


def test_a_file_that_exists_is_only_replaced_by_force(path):
    path.write_bytes(b"old")
    with pytest.raises(lt.errors.CheckpointError, match="exists"):
        lt.banks.make_bank(fleets.fleet(2), path, lt.RelativeError(0.05))
    assert path.read_bytes() == b"old"
    lt.banks.make_bank(fleets.fleet(2), path, lt.RelativeError(0.05), force=True)
    assert lt.banks.verify_bank(path) == []


def test_a_refusal_leaves_the_old_file_as_it_was(path):
    lt.banks.make_bank(fleets.fleet(2), path, lt.RelativeError(0.05))
    before = path.read_bytes()
    fleet = {**fleets.fleet(2), "odd": fleets.adapter(9, base="acme/other")}
    with pytest.raises(lt.errors.CheckpointError):
        lt.banks.make_bank(fleet, path, lt.RelativeError(0.05), force=True)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_header_is_plain_json(mixed):
    fleet, made = mixed
    with safe_open(made.bank.source, framework="np") as file:
        header = json.loads(file.metadata()["lotr_bank"])
    assert header["schema"] == SCHEMA
    assert [entry["name"] for entry in header["adapters"]] == list(fleet)


@pytest.mark.parametrize("stack", ["auto", "adapters"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_error_of_nothing_loses_nothing(stack, dtype, tmp_path):
    fleet = {f"a{i}": fleets.adapter(i, dtype=dtype) for i in range(3)}
    made = lt.banks.make_bank(
        fleet, tmp_path / "bank.lotr.safetensors", lt.RelativeError(0.0), stack=stack
    )
    assert made.met
    assert set(made.errors.values()) == {0.0}
    for name, one in fleet.items():
        assert fleets.error(fleets.dense(made.bank[name]), fleets.dense(one)) == 0
    assert made.bank.asked["relative_error"] == 0
