"""Models: sharing, starts, switches, merging, and what is trained."""

import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

import lotr_tn as lt
import lotr_tn.nn as ln
from lotr_tn.errors import FormatError, OptionError, RankError, UnsupportedError
from lotr_tn.nn.forms.tucker2_starts import STARTS
from tests.nn.blocks import TOKENS, model, pairs, shake

TARGETS = ["q", "v", "embed"]


def paper(**more):
    """Queries and values in one pair; embeddings in a pair of their own."""
    return ln.add_lotr(model(), TARGETS, r=(3, 2), group_by="shape", **more)


def saved_and_loaded(adapted):
    buffer = io.BytesIO()
    torch.save(adapted, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def restored(adapted):
    fresh = paper(seed=5)
    fresh.load_state_dict(adapted.state_dict())
    return fresh


def assigned(adapted):
    fresh = paper(seed=5)
    fresh.load_state_dict(copy.deepcopy(adapted.state_dict()), assign=True)
    return fresh


CHANGES = {
    "to": lambda m: m.to(torch.float64).to("cpu", torch.float32),
    "half": lambda m: m.half().float(),
    "deepcopy": copy.deepcopy,
    "torch.save": saved_and_loaded,
    "state_dict": restored,
    "assigned state_dict": assigned,
    "train": lambda m: m.eval().train(),
    "merge": lambda m: (ln.merge(m), ln.unmerge(m), m)[-1],
    "add an adapter": lambda m: ln.add_lotr(m, ["q"], r=2, name="other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_factors_stay_one_tensor(change):
    adapted = shake(paper())
    adapted(TOKENS)  # leaves nothing behind that could not be copied
    changed = CHANGES[change](adapted)
    assert len(pairs(changed)) == 2
    trained = [n for n, _ in changed.named_parameters() if ".default" in n]
    assert len(trained) == 2 * 2 + 7
    ln.set_active(changed, "default")
    tolerance = 0.02 if change == "half" else 1e-5
    torch.testing.assert_close(changed(TOKENS), shake(paper())(TOKENS), atol=tolerance, rtol=0.02)
    before = changed(TOKENS).detach()
    with torch.no_grad():  # through the first layer
        changed.blocks[0].q.lotr_factors["default"].u.mul_(2)
    assert torch.equal(
        changed.blocks[2].v.lotr_factors["default"].u, changed.blocks[0].q.lotr_factors["default"].u
    )
    assert not torch.equal(changed(TOKENS), before)


@pytest.mark.parametrize("init", STARTS)
def test_start(init):
    """The base's output: bit for bit, but for rounding where the weights are taken apart."""
    base = model()(TOKENS).detach()
    adapted = ln.add_lotr(model(), TARGETS, r=(3, 2), group_by="shape", alpha=3, init=init)
    if init == "principal":
        torch.testing.assert_close(adapted(TOKENS), base, atol=1e-6, rtol=1e-6)
        assert ln.lotr_layers(adapted)["blocks.1.q"].update_of("default").norm() > 0.5
    else:
        assert torch.equal(adapted(TOKENS), base)
    again = ln.add_lotr(model(), TARGETS, r=(3, 2), group_by="shape", alpha=3, init=init)
    other = ln.add_lotr(model(), TARGETS, r=(3, 2), group_by="shape", alpha=3, init=init, seed=7)
    same = [
        torch.equal(a, b) for a, b in zip(adapted.parameters(), again.parameters(), strict=True)
    ]
    assert all(same)
    if init not in ("weights", "principal"):
        assert not all(
            torch.equal(a, b) for a, b in zip(adapted.parameters(), other.parameters(), strict=True)
        )
    with ln.disabled(shake(adapted)):
        torch.testing.assert_close(adapted(TOKENS), base, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(adapted(TOKENS), base, atol=1e-3)
    torch.testing.assert_close(ln.remove_lotr(adapted)(TOKENS), base, atol=1e-6, rtol=1e-6)


def test_first_step_moves_cores_only():
    adapted = paper()
    before = {n: p.clone() for n, p in adapted.named_parameters()}
    lower = []
    adapted.embed.register_forward_hook(
        lambda *parts: lower.append(parts[2].retain_grad() or parts[2])
    )
    optimiser = torch.optim.SGD(ln.parameter_groups(adapted, lr=0.1))
    adapted(TOKENS).square().sum().backward()
    optimiser.step()
    moved = {n for n, p in adapted.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if "lotr_core" in n}
    assert lower[0].grad.abs().sum() > 0  # gradients reach the layers below


def test_first_step_is_as_large_as_told():
    """‖ΔW‖ after a step of size η on the cores is η‖D‖ times the gain of the gauge, on average."""
    torch.manual_seed(0)
    for init, gauge in (("balanced", "balanced"), ("reference", "normal")):
        ratios = []
        for seed in range(30):
            layer = ln.add_lotr(
                nn.Sequential(nn.Linear(24, 30)), ["0"], r=(4, 3), init=init, seed=seed
            )[0]
            x = torch.randn(9, 24)
            layer(x).sin().sum().backward()
            step = layer.lotr_core["default"].grad
            with torch.no_grad():
                layer.lotr_core["default"].copy_(step)
            dense = torch.func.grad(
                lambda w, x=x, b=layer.bias: nn.functional.linear(x, w, b).sin().sum()
            )(layer.weight.detach())
            ratios.append((layer.update_of("default").norm() / dense.norm()).item() ** 2)
        wanted = lt.decompose.first_step_gain((1, 30, 24), (4, 3), gauge)
        assert np.mean(ratios) ** 0.5 == pytest.approx(wanted, rel=0.25)


def test_gradient_of_shared_factors_is_the_sum_over_layers():
    adapted = shake(paper()).double()
    adapted(TOKENS).square().sum().backward()
    found = ln.shared_factors(adapted)["12x8"]
    parts = []
    for path, layer in ln.lotr_layers(adapted).items():
        if path == "embed":
            continue
        alone = copy.deepcopy(adapted)
        alone.zero_grad()
        own = alone.get_submodule(path)
        own.lotr_factors["default"] = copy.deepcopy(own.lotr_factors["default"])
        own.sites["default"] = replace(own.sites["default"], siblings=1)
        alone(TOKENS).square().sum().backward()
        parts.append(own.lotr_factors["default"].u.grad)
        assert layer.lotr_factors["default"] is found
    torch.testing.assert_close(found.u.grad, sum(parts))


@pytest.mark.parametrize("r", [1, 2, 4, 8, 16, 32])
def test_counts_of_roberta_base(r):
    config = RobertaConfig(vocab_size=32, num_labels=2)  # 12 layers of 768
    with torch.device("meta"):
        roberta = RobertaForSequenceClassification(config)
    attention = nn.ModuleList(layer.attention for layer in roberta.roberta.encoder.layer)
    for part in attention.modules():  # only what is adapted gets memory
        if isinstance(part, nn.Linear):
            part.to_empty(device="cpu")
    adapted = ln.add_lotr(roberta, ["query", "value"], r=r, group_by="shape")
    wanted = {1: 1560, 2: 3168, 4: 6528, 8: 13824, 16: 30720, 32: 73728}[r]
    assert ln.parameter_count(adapted) == wanted
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == wanted
    assert wanted == lt.parameter_count(ln.stacks_of(adapted)["768x768"])
    ln.train_only(adapted, "cores")
    assert ln.parameter_count(adapted, trainable=True) == 24 * r * r
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == 24 * r * r


def test_what_is_trained():
    adapted = shake(paper())
    optimiser = torch.optim.AdamW(ln.parameter_groups(adapted, lr=0.01, core_lr=0.02))
    assert [(g["name"], g["lr"]) for g in optimiser.param_groups] == [
        ("factors", 0.01), ("cores", 0.02),
    ]  # fmt: skip
    adapted.head.requires_grad_(True)
    assert [g["name"] for g in ln.parameter_groups(adapted, lr=1)] == ["factors", "cores", "other"]
    adapted.head.requires_grad_(False)
    for what, key in (("cores", "lotr_core"), ("factors", "lotr_factors"), ("all", "lotr_")):
        ln.train_only(adapted, what)
        before = {n: p.clone() for n, p in adapted.named_parameters()}
        adapted(TOKENS).square().sum().backward()
        optimiser.step()  # the same optimiser all the time
        optimiser.zero_grad()
        moved = {n for n, p in adapted.named_parameters() if not torch.equal(p, before[n])}
        assert moved == {n for n in before if key in n}
    assert all(len(state) == 3 for state in optimiser.state.values())


def test_several_adapters():
    adapted = shake(ln.add_lotr(model(), ["q"], r=2, name="one"), 1)
    one = adapted(TOKENS)
    ln.add_lotr(adapted, ["q", "v"], r=3, group_by="shape", name="two", alpha=2)
    assert ln.parameter_count(adapted, "one", trainable=True) == 0
    shake(adapted, 2)
    two = adapted(TOKENS)
    ln.set_active(adapted, "one")
    assert torch.equal(adapted(TOKENS), one)
    assert ln.parameter_count(adapted, "two", trainable=True) == 0
    ln.set_active(adapted, "one", "two")
    both = adapted(TOKENS)
    with ln.disabled(adapted):
        base = adapted(TOKENS)
    assert torch.equal(base, model()(TOKENS))
    assert len({y.sum().item() for y in (one, two, both, base)}) == 4
    torch.testing.assert_close(ln.merged_copy(adapted)(TOKENS), both)
    ln.set_active(adapted)
    assert torch.equal(adapted(TOKENS), base)
    for layer in ln.lotr_layers(adapted).values():
        layer.delete_adapter("two")
    with pytest.raises(OptionError, match="no adapter is called 'two'; the model has one"):
        ln.set_active(adapted, "two")


@pytest.mark.parametrize("init", ["balanced", "principal"])
def test_merging(init):
    adapted = shake(ln.add_lotr(model(), TARGETS, r=(3, 2), group_by="shape", init=init))
    wanted = adapted(TOKENS)
    kept = {n: p.clone() for n, p in adapted.named_parameters()}
    merged = ln.merged_copy(adapted)
    assert not ln.lotr_layers(merged)
    torch.testing.assert_close(merged(TOKENS), wanted, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(p, kept[n]) for n, p in adapted.named_parameters())
    ln.merge(adapted, "default")
    ln.merge(adapted, "default")  # once only
    torch.testing.assert_close(adapted(TOKENS), wanted, atol=1e-5, rtol=1e-5)
    assert not torch.equal(adapted.blocks[0].q.weight, kept["blocks.0.q.base_layer.weight"])
    with ln.disabled(adapted):
        torch.testing.assert_close(adapted(TOKENS), model()(TOKENS), atol=1e-5, rtol=1e-5)
    ln.unmerge(adapted)
    for name, parameter in adapted.named_parameters():
        torch.testing.assert_close(parameter, kept[name], atol=1e-6, rtol=1e-6)


def test_continues_low_rank_updates():
    generator = np.random.default_rng(0)
    updates = {
        f"blocks.{i}.{kind}": (
            generator.standard_normal((12, 2)).astype(np.float32) / 3,
            generator.standard_normal((2, 8)).astype(np.float32),
        )
        for i in range(3)
        for kind in "qv"
    }
    exact = ln.add_lotr(model(), ["q", "v"], r=(12, 8), group_by="shape", init=updates, alpha=5)
    for path, layer in ln.lotr_layers(exact).items():
        up, down = updates[path]
        np.testing.assert_allclose(layer.update_of("default").numpy(), up @ down, atol=1e-5)
    errors = []
    for r in (2, 4, 6):
        cut = ln.add_lotr(model(), ["q", "v"], r=r, group_by="shape", init=updates)
        dense = np.stack([up @ down for up, down in updates.values()])
        found = np.stack(
            [layer.update_of("default").numpy() for layer in ln.lotr_layers(cut).values()]
        )
        errors.append(np.linalg.norm(found - dense) / np.linalg.norm(dense))
    assert errors == sorted(errors, reverse=True)
    assert 0.05 < errors[2] < errors[0] < 1
    with pytest.raises(FormatError, match=r"no update for blocks\.0\.out, blocks\.1\.out"):
        ln.add_lotr(model(), ["out"], r=1, init=updates)
    with pytest.raises(FormatError, match=r"the update of blocks\.0\.q is \(12, 2\) times"):
        ln.add_lotr(
            model(),
            ["q"],
            r=1,
            init={**updates, "blocks.0.q": (updates["blocks.0.q"][0], np.ones((2, 7)))},
        )


def test_stacks_in_and_out():
    adapted = shake(ln.add_lotr(model(), TARGETS, r=(3, 2), group_by="shape", alpha=4))
    fresh = ln.add_lotr(model(), TARGETS, r=(3, 2), group_by="shape", alpha=0.7, seed=3)
    stacks = ln.stacks_of(adapted)
    ln.set_stacks(fresh, stacks)
    torch.testing.assert_close(fresh(TOKENS), adapted(TOKENS), atol=1e-5, rtol=1e-5)
    with pytest.raises(OptionError, match="no group is called 'x'; there are"):
        ln.set_stacks(fresh, {"x": stacks["12x8"]})
    with pytest.raises(
        OptionError, match=r"group '12x8' has shape \(6, 12, 8\) and ranks \(3, 2\)"
    ):
        ln.set_stacks(fresh, {"12x8": lt.decompose.random_factors((6, 12, 8), (1, 1))})


def planted(layers=6, m=14, n=11, r1=3, r2=2):
    """Linear layers whose weights differ from the student's by a planted Tucker-2."""
    generator = torch.Generator().manual_seed(4)
    u, v = (
        torch.linalg.qr(torch.randn(k, r, generator=generator))[0] for k, r in ((m, r1), (n, r2))
    )
    truth = lt.Tucker2(u, torch.randn(layers, r1, r2, generator=generator), v)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        student = nn.ModuleList(nn.Linear(n, m) for _ in range(layers))
    inputs = torch.randn(64, n, generator=generator)
    with torch.no_grad():
        wanted = torch.stack([layer(inputs) for layer in student]) + lt.apply(truth, inputs)
    return student, inputs, wanted, truth


def fitted(ranks, **options):
    student, inputs, wanted, truth = planted()
    ln.add_lotr(student, r"\d", r=ranks, **options)
    optimiser = torch.optim.LBFGS(
        [p for p in student.parameters() if p.requires_grad],
        max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimiser.zero_grad()
        loss = (torch.stack([layer(inputs) for layer in student]) - wanted).square().mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    found = next(iter(ln.stacks_of(student).values()))
    return float(lt.distance(found, truth) / lt.norm(truth)), truth


def test_a_planted_update_is_learnt_at_its_ranks_and_no_lower():
    error, truth = fitted((3, 2))
    assert error < 1e-3
    low, _ = fitted((2, 2))
    spectrum = lt.analysis.mode_spectra(truth)
    bound = float(np.linalg.norm(spectrum.left[2:])) / spectrum.norm
    assert bound > 0.05
    assert low > 0.99 * bound


def test_factors_alone_learn_from_zero_u():
    with pytest.raises(OptionError, match="the cores are zero, so U and V would have no gradient"):
        ln.add_lotr(model(), ["q"], r=2, train="factors")
    adapted = ln.add_lotr(model(), ["q"], r=2, init="zero-u", train="factors")
    adapted(TOKENS).square().sum().backward()
    assert ln.shared_factors(adapted)["q"].u.grad.abs().sum() > 0


WRONG = [
    ({"targets": ["query"]}, OptionError, "matches query; this model has embed, head, out, q, v"),
    ({"targets": "blocks[.]7.*"}, OptionError, "no module matches blocks"),
    ({"targets": "("}, OptionError, "a bracket is not closed"),
    ({"targets": []}, OptionError, "none given"),
    ({"targets": ["blocks"]}, FormatError, r"found blocks \(ModuleList\)"),
    ({"r": 13}, RankError, r"r1 of group 'q' must lie in 1 … m = 12, the size of blocks.0.q"),
    ({"r": (12, 9)}, RankError, r"r2 of group 'q' must lie in 1 … n = 8"),
    ({"r": 0}, RankError, "r1 of group 'q'"),
    ({"r": 1.5}, RankError, r"r must be a whole number or a pair \(r1, r2\); found 1.5"),
    ({"ranks": {"z": 2}}, OptionError, "ranks are given for z; the groups are q, out"),
    ({"group_by": "("}, OptionError, "regular expression"),
    ({"group_by": {"a": ["q"]}}, OptionError, r"in no group: blocks.0.out, blocks.1.out"),
    ({"group_by": {"a": ["q", "k"]}}, OptionError, "names k, which is no target"),
    ({"group_by": {"a": ["q", "out"], "b": ["q"]}}, OptionError, "in the groups 'a' and 'b'"),
    ({"group_by": {"a": "q"}}, OptionError, "must list modules"),
    ({"group_by": {"a": ["q", "out"]}}, FormatError,
     r"which cannot share U and V: blocks.0.q \(12, 8\), blocks.0.out \(8, 12\)"),
    ({"init": "zeros"}, OptionError, "init must be balanced, .*; found 'zeros'"),
    ({"train": "core"}, OptionError, "train must be"),
    ({"alpha": -1}, OptionError, "alpha must be above 0; found -1"),
    ({"name": "a.b"}, OptionError, "must not be empty or contain a dot"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_wrong_use(options, error, message):
    whole = model()
    with pytest.raises(error, match=message):
        ln.add_lotr(whole, **{"targets": ["q", "out"], "r": 2} | options)
    assert not ln.lotr_layers(whole)
    assert all(p.requires_grad for p in whole.parameters())


def test_wrong_use_of_adapted_models():
    adapted = paper()
    with pytest.raises(OptionError, match="has an adapter 'default' already"):
        ln.add_lotr(adapted, ["q"], r=2)
    with pytest.raises(OptionError, match="train must be"):
        ln.train_only(adapted, "nothing")
    ln.merge(adapted)
    with pytest.raises(OptionError, match="is merged; unmerge it"):
        adapted.blocks[0].q.delete_adapter("default")
    ln.set_active(adapted)
    with pytest.raises(OptionError, match="no parameter is trained"):
        ln.parameter_groups(adapted, lr=1)
    whole = model().requires_grad_(False)
    for block in whole.blocks[:2]:
        block.q.weight = nn.Parameter(block.q.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedError, match=r"found blocks\.0\.q, blocks\.1\.q: load the model"):
        ln.add_lotr(whole, ["q", "v"], r=2)


def test_tied_weights_are_not_changed():
    whole = model()
    whole.head = nn.Linear(8, 17, bias=False)
    whole.head.weight = whole.embed.weight
    with pytest.raises(OptionError, match=r"the weight of embed is also head\.weight, which would"):
        ln.add_lotr(whole, ["embed"], r=2, init="principal")
    adapted = shake(ln.add_lotr(whole, ["embed"], r=2))
    wanted = adapted(TOKENS)
    with pytest.raises(OptionError, match="untie them first"):
        ln.merge(adapted)
    with pytest.raises(OptionError, match="untie them first"):
        ln.merged_copy(adapted)
    whole.head.weight = nn.Parameter(whole.head.weight.detach().clone())
    torch.testing.assert_close(ln.merged_copy(adapted)(TOKENS), wanted)


class Crossing(nn.Module):
    """Queries of one input, keys and values of another, all with one pair of factors."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, y):
        return x + torch.tanh(self.q(x)) * self.k(y) + self.v(y)


def test_different_inputs_in_one_block_and_checkpointing():
    torch.manual_seed(0)
    blocks = nn.ModuleList(Crossing() for _ in range(3))
    shake(ln.add_lotr(blocks, ["q", "k", "v"], r=2, group_by="shape"))
    assert blocks[0].k.sites["default"].siblings == 3
    x, y = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8)

    def gradients(run):
        blocks.zero_grad()
        out = x
        for block in blocks:
            out = run(block, out)
        out.square().sum().backward()
        return [p.grad.clone() for p in blocks.parameters() if p.requires_grad]

    wanted = gradients(lambda block, out: block(out, y))
    for reentrant in (False, True):
        found = gradients(
            lambda block, out, how=reentrant: torch.utils.checkpoint.checkpoint(
                block, out, y, use_reentrant=how
            )
        )
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_groups_by_expression_and_by_hand():
    adapted = ln.add_lotr(
        model(), ["q", "v"], r=2, group_by=r"blocks\.(0|1|2)", ranks={"1": (4, 3)}
    )
    assert {n: f.ranks for n, f in ln.shared_factors(adapted).items()} == {
        "0": (2, 2), "1": (4, 3), "2": (2, 2),
    }  # fmt: skip
    by_hand = {
        "low": ["blocks.0.q", "blocks.0.v"],
        "high": ["blocks.1.q", "blocks.2.q", "blocks.1.v", "blocks.2.v"],
    }
    given = ln.add_lotr(model(), ["q", "v"], r=2, group_by=by_hand)
    assert sorted(ln.shared_factors(given)) == ["high", "low"]
    assert len(pairs(given)) == 2


def test_gradient_checkpointing_agrees():
    adapted = shake(paper())
    adapted(TOKENS).square().sum().backward()
    wanted = [p.grad.clone() for p in adapted.parameters() if p.requires_grad]
    for reentrant in (False, True):
        adapted.zero_grad()
        x = adapted.embed(TOKENS)
        for block in adapted.blocks:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant)
        adapted.head(x).square().sum().backward()
        found = [p.grad for p in adapted.parameters() if p.requires_grad]
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)
