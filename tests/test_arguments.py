"""Public functions given what they do not take: one sentence, whatever was given."""

import importlib
import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn._arguments import door
from lotr_tn.errors import ArgumentError, LotrError, OptionError

DEMO = Path(lt.__file__).parent / "demo" / "adapter"
ROOMS = ("", "adapters", "analysis", "banks", "catalogue", "conversion", "decompose", "doors")
ROOMS = (*ROOMS, "inspection", "ops")
LEFT_OUT = {"register_format", "unregister_format", "rule", "registered_formats"}
"""What opens the algebra to formats: it takes classes, and checks them itself."""


def public_functions():
    found = {}
    for room in ROOMS:
        module = importlib.import_module(f"lotr_tn.{room}".rstrip("."))
        for name in module.__all__:
            function = getattr(module, name)
            if inspect.isfunction(function) and name not in LEFT_OUT:
                found.setdefault(function, f"{room}.{name}".lstrip("."))
    return {name: function for function, name in found.items()}


PUBLIC = public_functions()
STACK = lt.LoRAStack(np.ones((4, 2)), np.ones((2, 3)), (1, 1))
ADAPTER = lt.load_adapter(DEMO)


def wrong():
    """Things that few parameters take, and numbers that are none."""
    return [
        np.ones((2, 4, 3)), np.ones(()), "a/path", Path("a/path"), ADAPTER, [], [ADAPTER], [STACK],
        {}, {"a": 1}, None, "0.1", float("nan"), float("inf"), -1, True, object(), b"x", lt.Tucker2,
        STACK,
    ]  # fmt: skip


def fitting(parameter):
    """A value that a parameter takes, so that one argument alone is wrong."""
    by_name = {
        "stack": STACK, "a": STACK, "b": STACK, "stacks": [STACK], "adapter": ADAPTER, "ranks": 1,
        "adapters": {"a": ADAPTER}, "x": np.ones((1, 3)), "y": np.ones((1, 4)), "dtype": "float32",
        "rule": lt.RelativeError(0.1), "layers": [0], "factor": 2.0, "device": "cpu",
        "to": lt.Dense,
        "weights": [1.0, 1.0], "path": "no/such/file", "destination": "no/such/folder/file",
        "up": np.ones((4, 2)), "down": np.ones((2, 3)), "equation": "ij,jk->ik", "shape": (2, 4, 3),
        "terms": 1, "metric": np.eye(3), "first": 0, "second": 1, "relative_error": 0.1,
        "names": ["a"], "old": "a", "new": "b", "config": {}, "architecture": None,
        "shapes": ["2x3x4"],
    }  # fmt: skip
    return by_name.get(parameter.name, 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PUBLIC)
def test_wrong_arguments_end_in_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = PUBLIC[name]
    parameters = inspect.signature(function).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    for place in parameters:
        if place.name == "progress" or place.kind is place.VAR_POSITIONAL:
            continue
        for value in wrong():
            given = {p.name: fitting(p) for p in needed} | {place.name: value}
            given = {k: ADAPTER if k == "adapter" else v for k, v in given.items()}
            given[place.name] = value
            said = refusal(function, given)
            assert said is None or len(said) < 500, (place.name, value)
            assert said is None or "\n" not in said


def refusal(function, given):
    """What a function says; another error than the package's own is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(**given)
        except LotrError as error:
            return str(error)
    return None


def test_every_public_function_has_the_door():
    plain = [name for name, function in PUBLIC.items() if not hasattr(function, "__wrapped__")]
    nothing_asked = {"catalogue.operations_table", "catalogue.sums_table"}
    assert set(plain) <= nothing_asked


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: lt.hooi(ADAPTER, 2),
            "hooi takes a stack; this is a LoRAAdapter: take lt.group_modules(adapter)[name].stack",
        ),
        (
            lambda: lt.hooi(np.ones((2, 3, 4)), 2),
            "hooi takes a stack; this is an ndarray: lt.Dense(array) makes a stack of an array "
            "(L, m, n)",
        ),
        (
            lambda: lt.norm("a/path"),
            "norm takes a stack; this is a str, 'a/path': take "
            "lt.group_modules(lt.load_adapter(path))[name].stack",
        ),
        (
            lambda: lt.convert_adapter("a/path", 2),
            "convert_adapter takes an adapter; this is a str, 'a/path': take lt.load_adapter(path)",
        ),
        (
            lambda: lt.analyze_adapters(ADAPTER),
            "analyze_adapters takes a list of adapters; this is a LoRAAdapter: put it in a list",
        ),
        (
            lambda: lt.to_lora(ADAPTER),
            "to_lora takes a LoTRAdapter; this is a LoRAAdapter: it is a LoRA already",
        ),
        (
            lambda: lt.gram(STACK),
            "gram takes a list of stacks; this is a LoRAStack: put it in a list",
        ),
        (
            lambda: lt.hooi(STACK, 1, seed="1"),
            "hooi takes a whole number as seed; this is a str, '1'",
        ),
        (lambda: lt.round(None, 1), "round takes a stack; this is None"),
        (lambda: lt.gram([STACK, 3]), "gram takes a list of stacks; this is a list that holds 3"),
        (
            lambda: lt.merge_adapters({"a": 3}),
            "merge_adapters takes adapters by name; this is a dict that holds 3",
        ),
        (
            lambda: np.asarray(STACK),
            "a LoRAStack is no array; lt.to_dense(stack) forms its matrices (L, m, n)",
        ),
    ],
)
def test_what_is_said(call, said):
    with pytest.raises(ArgumentError) as raised:
        call()
    assert str(raised.value) == said
    assert isinstance(raised.value, TypeError)


@pytest.mark.parametrize("rule", [lt.RelativeError, lt.TotalError, lt.Energy, lt.FixedRank])
@pytest.mark.parametrize("value", ["0.1", None, float("nan"), [0.1], np.ones(2), True, 1j, -1])
def test_rules_refuse_what_is_no_number(rule, value):
    with pytest.raises(OptionError):
        rule(value)


@pytest.mark.parametrize(
    "call",
    [
        lambda dtype: lt.astype(STACK, dtype),
        lambda dtype: lt.hooi(STACK, 1, dtype=dtype),
        lambda dtype: lt.tucker1(STACK, 1, dtype=dtype),
        lambda dtype: lt.compress(STACK, 1, format="lotr", dtype=dtype),
        lambda dtype: lt.round(STACK, 1, dtype=dtype),
        lambda dtype: lt.merge(STACK, [1, 1], dtype=dtype),
        lambda dtype: lt.convert_adapter(ADAPTER, 1, dtype=dtype),
        lambda dtype: lt.analyze_adapters([ADAPTER], dtype=dtype),
        lambda dtype: lt.merge_adapters({"a": ADAPTER, "b": ADAPTER}, dtype=dtype),
        lambda dtype: lt.to_lora(lt.convert_adapter(ADAPTER, 1).adapter, dtype=dtype),
        lambda dtype: lt.decompose.random_factors((2, 3, 4), (1, 1), dtype=dtype),
    ],
)
@pytest.mark.parametrize("dtype", ["int8", "x", np.float32])
def test_a_bad_dtype_is_one_error_everywhere(call, dtype):
    with pytest.raises(OptionError, match="dtype"):
        call(dtype)


def test_numbers_of_other_libraries_and_any_collection_are_taken():
    import torch

    assert lt.take_layers(STACK, np.array([1])).ranks == (1,)
    assert lt.take_layers(STACK, range(1)).ranks == (1,)
    assert lt.hooi(STACK, 1, seed=np.int64(3), tolerance=np.float32(0.1)).ranks == (1, 1)
    assert lt.hooi(STACK, (np.int64(1), np.int32(1))).ranks == (1, 1)
    assert type(lt.FixedRank(np.int64(1)).r1) is int
    assert lt.merge(STACK, torch.ones(2, dtype=torch.float64)).shape == (1, 4, 3)


def test_a_door_keeps_name_and_signature():
    assert lt.hooi.__name__ == "hooi"
    assert list(inspect.signature(lt.hooi).parameters)[:2] == ["stack", "ranks"]

    @door
    def twice(number: int, *rest: int, label: str = "") -> int:
        return 2 * number

    assert twice(3, 4, label="x") == 6
    with pytest.raises(ArgumentError, match="twice takes a text as label; this is 1"):
        twice(3, label=1)


def test_a_conversion_refuses_ranks_that_keep_nothing_and_limits_that_bound_nothing():
    for ranks in (0, (0, 3), lt.FixedRank(3, 0)):
        with pytest.raises(lt.errors.RankError, match="rank 0 keeps nothing of the updates"):
            lt.convert_adapter(ADAPTER, ranks)
    for limits in (lt.RankLimits(most=2), {"q_proj": lt.RankLimits(least=1)}):
        with pytest.raises(OptionError, match="give ranks or limits"):
            lt.convert_adapter(ADAPTER, 3, limits=limits)
    assert lt.convert_adapter(ADAPTER, 3, limits=lt.RankLimits()).groups[0].ranks == (3, 3)
