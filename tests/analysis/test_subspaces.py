"""Overlaps and principal angles, against SciPy and against planted subspaces."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import null_space, subspace_angles

import lotr_tn as lt
from lotr_tn.errors import DerivativeError, FormatError
from lotr_tn.testing import strategies
from tests.analysis.planted import dense_of, lora, one_side, shared
from tests.conftest import BACKENDS, stack_on

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def basis_of(matrix):
    """An orthonormal basis of a matrix's columns, without directions of only rounding."""
    u, s, _ = np.linalg.svd(matrix, full_matrices=False)
    return u[:, s > 1e-11 * s.max(initial=0.0)]


def angles_of(a, b):
    """Angles between the columns of two matrices, smallest first, by SciPy."""
    return np.sort(subspace_angles(basis_of(a), basis_of(b)))


def close(found, wanted):
    """SciPy rounds at 1e-8 near 0 where cosines are close to 1 in other orders of summing."""
    return np.allclose(found, wanted, rtol=1e-7, atol=1e-10)


@each_backend
@given(seed=st.integers(0, 999), ranks=st.permutations([1, 2, 3, 4]))
def test_angles_and_overlaps_are_scipys(backend, seed, ranks):
    stack = lora(seed, (4, 9, 7), ranks)
    dense = dense_of(stack)
    moved = stack_on(stack, backend)
    overlaps = lt.analysis.subspace_overlaps(moved)
    for i, j in ((0, 1), (2, 1), (3, 0), (2, 2)):
        angles = lt.analysis.principal_angles(moved, i, j)
        sides = (dense[i], dense[j]), (dense[i].T, dense[j].T)
        for found, matrix, (a, b) in zip(
            angles, (overlaps.left, overlaps.right), sides, strict=True
        ):
            wanted = angles_of(a, b)
            assert found.shape == wanted.shape
            assert close(found, wanted)
            assert (np.diff(found) >= 0).all()
            assert matrix[i, j] == pytest.approx(float(np.mean(np.cos(wanted) ** 2)), rel=1e-9)
    assert np.array_equal(overlaps.left, overlaps.left.T)
    assert np.array_equal(overlaps.right, overlaps.right.T)
    mean = sum(ranks) / 4
    assert overlaps.chance == pytest.approx((mean / 9, mean / 7))
    apart = ~np.eye(4, dtype=bool)
    assert overlaps.means == pytest.approx(
        (overlaps.left[apart].mean(), overlaps.right[apart].mean())
    )


@given(data=st.data())
def test_only_the_updates_count(data):
    """Nothing changes when a layer is written as another product, or is scaled."""
    stack = lora(data.draw(st.integers(0, 99)), (3, 9, 7), (2, 3, 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    up, down = stack.up.copy(), stack.down.copy()
    for part in stack.slices:
        size = part.stop - part.start
        turn = rng.standard_normal((size, size)) + 3 * np.eye(size)
        up[:, part] = up[:, part] @ turn * 10 ** rng.uniform(-3, 3)
        down[part] = np.linalg.solve(turn, down[part])
    other = lt.LoRAStack(up, down, stack.ranks)
    a, b = lt.analysis.subspace_overlaps(stack), lt.analysis.subspace_overlaps(other)
    assert np.allclose(a.left, b.left, atol=1e-11)
    assert np.allclose(a.right, b.right, atol=1e-11)
    for x, y in zip(
        lt.analysis.principal_angles(stack, 0, 1),
        lt.analysis.principal_angles(other, 0, 1),
        strict=True,
    ):
        assert np.allclose(x, y, atol=1e-10)


@given(stack=strategies.lora_stacks())
def test_any_stack(stack):
    """Zero layers, rank 0, dependent columns: overlaps stay between 0 and 1."""
    found = lt.analysis.subspace_overlaps(stack)
    for matrix in (found.left, found.right):
        assert matrix.shape == (stack.shape[0],) * 2
        assert (matrix >= 0).all()
        assert (matrix <= 1).all()
        assert (np.diag(matrix) == 1).all()
    assert all(0 <= chance <= 1 for chance in found.chance)


def test_planted_overlaps():
    together = lt.analysis.subspace_overlaps(shared(0, pair=(3, 3)))
    assert together.means == pytest.approx((1, 1), abs=1e-12)
    outside = lt.analysis.subspace_overlaps(one_side(0, "out"))
    assert outside.means[0] == pytest.approx(1, abs=1e-12)
    assert outside.means[1] < 0.3
    assert lt.analysis.subspace_overlaps(lora(0, (1, 9, 7), (3,))).means == (1, 1)
    eye = np.eye(8)
    apart = lt.LoRAStack(eye[:, :4], eye[[0, 1, 1, 2]], (2, 2))
    found = lt.analysis.subspace_overlaps(apart)
    assert found.left[0, 1] == pytest.approx(0, abs=1e-12)
    assert found.right[0, 1] == pytest.approx(0.5, abs=1e-12)


def test_a_direction_that_is_only_rounding_does_not_count():
    stack = lora(3, (2, 9, 7), (3, 2))
    up = stack.up.copy()
    up[:, 2] = up[:, 0] + up[:, 1]  # the first layer has rank 2 ...
    down = stack.down.copy()
    up[:, 3:] = null_space(up[:, :2].T)[:, :2]  # ... and the second is orthogonal to it
    found = lt.analysis.subspace_overlaps(lt.LoRAStack(up, down, (3, 2)))
    assert found.left[0, 1] == pytest.approx(0, abs=1e-12)
    assert found.chance == pytest.approx((2 / 9, 2 / 7))
    left, _ = lt.analysis.principal_angles(lt.LoRAStack(up, down, (3, 2)), 0, 1)
    assert np.allclose(left, np.pi / 2)


@pytest.mark.parametrize("angle", [1e-9, 1e-5, 0.3, 1.2, np.pi / 2])
def test_small_and_large_angles_keep_their_digits(angle):
    eye = np.eye(6)
    turned = np.cos(angle) * eye[:, 0] + np.sin(angle) * eye[:, 3]
    up = np.stack([eye[:, 0], eye[:, 1], turned, eye[:, 1]], axis=1)
    left, right = lt.analysis.principal_angles(lt.LoRAStack(up, np.eye(4, 5), (2, 2)), 0, 1)
    assert left == pytest.approx([0, angle], rel=1e-6, abs=1e-14)
    assert right == pytest.approx([np.pi / 2] * 2)


def test_refusals():
    stack = lora(0)
    with pytest.raises(FormatError, match="a layer must lie in 0 … 3; found 4"):
        lt.analysis.principal_angles(stack, 0, 4)
    with pytest.raises(FormatError, match="found -1"):
        lt.analysis.principal_angles(stack, -1, 0)
    torch = pytest.importorskip("torch")
    watched = lt.Dense(torch.ones(2, 3, 4, requires_grad=True))
    with pytest.raises(DerivativeError, match="subspace_overlaps has no derivative"):
        lt.analysis.subspace_overlaps(watched)
    with pytest.raises(DerivativeError, match="principal_angles has no derivative"):
        lt.analysis.principal_angles(watched, 0, 1)
