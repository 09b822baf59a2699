"""New layers in given bases: predicted losses are those of a plain dense projection."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn.decompose.extension import extension_of


def problem(seed=0, m=13, n=11, p=3, q=4, ranks=(2, 1, 3), *, inside=0.0, skew=1.0):
    """Bases with independent, not orthonormal columns, and layers partly in them."""
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((m, p)) * skew ** np.arange(p)
    v = rng.standard_normal((n, q)) * skew ** np.arange(q)
    total = sum(ranks)
    up = u @ rng.standard_normal((p, total)) + (1 - inside) * rng.standard_normal((m, total))
    down = rng.standard_normal((total, q)) @ v.T + (1 - inside) * rng.standard_normal((total, n))
    return u, v, lt.LoRAStack(up, down, ranks)


def dense(stack):
    return [stack.up[:, a:b] @ stack.down[a:b] for a, b in pairwise(np.cumsum([0, *stack.ranks]))]


def projector(x):
    return x @ np.linalg.pinv(x) if x.shape[1] else np.zeros((len(x), len(x)))


def squares(layers):
    return sum(float((x**2).sum()) for x in layers)


def pairs(extension):
    most = extension.most
    return [(k1, k2) for k1 in range(most[0] + 1) for k2 in range(most[1] + 1)]


def whole(extension, k1, k2):
    left, right = extension.directions(k1, k2, "float64")
    return np.hstack([extension.left.basis, left]), np.hstack([extension.right.basis, right])


@given(
    seed=st.integers(0, 10_000),
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    p=st.integers(0, 4),
    q=st.integers(0, 4),
    ranks=st.lists(st.integers(0, 3), min_size=1, max_size=3).filter(sum),
)
def test_the_loss_of_any_number_of_directions_is_that_of_a_projection(seed, m, n, p, q, ranks):
    u, v, layers = problem(seed, m, n, min(p, m), min(q, n), tuple(ranks))
    extension = extension_of(u, v, layers)
    wanted = dense(layers)
    size = squares(wanted)
    assert extension.energy == pytest.approx(size, rel=1e-10)
    for k1, k2 in pairs(extension):
        left, right = whole(extension, k1, k2)
        kept = [projector(left) @ w @ projector(right) for w in wanted]
        lost = squares([w - k for w, k in zip(wanted, kept, strict=True)])
        assert abs(extension.lost[k1, k2] - lost) <= 1e-11 * size
        made = dense_tucker(extension.tucker(k1, k2, "float64"))
        gap = squares([x - y for x, y in zip(made, kept, strict=True)])
        condition = max(np.linalg.cond(u) if u.size else 1, np.linalg.cond(v) if v.size else 1)
        assert gap**0.5 <= 1e-12 * condition * size**0.5
    assert extension.lost[extension.most] <= 1e-20 * size


def dense_tucker(stack):
    return [stack.u @ core @ stack.v.T for core in stack.core]


def test_losses_fall_with_either_number():
    extension = extension_of(*problem(3))
    assert extension.most == (6, 6)
    assert (np.diff(extension.lost, axis=0) <= 1e-12).all()
    assert (np.diff(extension.lost, axis=1) <= 1e-12).all()


def test_layers_inside_the_bases_need_no_direction():
    extension = extension_of(*problem(1, inside=1.0))
    assert extension.most == (0, 0)
    assert extension.lost[0, 0] <= 1e-20 * extension.energy


def test_a_direction_that_no_layer_uses_is_not_offered():
    """x lies outside, but what it multiplies is nothing."""
    u, v, layers = problem(1, inside=1.0)
    up = np.hstack([layers.up, np.random.default_rng(5).standard_normal((13, 1))])
    down = np.vstack([layers.down, np.zeros((1, 11))])
    extension = extension_of(u, v, lt.LoRAStack(up, down, (2, 1, 4)))
    assert extension.most == (0, 0)


def test_new_directions_are_orthonormal_and_at_right_angles_to_the_bases():
    u, v, layers = problem(2)
    extension = extension_of(u, v, layers)
    left, right = extension.directions(*extension.most, "float64")
    for basis, new in ((u, left), (v, right)):
        assert np.allclose(new.T @ new, np.eye(new.shape[1]), atol=1e-13)
        assert np.abs(new.T @ basis).max() < 1e-12 * np.abs(basis).max()
    few = extension.directions(2, 1, "float64")
    assert np.array_equal(few[0], left[:, :2])
    assert np.array_equal(few[1], right[:, :1])


def test_the_strongest_directions_come_first():
    u, v, layers = problem(4)
    extension = extension_of(u, v, layers)
    outside = np.hstack([(np.eye(13) - projector(u)) @ w for w in dense(layers)])
    best = np.linalg.svd(outside)[0]
    for k in range(1, 4):
        left = extension.directions(k, 0, "float64")[0]
        assert np.allclose(projector(left), projector(best[:, :k]), atol=1e-10)


@pytest.mark.parametrize("counts", [(0, 0), (2, 1), (6, 6), (0, 3)])
def test_cores_of_low_rank_are_the_best_of_their_rank(counts):
    u, v, layers = problem(5)
    extension = extension_of(u, v, layers)
    full = dense_tucker(extension.tucker(*counts, "float64"))
    for ranks in ((1, 1, 1), (2, 0, 3), (0, 0, 0)):
        made = extension.low_rank(*counts, ranks, "float64")
        assert made.ranks == ranks
        for at, (a, b) in enumerate(pairwise(np.cumsum([0, *ranks]))):
            found = made.u @ made.up[:, a:b] @ made.down[a:b] @ made.v.T
            x, s, y = np.linalg.svd(full[at])
            best = (x[:, : ranks[at]] * s[: ranks[at]]) @ y[: ranks[at]]
            assert np.allclose(found, best, atol=1e-10 * s[0])
    for value, layer in zip(extension.values(*counts), full, strict=True):
        assert np.allclose(value, np.linalg.svd(layer)[1][: len(value)], atol=1e-10)


def test_the_given_bases_are_not_touched():
    u, v, layers = problem(6)
    u, v = u.astype(np.float32), v.astype(np.float32)
    u.setflags(write=False)
    made = extension_of(u, v, layers).tucker(1, 2, "float32")
    assert made.u.dtype == made.core.dtype == np.float32
    assert np.array_equal(made.u[:, :3], u)
    assert np.array_equal(made.v[:, :4], v)


@pytest.mark.parametrize("skew", [1e-3, 1e3])
def test_bases_of_columns_of_all_lengths(skew):
    u, v, layers = problem(7, skew=skew)
    extension = extension_of(u, v, layers)
    wanted = dense(layers)
    made = dense_tucker(extension.tucker(*extension.most, "float64"))
    gap = squares([x - y for x, y in zip(made, wanted, strict=True)])
    assert gap**0.5 <= 1e-8 * squares(wanted) ** 0.5
