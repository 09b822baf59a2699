"""Derivatives flow through the algebra in torch, or are refused; and apply compiles whole."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import lotr_tn as lt
from lotr_tn.errors import DerivativeError
from tests.conftest import stack_on

M, N, L = 7, 5, 3
RANKS = (2, 1, 3)


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


MAKERS = {
    "lora": (lambda up, down: lt.LoRAStack(up, down, RANKS), [(M, 6), (6, N)]),
    "tucker2": (lt.Tucker2, [(M, 4), (L, 4, 3), (N, 3)]),
    "low-rank tucker2": (
        lambda u, up, down, v: lt.LowRankTucker2(u, up, down, v, RANKS),
        [(M, 4), (4, 6), (6, 3), (N, 3)],
    ),
    "tucker1 in": (lambda s, own: lt.Tucker1(s, own, "in"), [(N, 3), (L, M, 3)]),
    "tucker1 out": (lambda s, own: lt.Tucker1(s, own, "out"), [(M, 3), (L, N, 3)]),
    "dense": (lt.Dense, [(L, M, N)]),
}
each_format = pytest.mark.parametrize("kind", MAKERS)


def leaves(kind, seed=0):
    return [numbers(*shape, seed=seed + i) for i, shape in enumerate(MAKERS[kind][1])]


OTHER = lt.LoRAStack(numbers(M, 6, seed=8).detach(), numbers(6, N, seed=9).detach(), RANKS)
FUNCTIONS = {
    "norm": lt.norm,
    "layer norms": lt.layer_norms,
    "spectral norms": lambda s: lt.layer_norms(s, "spectral"),
    "nuclear norms": lambda s: lt.layer_norms(s, "nuclear"),
    "inner": lambda s: lt.inner(s, OTHER),
    "cosine": lambda s: lt.cosine(s, OTHER),
    "distance": lambda s: lt.distance(s, OTHER),
    "gram": lambda s: lt.gram([s, OTHER, s]),
    "to_dense": lt.to_dense,
    "sum": lambda s: lt.to_dense(s + OTHER),
    "scaled": lambda s: lt.to_dense(lt.scale(s, [2.0, 3.0, -1.0])),
    "all layers": lambda s: lt.apply(s, OTHER.down[:2, :]),
    "one layer": lambda s: lt.apply(s, OTHER.down[:2, :], layer=1),
    "a layer a row": lambda s: lt.apply(s, OTHER.down[:3, :], layer=[2, 0, 2]),
    "transposed": lambda s: lt.apply_transpose(s, OTHER.up.mT[:2, :], layer=-1),
}


@each_format
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives(kind, name):
    make = MAKERS[kind][0]
    assert gradcheck(lambda *x: FUNCTIONS[name](make(*x)), leaves(kind), fast_mode=True)


@each_format
@pytest.mark.parametrize("name", ["norm", "inner", "all layers"])
def test_second_derivatives(kind, name):
    make = MAKERS[kind][0]
    assert gradgradcheck(lambda *x: FUNCTIONS[name](make(*x)), leaves(kind), fast_mode=True)


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "dense"])
def test_round_at_fixed_rank(kind):
    """The derivative of the rounded updates, through each factor that comes out."""
    make = MAKERS[kind][0]
    rank = (2, 1) if kind == "tucker2" else 2

    def rounded(*x):
        return lt.to_dense(lt.round(make(*x), rank))

    assert gradcheck(rounded, leaves(kind), fast_mode=True)
    with torch.no_grad():
        plain = lt.to_dense(lt.round(make(*leaves(kind)), rank))
    assert torch.allclose(rounded(*leaves(kind)), plain, atol=1e-12)


def test_equal_singular_values_are_refused_in_the_backward_pass():
    u = torch.linalg.qr(numbers(M, 2).detach())[0].requires_grad_()
    v = torch.linalg.qr(numbers(N, 2, seed=1).detach())[0].mT.clone().requires_grad_()
    found = lt.round(lt.LoRAStack(u, v, (2,)), 1)
    with pytest.raises(DerivativeError, match=r"values 1 .* and 2"):
        lt.to_dense(found).sum().backward()


def test_zero_stacks_have_zero_derivative():
    up, down = numbers(M, 6), numbers(6, N, seed=1)
    zero = lt.LoRAStack(0 * up, 0 * down, RANKS)
    lt.norm(zero).backward()
    assert not up.grad.any()
    assert not torch.isnan(up.grad).any()


@pytest.mark.parametrize(
    "decompose",
    [
        lambda s: lt.hosvd(s, 2),
        lambda s: lt.hooi(s, 2),
        lambda s: lt.tucker1(s, 2),
        lambda s: lt.round(s, lt.RelativeError(0.1)),
        lambda s: lt.decompose.hooi_in_metric(s, 2, torch.ones(N, dtype=torch.float64)),
        lt.canonicalize,
    ],
)
def test_what_has_no_derivative_is_refused(decompose):
    stack = lt.LoRAStack(numbers(M, 6), numbers(6, N, seed=1), RANKS)
    with pytest.raises(DerivativeError, match="detach"):
        decompose(stack)
    with torch.no_grad():
        decompose(stack)


def test_a_scale_can_be_trained():
    factors = torch.ones(L, dtype=torch.float64, requires_grad=True)
    stack = stack_on(lt.Dense(np.ones((L, 2, 2))), "torch")
    lt.norm(lt.scale(stack, factors)).backward()
    assert torch.allclose(factors.grad, torch.full((L,), 4 / 12**0.5, dtype=torch.float64))


@each_format
def test_apply_compiles_whole(kind):
    """To all layers and to one, in both dtypes: one graph, as compiling is what takes time."""
    make = MAKERS[kind][0]
    known = [
        [x.detach().to(dtype) for x in (numbers(2, N), *leaves(kind))]
        for dtype in (torch.float32, torch.bfloat16)
    ]

    def applied(known):
        stacks = [(make(*arrays), x) for x, *arrays in known]
        return [lt.apply(stack, x, layer=layer) for stack, x in stacks for layer in (None, 1)]

    torch._dynamo.reset()
    compiled = torch.compile(applied, fullgraph=True, backend="aot_eager")
    for found, wanted in zip(compiled(known), applied(known), strict=True):
        assert found.dtype == wanted.dtype
        assert torch.allclose(found, wanted, atol=1e-6, rtol=1e-2)
    assert torch._dynamo.utils.counters["graph_break"] == {}
