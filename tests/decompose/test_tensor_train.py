"""TT-SVD of thin factors and of dense weights, and rounding: errors, ranks, counts, oracles."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn.decompose import PUBLISHED, balanced, orthogonalise
from lotr_tn.errors import OptionError, PrecisionWarning, RankError
from lotr_tn.formats import TensorTrain
from lotr_tn.linalg.ranks import RelativeError
from lotr_tn.ops.arrays import arrays_of, with_arrays
from lotr_tn.testing import check_decomposition, laws, strategies
from tests.conftest import BACKENDS, on_backend
from tests.tripwire import LargestTensor

RNG = np.random.default_rng(0)
NOT_THE_BEST = ["error_is_nearly_the_best"]  # of a rank: a train is within √(K − 1) of the best
APART = st.sampled_from(("out then in", "in then out"))


def lora(shape=(3, 48, 64), ranks=(3, 5, 4)) -> lt.LoRAStack:
    total, (_, m, n) = sum(ranks), shape
    return lt.LoRAStack(RNG.standard_normal((m, total)), RNG.standard_normal((total, n)), ranks)


def paired() -> TensorTrain:
    return lt.mpo(RNG.standard_normal((2, 24, 36)), ((4, 3, 2), (3, 3, 4)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_gives_the_same(backend):
    stack = lora()
    found = lt.LoRAStack(*(on_backend(x, backend) for x in (stack.up, stack.down)), stack.ranks)
    one, two = (lt.tensor_train(x, "balanced", RelativeError(0.3)) for x in (stack, found))
    assert one.ranks == two.ranks
    for x, y in zip(lt.canonicalize(one).cores, lt.canonicalize(two).cores, strict=True):
        assert np.allclose(x, np.asarray(y), atol=1e-10)


@pytest.mark.parametrize("array", [None, torch.from_numpy], ids=["numpy", "torch"])
def test_the_laws_of_decompositions(array):
    def made(stack, ranks):
        return lt.tensor_train(stack, "balanced", ranks)

    ranks = st.integers(0, 4)
    report = check_decomposition(made, array=array, ranks=ranks, skip=NOT_THE_BEST, max_examples=3)
    assert report.holds, report
    trains = strategies.stacks_of(TensorTrain, arrangement=APART, array=array)
    report = check_decomposition(
        lt.round, array=array, stacks=trains, ranks=ranks, skip=NOT_THE_BEST, max_examples=3
    )
    assert report.holds, report


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.05, 0.3, 0.8])
def test_an_error_is_kept_and_told(epsilon):
    stack = lora()
    for made, dense in (
        (lt.tensor_train(stack, "balanced", RelativeError(epsilon)), laws.dense_updates(stack)),
        *((lt.round(x, RelativeError(epsilon)), laws.dense_updates(x)) for x in (paired(),)),
    ):
        error = np.linalg.norm(dense - laws.dense_updates(made)) / np.linalg.norm(dense)
        assert error <= epsilon + 1e-13
        assert made.certificate.relative_error == pytest.approx(error, rel=1e-10, abs=1e-14)
        assert made.certificate.lower_bound <= error + 1e-14
        assert error <= made.certificate.upper_bound
        count = len(made.cores) - 1
        assert made.certificate.upper_bound <= count**0.5 * made.certificate.lower_bound + 1e-12


@pytest.mark.parametrize("stack", [lt.tensor_train(lora(), ((6, 8), (8, 8))), paired()])
def test_laws_from_the_bugs_of_others(stack):
    a, b = stack, lt.scale(lt.canonicalize(stack), [1.5, -2.0, 0.5][: stack.shape[0]])
    exact = RelativeError(0.0)
    once = lt.round(a, exact)
    assert lt.round(a + (b - b), exact).ranks == once.ranks == lt.canonicalize(a).ranks
    assert float(lt.distance(lt.round(a + (b - b), exact), a)) < 1e-13 * float(lt.norm(a))
    assert lt.round(a + a, exact).ranks == once.ranks
    for zero in (a - a, 0.0 * a):
        assert set(lt.round(zero, RelativeError(0.1)).ranks) == {0}
        assert float(lt.norm(lt.round(zero, exact))) == 0
    cut = RelativeError(0.3)
    small, plain = lt.round(1e-200 * a, cut), lt.round(a, cut)
    assert small.ranks == plain.ranks
    assert np.allclose(laws.dense_updates(small) * 1e200, laws.dense_updates(plain), rtol=1e-12)
    assert small.certificate.relative_error == pytest.approx(plain.certificate.relative_error)


def test_stacks_far_from_1_are_decomposed_too():
    stack = lora()
    tiny = lt.LoRAStack(stack.up * 1e-160, stack.down * 1e-60, stack.ranks)
    one, other = (lt.tensor_train(s, "balanced", RelativeError(0.2)) for s in (stack, tiny))
    assert one.ranks == other.ranks
    assert float(lt.norm(other)) == pytest.approx(1e-220 * float(lt.norm(one)))


@pytest.mark.parametrize("site", [0, 1, 2, -1])
def test_a_gauge_changes_no_value(site):
    full = paired()
    collapsed = lt.round(full, 2) + lt.round(full, 2)
    for stack in (full, collapsed, lt.scale(full, [1.0, 0.0])):
        made = orthogonalise(stack, site)
        wanted = laws.dense_updates(stack)
        assert np.allclose(laws.dense_updates(made), wanted, atol=1e-12 * np.abs(wanted).max())
        norms = np.linalg.norm(made.cores[site].reshape(2, -1), axis=1)
        assert np.allclose(norms, np.linalg.norm(wanted, axis=(1, 2)))
    with pytest.raises(lt.errors.FormatError, match="site must be a core, 0 … 2; found 3"):
        orthogonalise(full, 3)


def test_equal_stacks_have_equal_canonical_cores():
    stack = lt.tensor_train(lora(), ((6, 8), (8, 8)))
    matrices = [RNG.standard_normal((r, r)) for r in stack.ranks]
    other = laws.change_gauge(stack, matrices)
    one, two = (lt.canonicalize(x) for x in (stack, other))
    for name, core in arrays_of(one).items():
        assert np.allclose(core, arrays_of(two)[name], atol=1e-8)


def test_the_dense_tt_svd_of_tensorly_is_no_better():
    tensorly = pytest.importorskip("tensorly", reason="TensorLy is not installed")
    from tensorly.decomposition import tensor_train as dense_tt

    stack = lora((1, 48, 64), (5,))
    dense = laws.dense_updates(stack)[0]
    for ranks in ((4, 5, 4), (3, 2, 5), (2, 4, 3)):
        made = lt.tensor_train(stack, ((6, 8), (8, 8)), ranks)
        assert made.ranks == ranks
        factors = dense_tt(dense.reshape(6, 8, 8, 8), (1, *ranks, 1))
        theirs = np.linalg.norm(tensorly.tt_to_tensor(factors).reshape(48, 64) - dense)
        # both are TT-SVD, from the other end: neither is always the closer one
        assert made.certificate.distance == pytest.approx(theirs, rel=0.05)
    matrices = RNG.standard_normal((12, 24))
    made = lt.mpo(matrices, ((3, 2, 2), (2, 3, 4)), (3, 4))
    operator = tensorly.decomposition.tensor_train_matrix(
        matrices.reshape(3, 2, 2, 2, 3, 4), (1, 3, 4, 1)
    )
    theirs = np.linalg.norm(operator.to_matrix().reshape(12, 24) - matrices)
    assert made.certificate.distance == pytest.approx(theirs, rel=0.05)


def test_a_budget_is_kept():
    stack = lora((2, 64, 64), (6, 6))
    whole = lt.tensor_train(stack)
    errors = []
    for share in (1.0, 0.6, 0.2, 0.0):
        limit = int(lt.parameter_count(whole) * share)
        made = lt.tensor_train(stack, "balanced", lt.Budget(limit))
        assert lt.parameter_count(made) <= limit
        errors.append(made.certificate.relative_error)
    assert errors == sorted(errors)
    assert errors[0] < 1e-14
    assert errors[-1] == pytest.approx(1)


def test_a_narrow_dtype_is_measured():
    stack = lora()
    made = lt.tensor_train(stack, "balanced", 4, dtype="float16")
    assert made.dtype == "float16"
    dense, found = laws.dense_updates(stack), laws.dense_updates(made)
    error = np.linalg.norm(dense - found) / np.linalg.norm(dense)
    assert made.certificate.relative_error == pytest.approx(error, rel=1e-9)
    assert error <= made.certificate.upper_bound
    with pytest.warns(PrecisionWarning):
        lt.tensor_train(stack, "balanced", RelativeError(1e-5), dtype="float16")


# ---- counts and shapes of publications ----


def live(legs, rank: int, layers: int) -> TensorTrain:
    """A train of live arrays of equal bonds, as a method begins with."""
    places = [(o, 1) for o in legs[0]] + [(1, n) for n in legs[1]]
    bonds = [1, *[rank] * (len(places) - 1), 1]
    return TensorTrain(
        tuple(
            RNG.standard_normal((layers, bonds[k], *place, bonds[k + 1]))
            for k, place in enumerate(places)
        )
    )


@pytest.mark.parametrize(
    ("name", "modules", "rank", "count"),
    [
        ("tt-lora", {(768, 768): 24}, 5, 23_760),
        ("tt-lora", {(2048, 2048): 16, (512, 2048): 16}, 5, 33_920),
        ("tt-lora", {(4096, 4096): 32, (1024, 4096): 32}, 5, 58_240),
        ("scalable-tt-lora", {(768, 768): 24}, 4, 13_824),
    ],
)
def test_published_counts_of_tt_lora(name, modules, rank, count):
    made = [live(PUBLISHED[name][size], rank, layers) for size, layers in modules.items()]
    assert sum(map(lt.parameter_count, made)) == count


@pytest.mark.parametrize(
    ("count", "legs"),
    [
        (780, (8, 8, 12, 8, 8)),  # 64 x 768
        (1100, (16, 16, 16, 4, 4, 4)),  # 64 x 4096
        (580, (8, 8, 12, 8)),  # 8 x 768
        (800, (16, 16, 8, 4, 4)),  # 8 x 4096
        (1080, (8, 8, 12, 12, 8, 8)),  # 768 x 768
    ],
)
def test_published_counts_of_loretta(count, legs):
    """Its legs need not end where rows end, so each is a train of one long row."""
    assert lt.parameter_count(live(((), legs), 5, 1)) == count


@pytest.mark.parametrize(
    ("size", "bonds", "cores", "auxiliary"),
    [
        ((768, 768), (12, 192, 192, 12), (144, 36_864, 589_824, 36_864, 144), 74_016),
        ((768, 3072), (12, 192, 384, 16), (144, 36_864, 2_359_296, 147_456, 256), 184_720),
        ((30_000, 128), (10, 200, 480, 12), (100, 40_000, 3_840_000, 230_400, 144), 270_644),
    ],
)
def test_published_bonds_of_mpop(size, bonds, cores, auxiliary):
    """At full bonds the central tensor has as many entries as the matrix."""
    legs = list(zip(*PUBLISHED["mpop"][size], strict=True))
    before = np.cumprod([o * n for o, n in legs])[:-1]
    after = math.prod(size) // before
    assert tuple(np.minimum(before, after)) == bonds
    ends = (1, *bonds, 1)
    shapes = [(1, ends[k], *legs[k], ends[k + 1]) for k in range(5)]
    stack = TensorTrain(tuple(np.broadcast_to(np.zeros(1), shape) for shape in shapes))
    assert tuple(math.prod(core.shape) for core in stack.cores) == cores
    assert lt.parameter_count(stack) == math.prod(size) + auxiliary == sum(cores)


def test_counts_of_mpobert():
    """One central tensor for all layers, the others of each layer."""
    for size, auxiliary in (((768, 768), 86_609), ((768, 3072), 148_880)):
        legs = list(zip(*PUBLISHED["mpobert"][size], strict=True))
        before = np.cumprod([o * n for o, n in legs])[:-1]
        bonds = (1, *np.minimum(before, math.prod(size) // before), 1)
        shapes = [(1 if k == 2 else 12, bonds[k], *legs[k], bonds[k + 1]) for k in range(5)]
        stack = TensorTrain(tuple(np.broadcast_to(np.zeros(1), shape) for shape in shapes))
        assert lt.parameter_count(stack) == math.prod(size) + 12 * auxiliary


def test_an_mpo_comes_back_and_is_cut_within_its_bound():
    """MPOP's theorem 1: the error is within the root of the sum of squared tails of unfoldings."""
    weights = RNG.standard_normal((24, 36))
    legs = (4, 3, 2), (3, 3, 4)
    made = lt.mpo(weights, legs)
    assert made.ranks == (12, 8)
    assert np.allclose(lt.to_dense(made)[0], weights, atol=1e-12)
    for rank in (1, 3, 6, 8):
        cut = lt.mpo(weights, legs, rank)
        tails = []
        for k in (1, 2):
            rows = np.transpose(weights.reshape(*legs[0], *legs[1]), (0, 3, 1, 4, 2, 5))
            unfolded = rows.reshape(math.prod(rows.shape[: 2 * k]), -1)
            tails.append(np.linalg.norm(np.linalg.svd(unfolded, compute_uv=False)[rank:]))
        assert cut.certificate.distance <= np.linalg.norm(tails) * (1 + 1e-12) + 1e-12
        assert float(cut.certificate.lower) == pytest.approx(max(tails), abs=1e-11)


def test_legs():
    assert balanced(30_000) == (10, 10, 10, 6, 5)
    assert lt.mpo(np.ones((8, 6)), "balanced").legs == ((8, 6),)
    with pytest.raises(OptionError, match=r"the legs of the rows must multiply to 48; found \(5,"):
        lt.tensor_train(lora(), ((5, 8), (8, 8)))
    with pytest.raises(OptionError, match="tt-lora has legs for matrices of 768 x 768"):
        lt.tensor_train(lora(), "tt-lora")
    with pytest.raises(OptionError, match="shape must be one of balanced, tt-lora"):
        lt.tensor_train(lora(), "ttlora")
    with pytest.raises(OptionError, match="an MPO pairs legs of rows and of columns; found 2 and"):
        lt.mpo(np.ones((4, 6)), ((2, 2), (6,)))
    with pytest.raises(RankError, match="ranks must be one for each of 3 bonds"):
        lt.tensor_train(lora(), ((6, 8), (8, 8)), [1, 2])


def test_degenerate_input():
    for stack in (
        lt.LoRAStack(np.zeros((6, 0)), np.zeros((0, 4)), (0, 0)),
        lt.LoRAStack(np.zeros((6, 2)), np.ones((2, 4)), (1, 1)),
        lt.Dense(np.ones((1, 1, 1))),
        lt.LoRAStack(np.ones((7, 9)), np.ones((9, 5)), (9,)),
        lt.tensor_train(lora((1, 6, 4), (2,))),
    ):
        made = lt.tensor_train(stack)
        assert np.allclose(laws.dense_updates(made), laws.dense_updates(stack))
        again = lt.round(made, RelativeError(0.0))
        assert again.ranks == made.ranks
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lt.round(lt.convert(lora(), TensorTrain), 2)


def test_no_matrix_is_made():
    stack = lt.LoRAStack(
        torch.ones((200_000, 4), dtype=torch.float64),
        torch.ones((4, 200_000), dtype=torch.float64),
        (2, 2),
    )
    with LargestTensor() as made:
        train = lt.tensor_train(stack, ((40, 50, 100), (100, 50, 40)), RelativeError(0.1))
    assert train.ranks == (1,) * 5
    assert made.entries <= 16 * 200_000


def test_faults_are_caught():
    """A train that is transposed, cut once more, told wrongly or off by a scale breaks a law."""
    stack, shape = lora((2, 12, 8), (3, 2)), ((4, 3), (4, 2))
    exact = lt.tensor_train(stack, shape)

    def reversed_digits(s, ranks):
        return TensorTrain(exact.cores, exact.out_order[::-1], exact.in_order)

    def scaled(s, ranks):
        return with_arrays(exact, **{"cores.1": exact.cores[1] * 1.001})

    def cut_once_more(s, ranks):
        return lt.tensor_train(s, shape, 2)

    for faulty in (reversed_digits, scaled, cut_once_more):
        with pytest.raises(AssertionError, match="full ranks still lose"):
            laws.exact_at_full_rank(faulty, stack, 3)
    laws.exact_at_full_rank(lambda s, r: exact, stack, 3)
