"""Counts agree with live arrays and with the published tables."""

import itertools

import numpy as np
import pytest
import torch

import lotr_tn as lt
from lotr_tn.catalogue import GroupCount
from lotr_tn.errors import OptionError, RankError

ROBERTA = lt.catalogue.architecture("roberta-base")
CLASSIFIER = 2 * 768
"""Weights of the two-class output projection, which the published `params` contain."""

PUBLISHED = {  # rank: LoTR adapter, its `params`, cores only, LoRA
    1: (1_560, 3_096, 24, 36_864),
    2: (3_168, 4_704, 96, 73_728),
    4: (6_528, 8_064, 384, 147_456),
    8: (13_824, 15_360, 1_536, 294_912),
    16: (30_720, 32_256, 6_144, 589_824),
    32: (73_728, 75_264, 24_576, 1_179_648),
}
OLDER = {  # the earlier table's `params`
    5: 9_816,
    10: 19_296,
    64: 198_144,
    128: 591_360,
    256: 1_967_616,
    512: 7_079_424,
}


@pytest.mark.parametrize(
    ("model", "targets", "heads", "per_rank"),
    [
        ("roberta-base", ["query", "key", "value", "attention.output.dense"], 12, 860),
        ("roberta-large", ["query", "key", "value", "attention.output.dense"], 16, 1132),
        ("llama-2-7b", ["q_proj", "k_proj", "v_proj", "o_proj"], 32, 4292),
        ("llama-2-13b", ["q_proj", "k_proj", "v_proj", "o_proj"], 40, 5332),
    ],
)
def test_lorta_s_published_counts(model, targets, heads, per_rank):
    table = lt.catalogue.count_table(
        lt.catalogue.architecture(model), targets, (4, 8), "shape", heads
    )
    assert [row.cp for row in table.rows] == [4 * per_rank, 8 * per_rank]
    (group,) = table.groups
    layers, m, n = group.shape
    plain = lt.CP(*(np.ones((size, 3), np.float32) for size in (m, layers, n)))
    assert group.cp(3) == lt.parameter_count(plain)


@pytest.mark.parametrize(
    ("model", "rank", "legs", "count"),
    [
        ("roberta-base", 5, "tt-lora", 23_760),
        ("llama-3.1-8b", 5, "tt-lora", 58_240),
        ("roberta-base", 4, "scalable-tt-lora", 13_824),
    ],
)
def test_published_counts_of_trains(model, rank, legs, count):
    table = lt.catalogue.count_table(lt.catalogue.architecture(model), None, (rank,), legs=legs)
    assert table.rows[0].tt == count
    (first, *_) = table.groups
    layers, m, n = first.shape
    ranks = [rank] * (sum(map(len, lt.decompose.PUBLISHED[legs][m, n])) - 1)
    rng = np.random.default_rng(0)
    stack = lt.LoRAStack(rng.standard_normal((m, rank)), rng.standard_normal((rank, n)), (rank,))
    live = lt.tensor_train(stack, legs, ranks)  # which drops what no leg can reach
    assert lt.parameter_count(live) <= first.tt(rank, legs) // layers


def test_outputs_that_are_no_heads_are_refused():
    with pytest.raises(OptionError, match="768 outputs of group query cannot be cut into 7 heads"):
        lt.catalogue.count_table(ROBERTA, heads=7)


def empty(*shape, torch_arrays=False):
    """An array that takes memory for one entry only."""
    if torch_arrays:
        return torch.zeros(1).expand(*shape)
    return np.broadcast_to(np.float32(0), shape)


def live_lora(group, rank, **kind):
    layers, m, n = group.shape
    up, down = empty(m, layers * rank, **kind), empty(layers * rank, n, **kind)
    return lt.LoRAStack(up, down, (rank,) * layers)


def live_lotr(group, r1, r2, **kind):
    layers, m, n = group.shape
    return lt.Tucker2(empty(m, r1, **kind), empty(layers, r1, r2, **kind), empty(n, r2, **kind))


@pytest.mark.parametrize("torch_arrays", [False, True])
def test_the_published_counts_from_live_arrays(torch_arrays):
    table = lt.catalogue.count_table(ROBERTA, ["query", "value"], PUBLISHED, "shape")
    (group,) = table.groups
    assert group.shape == (24, 768, 768)
    for row, (lotr, column, cores, lora) in zip(table.rows, PUBLISHED.values(), strict=True):
        stack = live_lotr(group, row.rank, row.rank, torch_arrays=torch_arrays)
        full = live_lora(group, row.rank, torch_arrays=torch_arrays)
        assert row.lotr == lotr == lt.parameter_count(stack)
        assert row.lora == lora == lt.parameter_count(full)
        assert row.cores == cores == np.prod(stack.core.shape)
        assert row.lotr + CLASSIFIER == column
        assert row.ratio == lotr / lora


def test_the_older_table():
    table = lt.catalogue.count_table(ROBERTA, ranks=OLDER, group_by="shape")
    (group,) = table.groups
    for row, wanted in zip(table.rows, OLDER.values(), strict=True):
        live = live_lotr(group, row.rank, row.rank)
        assert row.lotr == wanted - CLASSIFIER == lt.parameter_count(live)


@pytest.mark.parametrize("group_by", ["kind", "shape", r"(self_attn|mlp)"])
@pytest.mark.parametrize("name", ["llama-3.2-1b", "gpt2", "t5-small", "phi-3-mini"])
def test_any_grouping_from_live_arrays(name, group_by):
    table = lt.catalogue.count_table(
        lt.catalogue.architecture(name), "all-linear", (3, 7), group_by
    )
    modules = [path for group in table.groups for path in group.modules]
    assert sorted(modules) == sorted(m.name for m in lt.catalogue.architecture(name).modules)
    assert table.dense == lt.catalogue.architecture(name).parameters
    for row in table.rows:
        stacks = [live_lotr(group, row.rank, row.rank) for group in table.groups]
        loras = [live_lora(group, row.rank) for group in table.groups]
        assert row.lotr == sum(map(lt.parameter_count, stacks))
        assert row.lora == sum(map(lt.parameter_count, loras))
        assert row.cores == sum(stack.core.size for stack in stacks)


def test_two_ranks_from_live_arrays():
    group = GroupCount("a", ("a",) * 5, (5, 7, 11))
    assert group.lotr(2, 3) == lt.parameter_count(live_lotr(group, 2, 3))
    assert group.cores(2, 3) == 30
    assert group.dense == lt.parameter_count(lt.Dense(empty(5, 7, 11)))


def test_groups_are_those_of_a_conversion(demo_adapter):
    """The same modules stacked alike, by the same names."""
    adapter = lt.load_adapter(demo_adapter)
    modules = tuple(lt.catalogue.ModuleShape(m.target.name, *m.shape) for m in adapter.modules)
    model = lt.catalogue.Architecture("demo", modules)
    for by in ("kind", "shape", r"self_attn\.[kv]_proj"):
        table = lt.catalogue.count_table(model, group_by=by)
        wanted = lt.group_modules(adapter, by)
        assert [g.name for g in table.groups] == list(wanted)
        assert [g.shape for g in table.groups] == [g.shape for g in wanted.values()]
        assert [g.modules for g in table.groups] == [
            tuple(t.name for t in g.targets) for g in wanted.values()
        ]
    rank8 = lt.catalogue.count_table(model, ranks=[8]).rows[0]
    assert rank8.lora == sum(m.stored for m in adapter.modules)


def test_break_even():
    assert lt.catalogue.count_table(ROBERTA, group_by="shape").break_even_rank == 1472
    table = lt.catalogue.count_table(ROBERTA, ranks=(1471, 1472, 1473), group_by="shape")
    below, at, above = table.rows
    assert below.lotr < below.lora
    assert at.lotr == at.lora
    assert above.lotr > above.lora
    alone = lt.catalogue.architecture_from_shapes(["1x8x6"])
    assert lt.catalogue.count_table(alone).break_even_rank == 0


@pytest.mark.parametrize("shapes", [["24x768x768"], ["1x3x4"], ["3x5x4", "v=7x2x9"]])
def test_equal_size_is_the_largest_that_fits(shapes):
    model = lt.catalogue.architecture_from_shapes(shapes)
    for row in lt.catalogue.count_table(model, ranks=range(1, 40)).rows:
        if row.equal_size_rank:
            (fits,) = lt.catalogue.count_table(model, ranks=[row.equal_size_rank]).rows
            assert fits.lotr <= row.lora
        (larger,) = lt.catalogue.count_table(model, ranks=[row.equal_size_rank + 1]).rows
        assert larger.lotr > row.lora


def test_equal_size_in_the_paper_setting():
    """Rank 32 of LoTR and rank 2 of LoRA have 73,728 parameters each, as published."""
    rows = {row.rank: row for row in lt.catalogue.count_table(ROBERTA, group_by="shape").rows}
    assert rows[2].equal_size_rank == 32
    assert rows[2].lora == rows[32].lotr == 73_728


def test_default_targets_are_told():
    assert lt.catalogue.count_table(ROBERTA).targets == ("query", "value")
    assert lt.catalogue.count_table(lt.catalogue.architecture_from_shapes(["2x3x4"])).targets == (
        "all-linear",
    )
    names = (name for name in ["key", "query"])
    assert lt.catalogue.count_table(ROBERTA, names).targets == ("key", "query")
    assert lt.catalogue.count_table(ROBERTA, r".*\.key").targets == (r".*\.key",)


@pytest.mark.parametrize("ranks", [[], [0], [1, -2], [1.5], [True], ["4"]])
def test_ranks_that_are_none(ranks):
    with pytest.raises(RankError, match="whole numbers of at least 1"):
        lt.catalogue.count_table(ROBERTA, ranks=ranks)


def test_a_rule_that_is_none():
    with pytest.raises(OptionError, match="group_by takes kind, shape or"):
        lt.catalogue.count_table(ROBERTA, group_by="(")


def test_text_has_a_line_for_each_rank():
    lines = str(lt.catalogue.count_table(ROBERTA, ranks=(2, 512), group_by="shape")).splitlines()
    assert lines[0].split() == ["rank", "LoRA", "LoTR", "cores", "only"]
    assert lines[2].split() == ["512", "18,874,368", "7,077,888", "6,291,456"]
    assert all(len(a) == len(b) for a, b in itertools.pairwise(lines))
