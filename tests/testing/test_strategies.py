"""Strategies draw what they promise, degenerate cases included, and refuse values."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.numpy import save_file

import lotr_tn as lt
from lotr_tn._arrays import dtype_name, to_numpy
from lotr_tn.ops.arrays import arrays_of
from lotr_tn.testing import laws, strategies
from tests.conftest import BACKENDS, on_backend

MAKERS = {
    "LoRAStack": strategies.lora_stacks,
    "Tucker2": strategies.tucker2s,
    "LowRankTucker2": strategies.low_rank_tucker2s,
    "Tucker1": strategies.tucker1s,
    "Dense": strategies.dense_stacks,
}
each_format = pytest.mark.parametrize("name", MAKERS)


def drawn(strategy, condition):
    """An example with that property, as it was first drawn."""
    quick = settings(phases=(Phase.generate,), max_examples=5000, database=None)
    return find(strategy, condition, settings=quick)


def layers_of(stack):
    return laws.dense_updates(stack)


def rank_of(stack):
    return min(stack.ranks) if isinstance(stack, lt.Tucker2) else sum(stack.ranks)


def largest_entry(stack):
    return max(np.abs(to_numpy(x)).max(initial=0) for x in arrays_of(stack).values())


def repeats_a_singular_value(stack):
    unfolding = layers_of(stack).transpose(1, 0, 2).reshape(stack.shape[1], -1)
    values = np.linalg.svd(unfolding, compute_uv=False)
    return len(values) > 1 and values[1] > 0 and np.isclose(values[0], values[1])


CASES = {
    "one layer": lambda s: s.shape[0] == 1,
    "several layers": lambda s: s.shape[0] == 4,
    "one output": lambda s: s.shape[1] == 1,
    "one input": lambda s: s.shape[2] == 1,
    "a zero stack": lambda s: not layers_of(s).any(),
    "a zero layer among others": lambda s: (
        layers_of(s)[-1].any() != layers_of(s)[0].any() and s.shape[0] > 1
    ),
    "equal layers": lambda s: (
        s.shape[0] > 1 and layers_of(s).any() and np.ptp(layers_of(s), axis=0).max() == 0
    ),
    "dependent columns": lambda s: (
        layers_of(s).any()
        and min(s.shape[1:]) > 2
        and np.linalg.matrix_rank(layers_of(s)).max() == 1
    ),
    "tied singular values": repeats_a_singular_value,
    "tiny": lambda s: 0 < np.abs(layers_of(s)).max() < 1e-9,
    "huge": lambda s: np.abs(layers_of(s)).max() > 1e6,
    "whole numbers": lambda s: layers_of(s).any() and not (layers_of(s) % 1).any(),
    "other numbers": lambda s: 0.1 < np.abs(layers_of(s)).max() < 10 and (layers_of(s) % 1).any(),
}
FACTORED = {
    "rank 0": lambda s: rank_of(s) == 0,
    "ranks above the sizes": lambda s: rank_of(s) > max(s.shape[1:]),
}
RANKED = {
    "a layer of rank 0 among others": lambda s: 0 in s.ranks and any(s.ranks),
    "ragged ranks": lambda s: len(set(s.ranks)) > 1,
}


@each_format
@pytest.mark.parametrize("case", CASES)
def test_special_cases_are_drawn(name, case):
    assert drawn(MAKERS[name](), CASES[case]) is not None


@pytest.mark.parametrize("name", ["LoRAStack", "Tucker2", "LowRankTucker2"])
@pytest.mark.parametrize("case", FACTORED)
def test_special_ranks_are_drawn(name, case):
    assert drawn(MAKERS[name](), FACTORED[case]) is not None


@pytest.mark.parametrize("name", ["LoRAStack", "LowRankTucker2"])
@pytest.mark.parametrize("case", RANKED)
def test_special_ranks_of_layers_are_drawn(name, case):
    assert drawn(MAKERS[name](), RANKED[case]) is not None


@pytest.mark.parametrize("side", [0, 1])
def test_a_shared_rank_of_zero_is_drawn(side):
    assert drawn(strategies.low_rank_tucker2s(), lambda s: s.shared_ranks[side] == 0)


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("rank", [0, 4])
def test_both_sides_are_shared(side, rank):
    assert drawn(strategies.tucker1s(), lambda s: (s.side, s.rank) == (side, rank))


@pytest.mark.parametrize("name", MAKERS)
def test_every_format_is_among_the_stacks(name):
    assert drawn(strategies.stacks(), lambda s: type(s).__name__ == name)


def test_formats_are_mixed():
    pairs = strategies.stacks_of_one_shape(count=2)
    assert drawn(pairs, lambda p: [type(s) for s in p] == [lt.Tucker1, lt.LoRAStack])


@given(stacks=strategies.stacks_of_one_shape(count=3))
def test_stacks_of_one_shape_have_one(stacks):
    assert len({stack.shape for stack in stacks}) == 1


@given(shape=strategies.shapes())
def test_axes_differ(shape):
    assert len(set(shape)) == 3


def test_axes_may_be_equal_where_that_is_wanted():
    assert find(strategies.shapes(distinct=False), lambda s: len(set(s)) == 1) == (1, 1, 1)


@given(sizes=strategies.distinct_sizes(5, smallest=3, largest=7))
def test_distinct_sizes(sizes):
    assert sorted(sizes) == [3, 4, 5, 6, 7]


@given(pair=strategies.ranks(smallest=2, largest=3))
def test_ranks(pair):
    assert set(pair) <= {2, 3}


@each_format
@given(data=st.data())
def test_generic_stacks_have_nothing_special(name, data):
    stack = data.draw(MAKERS[name](degenerate=False))
    layers, m, n = stack.shape
    wanted = {
        "LoRAStack": lambda: stack.ranks,
        "Tucker2": lambda: (min(stack.ranks),) * layers,
        "LowRankTucker2": lambda: [min(k, *stack.shared_ranks) for k in stack.ranks],
        "Tucker1": lambda: (stack.rank,) * layers,
        "Dense": lambda: (m,) * layers,
    }[name]()
    found = np.linalg.matrix_rank(layers_of(stack))
    assert list(found) == [min(r, m, n) for r in wanted]
    assert min(found) > 0
    assert not repeats_a_singular_value(stack)


@each_format
@given(data=st.data())
def test_shapes_are_taken(name, data):
    stack = data.draw(MAKERS[name](shapes=st.just((2, 2, 2))))
    assert stack.shape == (2, 2, 2)


@given(data=st.data())
def test_ranks_are_taken(data):
    assert data.draw(strategies.tucker2s(ranks=st.just((3, 3)))).ranks == (3, 3)
    assert data.draw(strategies.tucker1s(ranks=st.just(7))).rank == 7
    assert set(data.draw(strategies.lora_stacks(ranks=st.just(2))).ranks) == {2}
    low = data.draw(strategies.low_rank_tucker2s(shared_ranks=st.just((4, 3)), ranks=st.just(2)))
    assert low.shared_ranks == (4, 3)
    assert set(low.ranks) == {2}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@each_format
@given(data=st.data())
def test_dtypes(name, dtype, data):
    stack = data.draw(MAKERS[name](dtype=dtype))
    assert {dtype_name(x) for x in arrays_of(stack).values()} == {dtype}
    assert np.isfinite(largest_entry(stack).astype(float))


@pytest.mark.parametrize("backend", BACKENDS)
@each_format
@given(data=st.data())
def test_the_hook_makes_every_array(name, backend, data):
    hook = partial(on_backend, backend=backend)
    stack = data.draw(MAKERS[name](array=hook))
    wanted = type(hook(np.ones(1)))
    assert {type(x) for x in arrays_of(stack).values()} == {wanted}


@given(stack=strategies.lora_stacks(array=torch.from_numpy, dtype="float32"))
def test_torch_takes_the_arrays_as_they_are(stack):
    stack.up.add_(1)  # an array that is not writable would warn
    assert stack.up.is_contiguous()


@given(data=st.data())
def test_gauges_are_well_conditioned(data):
    sizes = data.draw(st.lists(st.integers(0, 5), max_size=4))
    for size, x in zip(sizes, data.draw(strategies.gauges(sizes=sizes)), strict=True):
        assert x.shape == (size, size)
        assert size == 0 or np.linalg.cond(x) < 50


def test_the_simplest_gauges_are_whole_numbers():
    (found,) = find(strategies.gauges(sizes=[3]), lambda g: np.trace(g[0]) < 3)
    assert not (found % 1).any()
    assert not (np.linalg.inv(found) % 1).any()


@each_format
@given(data=st.data())
def test_a_change_of_gauge_changes_factors_and_not_updates(name, data):
    stack = data.draw(MAKERS[name]())
    matrices = data.draw(strategies.gauges(sizes=laws.gauge_sizes(stack)))
    other = laws.change_gauge(stack, matrices)
    assert type(other) is type(stack)
    off = np.linalg.norm(layers_of(other) - layers_of(stack))
    assert off <= 1e-12 * max(laws.magnitude(stack), laws.magnitude(other))


@given(strategies.nearly_low_rank())
def test_nearly_low_rank_stacks_lose_little(pair):
    stack, ranks = pair
    assert stack.up.dtype == np.float32
    loss = lt.hosvd(stack, ranks).certificate
    assert loss.relative_error < 1e-4


def test_most_of_them_lose_something():
    assert drawn(
        strategies.nearly_low_rank(),
        lambda p: 1e-6 < lt.hosvd(*p).certificate.relative_error < 1e-4,
    )


@given(config=strategies.adapter_configs())
def test_peft_takes_the_configurations(config):
    assert LoraConfig(**config).r == config["r"]
    assert json.loads(json.dumps(config)) == config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("adapter")


def write(folder, config, tensors):
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@given(adapter=strategies.adapters())
def test_adapters_can_be_loaded(folder, adapter):
    config, tensors = adapter
    loaded = lt.load_adapter(write(folder, config, tensors))
    assert 2 * len(loaded.modules) == len(tensors)
    for module in loaded.modules:
        key = f"base_model.model.{module.target.name}.lora_A.weight"
        assert np.array_equal(module.down, tensors[key])


CONFIGS = {
    "a rank of its own": lambda c: (
        c["rank_pattern"] and set(c["rank_pattern"].values()) != {c["r"]}
    ),
    "an alpha of its own": lambda c: c["alpha_pattern"],
    "stabilised scale": lambda c: c["use_rslora"],
    "several modules": lambda c: len(c["target_modules"]) == 3,
    "a fraction for alpha": lambda c: c["lora_alpha"] == 0.5,
}


@pytest.mark.parametrize("case", CONFIGS)
def test_special_configurations_are_drawn(case):
    assert drawn(strategies.adapter_configs(), lambda c: bool(CONFIGS[case](c)))


def test_a_fresh_adapter_and_modules_of_several_ranks_are_drawn():
    assert drawn(
        strategies.peft_state_dicts(),
        lambda t: all(x.any() == ("lora_A" in key) for key, x in t.items()),
    )
    assert drawn(
        strategies.adapters(),
        lambda a: len({x.shape[0] for key, x in a[1].items() if "lora_A" in key}) > 1,
    )


@given(tensors=strategies.peft_state_dicts(array=torch.from_numpy, dtype="float64"))
def test_state_dicts_take_a_hook(tensors):
    assert {x.dtype for x in tensors.values()} == {torch.float64}


@pytest.mark.parametrize(
    "build",
    [
        lambda: strategies.lora_stacks(shapes=(2, 3, 4)),
        lambda: strategies.lora_stacks(ranks=2),
        lambda: strategies.tucker2s(ranks=(1, 2)),
        lambda: strategies.low_rank_tucker2s(shared_ranks=(1, 2)),
        lambda: strategies.low_rank_tucker2s(ranks=2),
        lambda: strategies.tucker1s(ranks=1),
        lambda: strategies.dense_stacks(shapes=[2, 3, 4]),
        lambda: strategies.stacks(shapes=(2, 3, 4)),
        lambda: strategies.stacks_of_one_shape(shapes=(2, 3, 4)),
        lambda: strategies.nearly_low_rank(shapes=(2, 3, 4)),
        lambda: strategies.adapters(configs={"r": 1}),
    ],
)
def test_values_are_refused_where_strategies_are_needed(build):
    with pytest.raises(TypeError, match=r"must be a hypothesis strategy; found .*=st\.just\("):
        build()


@pytest.mark.parametrize("name", strategies.__all__)
def test_every_strategy_says_what_it_requires(name):
    assert "Requires" in getattr(strategies, name).__doc__
