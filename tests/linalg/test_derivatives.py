"""The derivative of a truncated SVD agrees with differences, or is refused."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from lotr_tn.errors import BackendError, DerivativeError, FormatError, RankError
from lotr_tn.linalg.derivatives import leading_vectors_with_gradient, truncated_svd_with_gradient
from tests.tripwire import LargestTensor

SHAPES = {  # m, r, n, rank
    "low rank": (7, 3, 5, 2),
    "all of a low rank": (7, 3, 5, 3),
    "wide": (4, 3, 9, 2),
    "r above both": (4, 8, 3, 2),
    "r above both, all": (4, 8, 3, 3),
    "r between": (3, 5, 6, 2),
    "square, all": (4, 4, 4, 4),
    "one": (5, 1, 4, 1),
}

PARTS = {
    "U": lambda u, s, v: u,
    "s": lambda u, s, v: s,
    "V": lambda u, s, v: v,
    "product": lambda u, s, v: (u * s) @ v.mT,
    "projector": lambda u, s, v: u @ u.mT,
    "polar": lambda u, s, v: u @ v.mT,
    "norm": lambda u, s, v: s.square().sum(),
}


def factors(m, r, n, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(m, r, generator=generator, dtype=torch.float64)
    down = torch.randn(r, n, generator=generator, dtype=torch.float64)
    return up.to(dtype).requires_grad_(), down.to(dtype).requires_grad_()


def planted(values, m=7, n=6, seed=0):
    """Factors of a matrix with these singular values, and its singular vectors."""
    up, down = factors(m, len(values), n, seed)
    left, right = torch.linalg.qr(up.detach()).Q, torch.linalg.qr(down.detach().mT).Q
    up = (left * torch.tensor(values, dtype=torch.float64)).requires_grad_()
    return up, right.mT.clone().requires_grad_(), left, right


def check(part, up, down, rank):
    inputs = tuple(x.detach().clone().requires_grad_() for x in (up, down))
    return gradcheck(
        lambda up, down: part(*truncated_svd_with_gradient(up, down, rank)), inputs, atol=1e-6
    )


def each_part(u, s, v):
    """All of `PARTS`, each differentiated by itself against one set of differences."""
    return (u, s, v, *(part(u, s, v) for name, part in PARTS.items() if name not in set("UsV")))


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_differences(shape):
    m, r, n, rank = SHAPES[shape]
    assert check(each_part, *factors(m, r, n, seed=4), rank)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("column", ["zero", "twice"])
def test_factors_that_lack_column_rank(column, rank):
    up, down = (x.detach() for x in factors(7, 4, 6))
    up[:, 3] = {"zero": torch.zeros(7), "twice": up[:, 0]}[column]
    assert check(each_part, up, down, rank)
    assert check(each_part, down.mT, up.mT, rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forward(dtype):
    up, down = (x.detach() for x in factors(9, 4, 6, dtype=dtype))
    u, s, v = truncated_svd_with_gradient(up, down, 3)
    product = up.double() @ down.double()
    expected = torch.linalg.svdvals(product)[:3]
    assert u.dtype == s.dtype == v.dtype == torch.float64
    assert (u.shape, s.shape, v.shape) == ((9, 3), (3,), (6, 3))
    torch.testing.assert_close(s, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(product @ v, u * s, rtol=0, atol=1e-13 * float(s[0]))
    largest = u.abs().argmax(0)
    assert (u[largest, torch.arange(3)] > 0).all()


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("shape", [(4, 6, 5), (6, 7, 4), (4, 9, 5)])
def test_loss_of_the_product_agrees_with_a_dense_svd(shape, rank):
    up, down = factors(*shape, seed=1)
    target = torch.randn(shape[0], shape[2], dtype=torch.float64)

    def loss(u, s, v):
        return ((u * s) @ v.mT - target).pow(3).sum()

    ours = torch.autograd.grad(loss(*truncated_svd_with_gradient(up, down, rank)), (up, down))
    u, s, vt = torch.linalg.svd(up @ down, full_matrices=False)
    dense = torch.autograd.grad(loss(u[:, :rank], s[:rank], vt[:rank].mT), (up, down))
    for one, other in zip(ours, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_all_values_kept_give_the_derivative_of_the_product():
    up, down = factors(7, 3, 5)
    weight = torch.randn(7, 5, dtype=torch.float64)
    u, s, v = truncated_svd_with_gradient(up, down, 3)
    found = torch.autograd.grad((((u * s) @ v.mT) * weight).sum(), (up, down))
    torch.testing.assert_close(found[0], weight @ down.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], up.mT @ weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gap", [1e-3, 1e-5, 1e-7, 1e-9])
def test_accuracy_falls_with_the_gap_as_documented(gap):
    values = torch.tensor([1, 1 - gap, 0.3], dtype=torch.float64)
    up, down = torch.diag(values).requires_grad_(), torch.eye(3, dtype=torch.float64)
    u, _, _ = truncated_svd_with_gradient(up, down, 1)
    weight = torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64)
    (found,) = torch.autograd.grad((u[:, 0] * weight).sum(), up)
    s = values
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for i in (1, 2):
        f = weight[i] / ((s[0] - s[i]) * (s[0] + s[i]))
        expected[i, 0], expected[0, i] = f * s[0], f * s[i]
    assert (found - expected).norm() <= 2e-15 / gap * expected.norm()


def test_accuracy_between_dense_vectors():
    """The same at vectors that are rounded: 10 digits at a gap of 1e-6."""
    gap = 1e-6
    up, down, left, right = planted([1, 1 - gap, 0.5], m=8, n=7)
    u, _, _ = truncated_svd_with_gradient(up, down, 1)
    sign = torch.sign((u[:, 0] * left[:, 0]).sum()).detach()
    (found,) = torch.autograd.grad(u[2, 0], up)
    s, weight = (1, 1 - gap, 0.5), torch.zeros(8, dtype=torch.float64)
    weight[2] = sign
    expected = torch.outer(weight - left @ (left.mT @ weight), right[:, 0])
    for i in (1, 2):
        f = left[:, i] @ weight / ((s[0] - s[i]) * (s[0] + s[i]))
        expected += f * s[0] * torch.outer(left[:, i], right[:, 0])
        expected += f * s[i] * torch.outer(left[:, 0], right[:, i])
    expected = expected @ down.detach().mT
    assert (found - expected).norm() <= 2e-9 * expected.norm()


def test_equal_dropped_values_do_not_matter():
    up, down, _, _ = planted([3, 2, 1, 1, 1])
    assert check(each_part, up, down, 2)


def backward(part, up, down, rank):
    result = part(*truncated_svd_with_gradient(up, down, rank))
    weight = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).double()
    return torch.autograd.grad((result * weight).sum(), (up, down))


@pytest.mark.parametrize("part", ["U", "s", "V", "product", "projector", "polar"])
def test_equal_kept_values_are_refused(part):
    up, down, _, _ = planted([3, 2, 2, 1])
    with pytest.raises(DerivativeError, match=r"values 2 \(2\) and 3 \(2\), which are both kept"):
        backward(PARTS[part], up, down, 3)
    with pytest.raises(
        DerivativeError, match=r"at rank 4, .* choose a rank of at most 1, or detach"
    ):
        backward(PARTS[part], up, down, 4)


@pytest.mark.parametrize("part", sorted(PARTS))
def test_equal_kept_and_dropped_values_are_refused(part):
    up, down, _, _ = planted([3, 2, 2, 1])
    with pytest.raises(
        DerivativeError,
        match=r"2 \(2\) and 3 \(2\), of which only the first is kept at rank 2.* at most 1",
    ):
        backward(PARTS[part], up, down, 2)


@pytest.mark.parametrize("part", sorted(PARTS.keys() - {"norm"}))
def test_a_kept_value_of_zero_is_refused(part):
    for values in ([3, 2, 0], [3, 2, 1e-11], [3, 2, 0, 0]):
        up, down, _, _ = planted(values)
        with pytest.raises(DerivativeError, match=r"value 3 \(.*\), kept at rank 3, is zero"):
            backward(PARTS[part], up, down, 3)


def test_zero_factors_are_refused():
    up, down = factors(5, 2, 4)
    zero = torch.zeros_like(up).requires_grad_()
    with pytest.raises(DerivativeError, match=r"value 1 .* choose another input"):
        backward(PARTS["s"], zero, down, 1)
    with pytest.raises(DerivativeError, match=r"value 1 .* choose another input"):
        backward(PARTS["U"], *(x.requires_grad_() for x in (torch.eye(3), torch.zeros(3, 3))), 2)
    with pytest.raises(DerivativeError, match=r"values 1 \(1\) and 2 .* choose another input"):
        backward(PARTS["U"], *(torch.eye(3).requires_grad_() for _ in range(2)), 3)


UNTOUCHED = {
    "first vectors": lambda u, s, v: (u[:, :1], v[:, :1]),
    "first value": lambda u, s, v: s[0],
    "nothing but zero": lambda u, s, v: 0 * u,
}


@pytest.mark.parametrize("part", UNTOUCHED)
@pytest.mark.parametrize(
    ("values", "rank"),
    [([3, 2, 2, 1], 3), ([3, 2, 2, 1], 2), ([3, 2, 0], 3), ([3, 0, 0], 2), ([3, 0, 0], 3)],
)
def test_what_a_loss_leaves_out_is_not_refused(part, values, rank):
    up, down, _, _ = planted(values)
    assert check(UNTOUCHED[part], up, down, rank)


def test_smooth_functions_of_a_kept_value_of_zero_have_a_derivative():
    for values in ([3, 2, 0], [3, 2, 0, 0]):
        up, down, _, _ = planted(values)
        assert check(PARTS["norm"], up, down, 3)


def test_sums_over_equal_kept_values_have_a_derivative():
    up, down, _, _ = planted([3, 2, 2, 1])
    for part in (PARTS["norm"], lambda u, s, v: s.sum(), lambda u, s, v: s.exp().sum()):
        for rank in (3, 4):
            assert check(part, up, down, rank)
    for part in (lambda u, s, v: s[1], lambda u, s, v: s[0] + s[1] + 1.001 * s[2]):
        with pytest.raises(DerivativeError):
            backward(part, up, down, 3)


def test_why_the_product_is_refused_at_equal_values():
    """Two losses of the matrix alone: equal gradients of U, s and V, yet unequal derivatives."""
    up, down = planted([2, 2], m=5, n=4)[:2]
    u, s, v = (x.detach() for x in truncated_svd_with_gradient(up, down, 2))
    weight = torch.outer(u[:, 0], v[:, 1])

    def product(u, s, v):
        return torch.einsum("mk,k,nk,mn", u, s, v, weight)

    def with_rotation(u, s, v):
        return product(u, s, v) + 3 * product(u, s - 2, v)

    sent = []
    for loss in (product, with_rotation):
        free = [x.clone().requires_grad_() for x in (u, s, v)]
        sent.append(torch.autograd.grad(loss(*free), free))
    for one, other in zip(*sent, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)

    step = 1e-4 * (torch.outer(u[:, 0], v[:, 1]) + torch.outer(u[:, 1], v[:, 0]))
    slopes = []
    for loss in (product, with_rotation):
        ends = [
            loss(
                *truncated_svd_with_gradient((u * s) @ v.mT + sign * step, torch.eye(4).double(), 2)
            )
            for sign in (1, -1)
        ]
        slopes.append(float(ends[0] - ends[1]) / 2e-4)
    assert slopes == pytest.approx([1, 4], rel=1e-6)


def test_terms_that_cancel_widen_what_counts_as_equal():
    """Singular values are known to 1e-16 of the largest term, not of themselves."""
    up, down = planted([1, 1 - 1e-8, 0.5])[:2]
    assert backward(PARTS["U"], up, down, 1)
    big = 1e6 * torch.ones(up.shape[0], 1, dtype=torch.float64)
    wide_up = torch.cat([up.detach() + big, big], 1).requires_grad_()
    wide_down = torch.cat([down.detach(), -down.detach().sum(0, keepdim=True)]).requires_grad_()
    product = (wide_up @ wide_down - up @ down).abs().max()
    assert product < 1e-8
    with pytest.raises(DerivativeError, match=r"and 2 .* equal to within 0.0"):
        backward(PARTS["U"], wide_up, wide_down, 1)
    assert backward(lambda u, s, v: s[2:], *planted([1, 0.9, 0.5])[:2], 3)


@pytest.mark.parametrize("size", [1e-180, 1e-30, 1e30, 1e150])
def test_gradients_of_small_and_large_factors(size):
    up, down = factors(6, 3, 5)
    u, _, _ = truncated_svd_with_gradient(up, down, 2)
    (expected,) = torch.autograd.grad(u[0, 0], up)
    scaled = (up.detach() * size).requires_grad_()
    u, _, _ = truncated_svd_with_gradient(scaled, down, 2)
    (found,) = torch.autograd.grad(u[0, 0], scaled)
    torch.testing.assert_close(found * size, expected, rtol=1e-11, atol=1e-12)


def test_gradients_come_back_in_the_dtype_of_the_factors():
    up, down = factors(6, 3, 5, dtype=torch.float32)
    wide = [x.detach().double().requires_grad_() for x in (up, down)]
    for part in PARTS.values():
        for one, other in zip(backward(part, up, down, 2), backward(part, *wide, 2), strict=True):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one, other.float(), rtol=0, atol=0)


def test_one_factor_alone():
    up, down = factors(6, 3, 5)
    both = backward(PARTS["product"], up, down, 2)
    for place, fixed in ((0, (up, down.detach())), (1, (up.detach(), down))):
        result = truncated_svd_with_gradient(*fixed, 2)
        generator = torch.Generator().manual_seed(1)
        loss = (PARTS["product"](*result) * torch.randn(6, 5, generator=generator).double()).sum()
        (found,) = torch.autograd.grad(loss, fixed[place])
        torch.testing.assert_close(found, both[place], rtol=0, atol=0)


def test_writing_into_the_result_leaves_the_derivative_alone():
    up, down = factors(4, 3, 5)
    expected = torch.autograd.grad(truncated_svd_with_gradient(up, down, 3)[0][0, 0], up)[0]
    u, s, v = truncated_svd_with_gradient(up, down, 3)
    first = u[0, 0].clone()
    with torch.no_grad():
        for x in (u, s, v):
            x.zero_()
    torch.testing.assert_close(torch.autograd.grad(first, up)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("part", sorted(PARTS))
def test_second_derivatives_raise(part):
    """Also where the first one comes from a constant, and is a part of a sum only."""
    up, down = factors(6, 3, 5)
    for asked in (up, down):
        loss = PARTS[part](*truncated_svd_with_gradient(up, down, 2)).sum()
        loss = loss + up.square().sum() + down.square().sum()
        (first,) = torch.autograd.grad(loss, asked, create_graph=True)
        with pytest.raises(DerivativeError, match="no second one"):
            torch.autograd.grad(first.sum(), asked)


def psd(p, rank=None, seed=0):
    root = torch.randn(p, rank or p, generator=torch.Generator().manual_seed(seed)).double()
    return root.requires_grad_()


@pytest.mark.parametrize(("m", "p", "rank"), [(7, 4, 2), (7, 4, 4), (4, 6, 3), (5, 5, 1)])
def test_leading_vectors(m, p, rank):
    x, root = factors(m, p, 1)[0], psd(p)

    def vectors(x, root):
        return leading_vectors_with_gradient(x, root @ root.mT, rank)

    assert gradcheck(vectors, (x, root), atol=1e-6)
    with torch.no_grad():
        u = vectors(x, root)
        dense = x @ root @ root.mT @ x.mT
        expected = torch.linalg.eigh(dense)[1]
    expected = expected.flip(1)[:, :rank]
    expected = expected * torch.sign((expected * u).sum(0))
    torch.testing.assert_close(u, expected, rtol=0, atol=1e-11)
    assert (u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all()


def test_leading_vectors_agree_with_the_gradient_of_a_dense_eigh():
    x, root = factors(6, 6, 1)[0], psd(6)
    weight = torch.randn(6, 2, dtype=torch.float64)
    u = leading_vectors_with_gradient(x, root @ root.mT, 2)
    dense = torch.linalg.eigh(x @ root @ root.mT @ x.mT)[1].flip(1)[:, :2]
    dense = dense * torch.sign((dense * u).sum(0)).detach()
    ours = torch.autograd.grad((u * weight).sum(), (x, root))
    other = torch.autograd.grad((dense * weight).sum(), (x, root))
    for one, two in zip(ours, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)


def test_leading_vectors_differentiate_the_symmetric_part_of_k():
    x, k_matrix = factors(6, 4, 1)[0], (psd(4) @ psd(4).mT).detach().requires_grad_()
    (found,) = torch.autograd.grad(leading_vectors_with_gradient(x, k_matrix, 2)[1, 0], k_matrix)
    assert torch.equal(found, found.mT)
    assert found.abs().max() > 0


def test_leading_vectors_of_low_rank():
    x, root = factors(7, 4, 1)[0], psd(4, rank=2)
    assert gradcheck(
        lambda x, root: leading_vectors_with_gradient(x, root @ root.mT, 2), (x, root), atol=1e-6
    )
    u = leading_vectors_with_gradient(x, root @ root.mT, 3)
    with pytest.raises(DerivativeError, match="value 3"):
        torch.autograd.grad(u.sum(), x)


def test_leading_vectors_refuse_equal_eigenvalues():
    x = torch.linalg.qr(factors(6, 4, 1)[0].detach()).Q.requires_grad_()
    k_matrix = torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    for rank in (2, 3):
        u = leading_vectors_with_gradient(x, k_matrix, rank)
        assert torch.autograd.grad(u[:, 0].sum(), x, retain_graph=True)
        with pytest.raises(DerivativeError, match=r"values 2 .* and 3"):
            torch.autograd.grad(u.sum(), x)


def test_leading_vectors_where_k_cancels():
    """Eigenvalues are known to 1e-16 of the largest term of x K xᵀ."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, generator=rng).double()
    x = torch.cat([x, x @ torch.randn(3, 1, generator=rng).double()], 1)  # one null direction
    null = torch.linalg.svd(x)[2][3]
    k_matrix = torch.eye(4).double() + 1e12 * torch.outer(null, null)
    u = leading_vectors_with_gradient(x.requires_grad_(), k_matrix, 3)
    with pytest.raises(DerivativeError):
        torch.autograd.grad(u.sum(), x)


def test_leading_vectors_refuse_other_matrices():
    x = factors(6, 3, 1)[0]
    with pytest.raises(FormatError, match="must be symmetric"):
        leading_vectors_with_gradient(x, torch.triu(torch.ones(3, 3)).double(), 2)
    with pytest.raises(FormatError, match="negative eigenvalue"):
        leading_vectors_with_gradient(x, torch.diag(torch.tensor([3.0, -2.0, 1.0])).double(), 2)
    with pytest.raises(FormatError, match=r"K \(p, p\)"):
        leading_vectors_with_gradient(x, torch.eye(4).double(), 2)
    with pytest.raises(RankError):
        leading_vectors_with_gradient(x, torch.eye(3).double(), 4)
    narrow = torch.ones(40, 3) @ torch.randn(3, 3)  # symmetric up to rounding in float32
    k_matrix = narrow.mT @ narrow + torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    assert leading_vectors_with_gradient(x.detach().float(), k_matrix, 2).dtype == torch.float64


def test_wrong_arguments_are_refused():
    up, down = factors(6, 3, 5)
    for rank in (0, 4, -1, True, 2.0, None):
        with pytest.raises(RankError, match="from 1 to 3"):
            truncated_svd_with_gradient(up, down, rank)
    with pytest.raises(RankError, match="from 1 to 0"):
        truncated_svd_with_gradient(torch.ones(3, 0), torch.ones(0, 3), 1)
    with pytest.raises(FormatError, match="one r"):
        truncated_svd_with_gradient(up, down.mT, 1)
    with pytest.raises(BackendError, match="one dtype"):
        truncated_svd_with_gradient(up, down.float(), 1)
    with pytest.raises(BackendError, match="torch tensors in float32 or float64"):
        truncated_svd_with_gradient(np.ones((3, 2)), np.ones((2, 3)), 1)
    with pytest.raises(BackendError, match="bfloat16"):
        truncated_svd_with_gradient(up.bfloat16(), down.bfloat16(), 1)
    for wrong in (torch.nan, torch.inf):
        bad = down.detach().clone()
        bad[0, 0] = wrong
        with pytest.raises(FormatError, match="down has entries that are not finite"):
            truncated_svd_with_gradient(up, bad, 1)


def test_nothing_of_size_m_by_n():
    size, r = 50_000, 4
    up, down = factors(size, r, size, dtype=torch.float32)
    with LargestTensor() as forward:
        u, s, v = truncated_svd_with_gradient(up, down, 3)
        loss = u[0].sum() + s.sum() + v[0].sum()
    with LargestTensor() as back:
        loss.backward()
    assert r * size <= forward.entries <= 2 * r * size
    assert r * size <= back.entries <= 2 * r * size
    assert up.grad.isfinite().all()
    k_matrix = torch.diag(torch.arange(1.0, r + 1))
    with LargestTensor() as vectors:
        leading_vectors_with_gradient(up, k_matrix, 3)[0].sum().backward()
    assert r * size <= vectors.entries <= 2 * r * size


def test_torch_is_imported_on_first_use_only():
    script = "import sys, lotr_tn.linalg.derivatives; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
