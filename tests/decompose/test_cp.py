"""CP by alternating least squares: recovery, bounds, rules, gauge, honest stops, and oracles."""

import itertools
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.decompose import core_consistency
from lotr_tn.decompose.cp_search import CPSearch, How
from lotr_tn.decompose.cp_sweeps import alternate
from lotr_tn.errors import DerivativeError, FormatError, OptionError, PrecisionWarning, RankError
from lotr_tn.testing import check_decomposition, laws, strategies
from tests.conftest import on_backend
from tests.tripwire import LargestTensor

NOT_OF_CP = ("exact_at_full_rank", "error_is_nearly_the_best", "layers_may_be_reordered")
"""Laws of ranks of both sides, which no CP of as many terms reaches; and one of random starts."""


def planted(sizes=(30, 6, 20), rank=3, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    return lt.CP(*(rng.standard_normal((size, rank)).astype(dtype) for size in sizes))


def lora(shape=(5, 14, 11), ranks=(3, 0, 2, 4, 1), seed=1, dtype="float64"):
    rng, (_, m, n) = np.random.default_rng(seed), shape
    up, down = rng.standard_normal((m, sum(ranks))), rng.standard_normal((sum(ranks), n))
    return lt.LoRAStack(up.astype(dtype), down.astype(dtype), ranks)


def true_error(stack, found):
    truth = laws.dense_updates(stack)
    return np.linalg.norm(truth - laws.dense_updates(found)) / np.linalg.norm(truth)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("sizes", "rank"), [((30, 6, 20), 3), ((12, 5, 9), 7), ((40, 3, 25), 10), ((8, 9, 7), 8)]
)
def test_a_planted_cp_is_recovered(sizes, rank, backend):
    stack = planted(sizes, rank)
    stack = lt.CP(*(on_backend(x, backend) for x in (stack.a, stack.weights, stack.b)))
    dense = lt.Dense(lt.to_dense(stack))  # which says nothing of its terms
    found = lt.cp(dense, rank)
    assert found.rank == rank
    assert found.certificate.relative_error < 1e-6
    assert true_error(stack, found) < 1e-6


def test_the_error_never_rises_and_the_step_beyond_each_sweep_pays():
    stack = planted() + 0.3 * planted(rank=12, seed=1)
    search = CPSearch(lt.convert(stack, lt.LoRAStack), lt.FixedRank(4), How("float64", 6, 0, 0, 9))
    for start in search._starts(4):
        terms = [start]
        for _ in range(24):
            terms.append(search.problem.swept(terms[-1]))
        errors = [t.squared_error for t in terms]
        slack = 1e-13 * search.problem.square
        assert all(after <= before + slack for before, after in itertools.pairwise(errors))
        ends = [alternate(search.problem, start, 0.0, count).terms for count in (1, 2, 3, 5, 8, 16)]
        stepped = [t.squared_error for t in ends]
        assert all(b <= a for a, b in itertools.pairwise(stepped))
        assert stepped[-1] <= errors[-1] * (1 + 1e-3)  # in fewer sweeps


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_the_certificate_says_what_is_true(dtype):
    for stack in (lora(), lora(dtype="float32"), planted(rank=5)):
        found = lt.cp(stack, 4, dtype=dtype)
        known = found.certificate
        assert lt.ops.storage_dtype(found) == dtype
        assert known.relative_error == pytest.approx(true_error(stack, found), rel=1e-9)
        assert known.lower_bound <= known.relative_error <= known.upper_bound
        assert known.method == "cp-als"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_no_cut_of_each_layer_s_rank_to_as_many_terms_is_closer(rank, seed):
    stack = lora(ranks=(4, 4, 4, 4, 4), seed=seed)
    values = np.sort(np.concatenate(lt.layer_singular_values(stack)))[::-1]
    cut = np.linalg.norm(values[rank:])
    assert lt.cp(stack, rank).certificate.distance <= cut * (1 + 1e-12)


def test_its_laws_hold():
    quick = partial(lt.cp, starts=2, max_sweeps=20)
    report = check_decomposition(quick, max_examples=2, skip=NOT_OF_CP)
    assert report.holds, report
    stacks = strategies.stacks_of(lt.CP)
    report = check_decomposition(lt.round, stacks=stacks, max_examples=2)
    assert report.holds, report


def altered(**change):
    """A CP whose arrays are changed after it was certified."""

    def decompose(stack, ranks):
        made = lt.cp(stack, ranks)
        return replace(made, **{name: f(getattr(made, name)) for name, f in change.items()})

    return decompose


def certified(**change):
    """A CP whose certificate is changed."""

    def decompose(stack, ranks):
        made = lt.cp(stack, ranks)
        told = {name: f(made.certificate) for name, f in change.items()}
        return replace(made, certificate=replace(made.certificate, **told))

    return decompose


FAULTS = {
    "a weight is left out": (laws.reported_error_is_true, altered(weights=lambda w: w * [1, 1, 0])),
    "signs are lost": (laws.reported_error_is_true, altered(a=np.abs)),
    "layers in another order": (laws.reported_error_is_true, altered(weights=lambda w: w[::-1])),
    "lower bound too high": (
        laws.bounds_bracket_the_error,
        certified(lower=lambda c: c.upper * 1.01),
    ),
    "upper bound too low": (laws.bounds_bracket_the_error, certified(upper=lambda c: c.lower / 2)),
    "one term more": (laws.rank_is_kept, lambda stack, ranks: lt.cp(stack, 4)),
    "half the error kept to": (
        lambda f, stack, _: laws.error_rule_is_met(f, stack, 0.3),
        lambda stack, rule: lt.cp(stack, lt.RelativeError(2 * rule.epsilon)),
    ),
    "a layer is lost": (laws.result_fits_the_stack, altered(weights=lambda w: w[:-1])),
    "the largest entry decides": (
        laws.scaling_scales_the_result,
        lambda stack, ranks: lt.cp(stack, 1 if abs(stack.down).max() > 3 else 3),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault):
    law, decompose = FAULTS[fault]
    with pytest.raises(AssertionError):
        law(decompose, lora(), (3, 3))


def test_a_rule_takes_the_smallest_rank_that_meets_it():
    stack = planted(rank=4)
    for given in (lt.Dense(lt.to_dense(stack)), stack + 1e-9 * planted(rank=6, seed=2)):
        assert lt.cp(given, lt.RelativeError(1e-6)).rank == 4
    for epsilon in (0.6, 0.05):
        found = lt.cp(lora(), lt.RelativeError(epsilon))
        assert found.certificate.relative_error <= epsilon
        less = lt.cp(lora(), found.rank - 1)
        assert less.certificate.relative_error > 0.9 * epsilon
    assert lt.cp(lora(), lt.Energy(0.91)).certificate.relative_error <= 0.3
    assert lt.cp(stack, lt.Budget(3 * (30 + 6 + 20) + 5)).rank == 3


def test_ranks_that_hold_all_give_all():
    stack = lora()
    whole = lt.cp(stack, 99)
    assert whole.rank == sum(stack.ranks)
    assert true_error(stack, whole) < 1e-13
    assert lt.cp(stack, lt.RelativeError(0)).rank == 10
    none = lt.cp(stack, 0)
    assert (none.rank, none.certificate.relative_error) == (0, 1.0)
    zero = lt.cp(0 * stack, 3)
    assert (zero.rank, zero.certificate.relative_error) == (0, 0.0)


def test_an_error_that_sweeps_cannot_see_is_measured():
    stack = lt.LoRAStack(
        np.array([[2.0, 1, 0, -1, -1]]),
        np.array([[-2.0, -2], [-2, -2], [2, 1], [2, 0], [1, 2]]),
        (1,) * 5,
    )
    for epsilon in (0.0, 1e-12):
        found = lt.cp(stack, lt.RelativeError(epsilon))
        assert true_error(stack, found) < 1e-12
        assert found.rank == 2
    far = lt.cp(stack * 1e100 * 1e100, 2)
    assert far.certificate.relative_error < 1e-12
    assert lt.canonicalize(far).certificate.relative_error < 1e-13


def test_one_gauge_for_equal_terms():
    stack = planted(rank=4)
    mixed = lt.CP(
        stack.a[:, ::-1] * [-3, 0.1, 1, 2], stack.weights[:, ::-1] / 6, stack.b[:, ::-1] * -1.0
    )
    one = lt.canonicalize(stack)
    two = lt.canonicalize(
        lt.CP(mixed.a, mixed.weights / ([-3, 0.1, 1, 2] * np.array(-1 / 6)), mixed.b)
    )
    for x, y in ((one.a, two.a), (one.weights, two.weights), (one.b, two.b)):
        assert np.allclose(x, y, rtol=1e-12)
    for side in (one.a, one.b):
        assert np.allclose(np.linalg.norm(side, axis=0), 1)
        assert (side.max(axis=0) >= -side.min(axis=0)).all()
    sizes = np.linalg.norm(one.weights, axis=0)
    assert (np.diff(sizes) <= 0).all()
    assert one.certificate.relative_error < 1e-15
    again = lt.cp(stack, 4)
    assert np.allclose(again.a, one.a, rtol=1e-12)


def test_rounding_a_sum_brings_its_rank_back():
    x, y = planted(rank=4), planted(rank=3, seed=5)
    exact = lt.RelativeError(1e-12)
    assert lt.round(x - x, exact).rank == 0
    assert lt.round(x + x, exact).rank == 4
    assert lt.round(x + (y - y), exact).rank == 4
    assert lt.round(0 * x, exact).rank == 0
    assert type(lt.round(x, 2)) is lt.CP
    plain, tiny = lt.round(x, 2), lt.round(x * 1e-200, 2)
    assert np.allclose(tiny.weights, 1e-200 * plain.weights, rtol=1e-9)
    assert tiny.certificate.relative_error == pytest.approx(plain.certificate.relative_error)


def test_where_no_best_cp_exists_it_stops_and_says_so():
    """x∘x∘y + x∘y∘x + y∘x∘x has rank 3, and sums of rank 2 as close as one likes."""
    x, y = np.eye(6)[:, 0], np.eye(6)[:, 1]
    parts = [(x, x, y), (x, y, x), (y, x, x)]
    stack = lt.CP(*(np.stack(side, axis=1) for side in zip(*parts, strict=True)))
    found = lt.cp(lt.Dense(lt.to_dense(stack)), 2, tolerance=0, max_sweeps=400)
    known = found.certificate
    assert known.method == "cp-als, terms cancel"
    assert np.isfinite(found.weights).all()
    assert 0 < known.relative_error == pytest.approx(true_error(stack, found), rel=1e-9)
    assert known.relative_error < 0.05
    assert lt.cp(stack, 3).certificate.method == "cp-als"


def test_core_consistency_tells_structure_from_none():
    stack = planted() + 0.01 * planted(rank=15, seed=1)
    assert core_consistency(stack, lt.cp(stack, 3)) > 95
    assert core_consistency(stack, lt.cp(stack, 5)) < 85
    with pytest.raises(RankError, match="of 1 to L = 6 terms"):
        core_consistency(stack, lt.cp(stack, 7))
    empty = lt.CP(np.ones((30, 2)), np.ones((6, 2)) * [1, 0], np.ones((20, 2)))
    with pytest.raises(RankError, match="1 of the CP's 2 terms are zero"):
        core_consistency(stack, empty)


def test_what_makes_no_sense_is_refused():
    stack = lora()
    with pytest.raises(OptionError, match="starts must be a whole number of at least 1; found 0"):
        lt.cp(stack, 2, starts=0)
    with pytest.raises(OptionError, match="tolerance must be at least 0"):
        lt.cp(stack, 2, tolerance=-1.0)
    with pytest.raises(RankError):
        lt.cp(stack, -1)
    bad = planted()
    bad.weights[1, 0] = np.nan
    with pytest.raises(FormatError, match="weights holds NaN or infinity, first in layer 1"):
        lt.cp(bad, 2)
    torch = pytest.importorskip("torch")
    parts = [torch.ones(4, 2, requires_grad=True) for _ in range(3)]
    with pytest.raises(DerivativeError, match="cp has no derivative"):
        lt.cp(lt.CP(*parts), 1)
    with pytest.warns(PrecisionWarning, match="bfloat16"):
        lt.cp(planted(), lt.RelativeError(1e-5), dtype="bfloat16")


def test_nothing_of_the_size_of_a_matrix_is_formed():
    torch = pytest.importorskip("torch")
    size, ranks = 200_000, (2, 1, 3)
    draw = torch.Generator().manual_seed(0)
    up, down = torch.randn(size, 6, generator=draw), torch.randn(6, size, generator=draw)
    stack = lt.LoRAStack(up, down, ranks)
    x = torch.ones(2, size)
    with LargestTensor() as largest:
        found = lt.cp(stack, 2, starts=1, max_sweeps=1)
        lt.apply(found, x), lt.apply(found, x, layer=[0, 2]), lt.apply(found, x, layer=1)
        lt.norm(found), lt.inner(found, found), found + found, found.T
    assert largest.entries <= 3 * up.numel(), largest.entries


def test_torch_and_numpy_agree():
    pytest.importorskip("torch")
    stack = lora(dtype="float32")
    there = lt.LoRAStack(
        on_backend(stack.up, "torch"), on_backend(stack.down, "torch"), stack.ranks
    )
    one, two = lt.cp(stack, 4), lt.cp(there, 4)
    assert type(two.a) is type(there.up)
    assert two.certificate.relative_error == pytest.approx(one.certificate.relative_error, rel=1e-5)


def dense_and_error(stack):
    dense = lt.to_dense(stack)
    return dense, lambda whole: np.linalg.norm(dense - whole) / np.linalg.norm(dense)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_tensorly_comes_no_closer(noise):
    decomposition = pytest.importorskip("tensorly.decomposition", reason="needs tensorly")
    stack = planted((15, 6, 12), 4) + noise * planted((15, 6, 12), 12, seed=1)
    dense, error = dense_and_error(stack)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights, (w, a, b) = decomposition.parafac(dense, 4, n_iter_max=300, init="svd", tol=1e-10)
    theirs = error(np.einsum("r,lr,ir,jr->lij", weights, w, a, b))
    ours = lt.cp(lt.Dense(dense), 4, tolerance=1e-7).certificate.relative_error
    assert ours <= theirs * (1 + 1e-4) + 1e-7


def test_pyttb_comes_no_closer():
    pyttb = pytest.importorskip("pyttb", reason="needs pyttb, of the extra oracles")
    stack = planted((15, 6, 12), 4) + 0.05 * planted((15, 6, 12), 12, seed=1)
    dense, error = dense_and_error(stack)
    model, *_ = pyttb.cp_als(
        pyttb.tensor(dense), 4, init="nvecs", printitn=0, stoptol=1e-9, maxiters=500
    )
    theirs = error(model.full().data)
    ours = lt.cp(lt.Dense(dense), 4, tolerance=1e-7).certificate.relative_error
    assert ours <= theirs * (1 + 1e-4) + 1e-7
