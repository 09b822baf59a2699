"""One layer: what it computes, in which order, and with how much memory."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

import lotr_tn as lt
import lotr_tn.nn as ln
from lotr_tn.errors import FormatError, OptionError, UnsupportedError
from lotr_tn.nn.forms.tucker2 import folds_left, folds_right
from tests.nn.blocks import TOKENS, model, pairs, shake
from tests.tripwire import LargestTensor


class Products(TorchDispatchMode):
    """Records the shapes that go into matrix products."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.shapes.append(tuple(tuple(a.shape) for a in args[-2:]))
        return func(*args, **(kwargs or {}))


def layer_of(base, ranks, *, scale=1.5, dtype=torch.float64, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    linear = not isinstance(base, nn.Embedding)
    layer = (ln.LoTRLinear if linear else ln.LoTREmbedding)(base.to(dtype))
    m, n = layer.weight.shape
    if isinstance(base, Conv1D | nn.Embedding):
        m, n = n, m
    u, v, core = (
        torch.randn(shape, generator=generator, dtype=dtype)
        for shape in ((m, ranks[0]), (n, ranks[1]), ranks)
    )
    layer.hold("default", ln.SharedFactors(u, v), core, scale=scale, **more)
    layer.set_adapter("default")
    return layer, scale * u @ core @ v.mT


@pytest.mark.parametrize("build", [nn.Linear, Conv1D])
@pytest.mark.parametrize(
    ("rows", "ranks"), [(3, (2, 4)), (400, (2, 4)), (400, (4, 2)), (1, (5, 5))]
)
def test_output_is_base_plus_update(build, rows, ranks):
    """In every order that the sizes ask for, and against the matrix itself."""
    layer, update = layer_of(build(7, 6), ranks)
    n = 7 if build is nn.Linear else 6
    x = torch.randn(2, rows, n, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ update.mT)
    torch.testing.assert_close(layer.update_of("default"), update)


def test_all_orders_are_met_by_the_sizes_above():
    chosen = {
        (folds_left(rows, 6, 7, *ranks), folds_right(rows, 6, 7, *ranks))
        for rows, ranks in ((2, (5, 5)), (800, (2, 4)), (800, (4, 2)))
    }
    assert chosen == {(False, False), (False, True), (True, False)}


def test_embedding_looks_up():
    layer, update = layer_of(nn.Embedding(11, 6, padding_idx=2), (2, 4))
    tokens = torch.tensor([[1, 2, 10], [0, 1, 1]])
    torch.testing.assert_close(layer(tokens), layer.base_layer(tokens) + update.mT[tokens])
    layer.merge()
    torch.testing.assert_close(layer.weight.mT.detach(), layer.base_layer.weight.mT)
    torch.testing.assert_close(layer(tokens), layer.base_layer(tokens))


class Scaled(nn.Embedding):
    """An embedding that multiplies what it looks up, as Gemma's does."""

    embed_scale = 2.5

    def forward(self, x):
        return super().forward(x) * self.embed_scale


def test_embedding_with_a_scale_of_its_own():
    layer, update = layer_of(Scaled(11, 6), (2, 4))
    tokens = torch.tensor([1, 5, 10])
    wanted = 2.5 * (layer.weight + update.mT)[tokens]
    torch.testing.assert_close(layer(tokens), wanted)


@pytest.mark.parametrize("rows", [2, 90])
def test_gradcheck(rows):
    layer, _ = layer_of(nn.Linear(4, 5), (2, 3))
    x = torch.randn(rows, 4, dtype=torch.float64, requires_grad=True)
    factors, core = layer.lotr_factors["default"], layer.lotr_core["default"]

    def run(x, u, v, core):
        parts = {"base_layer.weight": layer.weight, "base_layer.bias": layer.bias}
        parts |= {"lotr_factors.default.u": u, "lotr_factors.default.v": v}
        return torch.func.functional_call(layer, parts | {"lotr_core.default": core}, (x,))

    assert torch.autograd.gradcheck(run, (x, factors.u, factors.v, core), fast_mode=rows > 10)


def test_no_matrix_of_the_layers_size_is_made():
    m, n, rows = 3000, 2000, 5
    factors = ln.SharedFactors(torch.randn(m, 4), torch.randn(n, 3))
    core = nn.Parameter(torch.randn(4, 3))
    x = torch.randn(rows, n, requires_grad=True)
    with LargestTensor() as seen:
        factors.added(torch.zeros(rows, m), x, {"core": core}, ln.Site(), 1.0).sum().backward()
    assert x.grad is not None
    assert seen.entries <= m * rows


def test_one_product_serves_both_layers_that_are_given_one_input():
    adapted = ln.add_lotr(model(), ["q", "v"], r=(4, 3), group_by="shape")
    alone = ln.add_lotr(model(), ["q", "v"], r=(4, 3))
    for each, products in ((adapted, 1), (alone, 2)):
        shake(each)
        for with_gradient in (True, False):
            with Products() as seen, torch.set_grad_enabled(with_gradient):
                each(TOKENS)
            assert seen.shapes.count(((20, 8), (8, 3))) == 3 * products
    before = [parameter.grad for parameter in adapted.parameters()]
    assert before == [None] * len(before)
    with Products() as seen:
        adapted(TOKENS).sum().backward()
    assert seen.shapes.count(((8, 20), (20, 3))) == 3  # V's gradient, once a block
    assert ln.shared_factors(adapted)["12x8"].product.seen is None


def test_a_product_is_not_reused_when_anything_changed():
    adapted = shake(ln.add_lotr(model(), ["q", "v"], r=3, group_by="shape"))
    q, v = adapted.blocks[0].q, adapted.blocks[0].v
    x = torch.randn(5, 8)
    with torch.no_grad():
        q(x)
        x.mul_(2)
        torch.testing.assert_close(v(x), v.base_layer(x) + x @ v.update_of("default").mT)
        q(x)
        ln.shared_factors(adapted)["12x8"].v.mul_(2)
        torch.testing.assert_close(v(x), v.base_layer(x) + x @ v.update_of("default").mT)
        q(x)
    v(x).sum().backward()  # not the product that was made without a graph
    assert ln.shared_factors(adapted)["12x8"].v.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_of_the_base_is_kept(dtype):
    adapted = shake(ln.add_lotr(model(dtype=dtype), ["q", "embed"], r=2))
    assert {p.dtype for p in adapted.parameters()} == {dtype}
    assert adapted(TOKENS).dtype == dtype


def test_wider_adapter_on_a_half_precision_layer():
    adapted = ln.add_lotr(model(dtype=torch.bfloat16), ["q", "v"], r=2, group_by="shape")
    for factors in ln.shared_factors(adapted).values():
        factors.float()
    for layer in ln.lotr_layers(adapted).values():
        layer.lotr_core.float()
    assert shake(adapted)(TOKENS).dtype == torch.bfloat16


def test_autocast_is_respected():
    adapted = shake(ln.add_lotr(model(), ["q", "v"], r=2, group_by="shape"))
    x = torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = adapted.blocks[0].q(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), adapted.blocks[0].q(x), rtol=0.05, atol=0.05)


def test_dropout_only_while_training():
    adapted = shake(ln.add_lotr(model(), ["q", "v"], r=2, group_by="shape", dropout=0.5))
    plain = shake(ln.add_lotr(model(), ["q", "v"], r=2, group_by="shape"))
    assert torch.equal(adapted.eval()(TOKENS), plain(TOKENS))
    torch.manual_seed(0)
    one = adapted.train()(TOKENS)
    assert not torch.equal(one, adapted(TOKENS))


def test_scale():
    for ranks, more, wanted in (
        (4, {}, 2),
        (4, {"root_scale": True}, 4),
        ((2, 8), {}, 2),
        ((2, 8), {"root_scale": True}, 4),
    ):
        adapted = ln.add_lotr(model(), ["q"], r=ranks, alpha=8, **more)
        assert adapted.blocks[1].q.scaling["default"] == wanted


def test_compiles_without_graph_breaks():
    adapted = shake(ln.add_lotr(model(), ["q", "v", "embed"], r=(3, 2), group_by="shape"))
    compiled = torch.compile(adapted, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(TOKENS), adapted(TOKENS))
    compiled(TOKENS).sum().backward()
    grads = [p.grad.clone() for p in adapted.parameters() if p.requires_grad]
    adapted.zero_grad()
    adapted(TOKENS).sum().backward()
    for found, wanted in zip(
        grads, [p.grad for p in adapted.parameters() if p.requires_grad], strict=True
    ):
        torch.testing.assert_close(found, wanted)
    assert len(pairs(adapted)) == 2


def test_what_a_layer_refuses():
    factors = ln.SharedFactors(torch.ones(5, 2), torch.ones(4, 3), "attention")
    layer = ln.LoTRLinear(nn.Linear(4, 5))
    with pytest.raises(FormatError, match=r"core must be \(2, 3\); found \(3, 2\)"):
        layer.hold("a", factors, torch.ones(3, 2))
    with pytest.raises(FormatError, match=r"group 'attention' are for layers of shape \(5, 4\)"):
        ln.LoTRLinear(nn.Linear(5, 4)).hold("a", factors, torch.ones(2, 3))
    with pytest.raises(OptionError, match="dropout must be"):
        layer.hold("a", factors, torch.ones(2, 3), dropout=1.0)
    with pytest.raises(OptionError, match="train must be all, cores or factors; found 'core'"):
        layer.hold("a", factors, torch.ones(2, 3), trained="core")
    with pytest.raises(FormatError, match=r"found the layer \(LayerNorm\)"):
        ln.LoTRLinear(nn.LayerNorm(4))
    attention = nn.MultiheadAttention(8, 2)
    with pytest.raises(FormatError, match=r"found out_proj \(NonDynamicallyQuantizableLinear\)"):
        ln.add_lotr(attention, ["out_proj"], r=2)  # it is never called, so nothing would be added
    with pytest.raises(FormatError, match=r"needed an nn\.Embedding"):
        ln.LoTREmbedding(nn.Linear(4, 5))
    with pytest.raises(FormatError, match=r"u must be a matrix; found shape \(3,\)"):
        ln.SharedFactors(torch.ones(3), torch.ones(3, 1))
    whole = nn.Linear(4, 5).requires_grad_(False)
    whole.weight = nn.Parameter(whole.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedError, match="quantised layers are not supported"):
        ln.LoTRLinear(whole)


def test_stack_of_a_layer_is_what_the_library_computes_with():
    adapted = shake(ln.add_lotr(model(), ["q"], r=(3, 2), alpha=5))
    stack = ln.stacks_of(adapted)["q"]
    x = torch.randn(6, 8)
    layer = adapted.blocks[2].q
    torch.testing.assert_close(
        layer(x).detach(), layer.base_layer(x).detach() + lt.apply(stack, x, layer=2)
    )
