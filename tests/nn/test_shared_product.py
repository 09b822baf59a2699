"""x V, shared by layers that are given one x: when it is, and when it must not be."""

import copy
import gc
import pickle

import pytest
import torch

from lotr_tn.nn import SharedProduct


@pytest.fixture
def x():
    return torch.randn(5, 8)


@pytest.fixture
def v():
    return torch.randn(8, 3, requires_grad=True)


def test_two_layers_have_one_product(x, v):
    product = SharedProduct()
    one = product(x, v, "q", 2)
    assert torch.equal(one, x @ v)
    assert product(x, v, "v", 2) is one
    assert product.seen is None
    (one.sum() + one.sum()).backward()
    torch.testing.assert_close(v.grad, 2 * x.mT @ torch.ones(5, 3))


def doubled(v):
    with torch.no_grad():
        return v.mul_(2)


@pytest.mark.parametrize(
    "change",
    {
        "another x": lambda x, v: (x.clone(), v, "v", 2),
        "x in place": lambda x, v: (x.mul_(2), v, "v", 2),
        "another v": lambda x, v: (x, v.detach().clone(), "v", 2),
        "v in place": lambda x, v: (x, doubled(v), "v", 2),
        "the same layer": lambda x, v: (x, v, "q", 2),
        "no sibling": lambda x, v: (x, v, "v", 1),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_product_is_not_given_to(change, x, v):
    product = SharedProduct()
    one = product(x, v, "q", 2)
    x, v, *rest = change[1](x, v)
    two = product(x, v, *rest)
    assert two is not one
    torch.testing.assert_close(two, x @ v)


def test_modes_are_kept_apart(x, v):
    product = SharedProduct()
    with torch.no_grad():
        one = product(x, v, "q", 2)
    two = product(x, v, "v", 2)
    assert two is not one
    assert two.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        three = product(x, v, "k", 3)
    assert three.dtype == torch.bfloat16
    with torch.inference_mode():
        inside = torch.randn(5, 8)
        assert product(inside, v, "q", 2) is not product(inside, v, "v", 2)


def test_it_can_be_switched_off(x, v, monkeypatch):
    product = SharedProduct()
    monkeypatch.setattr(SharedProduct, "on", False)
    one = product(x, v, "q", 2)
    assert product.seen is None
    two = product(x, v, "v", 2)
    assert two is not one
    assert torch.equal(one, two)


def test_x_is_not_kept_alive(v):
    product = SharedProduct()
    product(torch.randn(5, 8), v.detach(), "q", 2)
    gc.collect()
    assert product.seen.x() is None


def test_a_copy_has_seen_nothing(x, v):
    product = SharedProduct()
    product(x, v, "q", 2)
    for made in (copy.deepcopy(product), copy.copy(product), pickle.loads(pickle.dumps(product))):
        assert made.seen is None
    assert product.seen is not None
