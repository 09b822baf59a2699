import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotr_tn.errors import BackendError, FormatError, RankError
from lotr_tn.linalg import (
    cross_gram,
    lost_energy_surface,
    orthonormal_basis,
    root_of_gram,
    smallest_rank,
    svd_of_product,
    triangular_factor,
)
from lotr_tn.linalg.ranks import (
    Energy,
    FixedRank,
    RelativeError,
    as_rule,
    best_pair,
    cheapest_pair,
)
from tests.conftest import BACKENDS, on_backend

seeds = st.integers(0, 2**16)


def _xp(x):
    from lotr_tn._arrays import namespace_of

    return namespace_of(x=x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_orthonormal_basis(backend, dtype):
    x = np.random.default_rng(0).standard_normal((300, 7)).astype(dtype)
    moved = on_backend(x, backend)
    q, t = (np.asarray(part) for part in orthonormal_basis(moved, xp=_xp(moved)))
    assert q.dtype == t.dtype == np.float64
    assert np.abs(q.T @ q - np.eye(7)).max() < 1e-13
    assert np.abs(q @ t - x).max() < 1e-13 * np.abs(x).max() * 10


def test_gram_route_drops_what_it_cannot_resolve():
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    doubled = np.concatenate([x, x], axis=1)
    q, t = orthonormal_basis(doubled, xp=_xp(doubled))
    assert np.linalg.matrix_rank(q) == 3
    assert np.abs(q @ t - doubled).max() < 1e-6


@given(seeds)
def test_gram_route_is_as_accurate_as_float32_data(seed):
    """The claim behind the rule: in 32 bits the Gram route loses nothing that Householder keeps."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((40, 6)) * 10.0 ** rng.integers(-4, 1, 6)).astype(np.float32)
    ours = np.linalg.svd(triangular_factor(x, xp=_xp(x)), compute_uv=False)
    truth = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    assert np.abs(ours - truth).max() < 2**-24 * truth[0]


def test_root_of_gram_of_a_singular_matrix():
    x = np.outer(np.arange(4.0), np.ones(3))
    t = root_of_gram(x.T @ x, xp=_xp(x))
    assert np.abs(t.T @ t - x.T @ x).max() < 1e-13


def test_cross_gram_accumulates_blocks():
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((70_000, k)).astype(np.float32) for k in (9, 5))
    truth = x.astype(float).T @ y.astype(float)
    assert np.abs(cross_gram(x, y, xp=_xp(x)) - truth).max() < 1e-12 * np.abs(truth).max() * 1e3


@pytest.mark.parametrize("shape", [(9, 4, 7), (3, 5, 7), (9, 5, 2), (6, 1, 5), (4, 0, 5)])
def test_svd_of_product(backend, shape):
    m, r, n = shape
    rng = np.random.default_rng(1)
    up, down = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    u, s, vt = (
        np.asarray(x) for x in svd_of_product(on_backend(up, backend), on_backend(down, backend))
    )
    assert s.shape == (min(m, r, n),)
    assert np.abs((u * s) @ vt - up @ down).max(initial=0) < 1e-13
    truth = np.linalg.svd(up @ down, compute_uv=False)[: s.size]
    assert np.abs(s - truth).max(initial=0) < 1e-13


def test_svd_of_product_refuses():
    with pytest.raises(FormatError, match="one r"):
        svd_of_product(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(BackendError):
        svd_of_product(np.ones((3, 2)), np.ones((2, 2), np.float32))


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.floats(0, 1))
def test_smallest_rank_against_brute_force(values, share):
    """One rank selector, at both ends and between: neither one too many nor one too few."""
    s = np.sort(np.array(values))[::-1]
    tails = np.append(np.cumsum((s**2)[::-1])[::-1], 0.0)
    budget = share * tails[0]
    rank = smallest_rank(tails, budget)
    assert tails[rank] <= budget
    assert all(tails[k] > budget for k in range(rank))


def test_smallest_rank_refuses_the_impossible():
    with pytest.raises(RankError, match="the least is 1"):
        smallest_rank(np.array([2.0, 1.0]), 0.5)


@given(seeds, st.floats(0, 1))
def test_cheapest_pair_against_brute_force(seed, share):
    rng = np.random.default_rng(seed)
    energies = rng.random((5, 4)) ** 4
    lost = np.array(
        [[energies.sum() - energies[:i, :j].sum() for j in range(5)] for i in range(6)]
    ).clip(min=0)
    lost[5, 4] = 0
    shape, budget = (7, 11, 13), share * energies.sum()
    pair = cheapest_pair(lost, budget, shape)

    def cost(i, j):
        return 11 * i + 13 * j + 7 * i * j

    fitting = [
        (cost(i, j), lost[i, j], i) for i in range(6) for j in range(5) if lost[i, j] <= budget
    ]
    assert (cost(*pair), lost[pair], pair[0]) == min(fitting)


@given(seeds)
def test_surface_is_the_energy_outside_each_corner(seed):
    energies = np.random.default_rng(seed).random((4, 6))
    surface = lost_energy_surface(energies, xp=_xp(energies))
    for i in range(5):
        for j in range(7):
            mask = np.ones_like(energies, dtype=bool)
            mask[:i, :j] = False
            assert np.isclose(surface[i, j], energies[mask].sum(), rtol=1e-14, atol=0)


def test_surface_keeps_tiny_errors():
    energies = np.diag([1.0, 1e-24])
    surface = lost_energy_surface(energies, xp=_xp(energies))
    assert surface[1, 1] == 1e-24


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda: RelativeError(-0.1), "relative error"),
        (lambda: RelativeError(1.0), "relative error"),
        (lambda: RelativeError(float("nan")), "relative error"),
        (lambda: Energy(0.0), "energy"),
        (lambda: Energy(1.5), "energy"),
        (lambda: FixedRank(-1), "r1 must be"),
        (lambda: FixedRank(3, -2), "r2 must be"),
        (lambda: FixedRank(True), "r1 must be"),
        (lambda: as_rule("many"), "found 'many'"),  # pyright: ignore
    ],
)
def test_rules_refuse_what_is_out_of_range(rule, message):
    with pytest.raises(RankError, match=message):
        rule()


def test_rules_from_numbers():
    assert as_rule(4) == FixedRank(4)
    assert as_rule(4).pair == (4, 4)
    assert as_rule((4, 5)).pair == (4, 5)
    assert np.isclose(Energy(0.99).epsilon, 0.1)


def test_backends_are_all_tried():
    assert len(BACKENDS) == 4


def test_rounding_does_not_choose_among_pairs_of_ranks():
    lost = np.array([[9.0, 5.0, 4.0], [5.0, 1.0, 1.0], [4.0, 1.0, 1.0]])
    for noise in np.random.default_rng(0).uniform(-1e-14, 1e-14, (8, 3, 3)):
        noisy = lost * (1 + noise)
        assert cheapest_pair(noisy, 6.0, (2, 5, 5)) == (0, 1)
        assert best_pair(noisy, 100, (2, 5, 5)) == (1, 1)
