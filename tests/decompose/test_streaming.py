"""Bases of a stack seen block by block: true errors, bounds that hold, and bounded memory."""

import copy
import itertools
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn._arrays import to_numpy
from lotr_tn.decompose import Bases, Block, Sketch, grow, joined, project
from lotr_tn.errors import BackendError, DerivativeError, FormatError, OptionError
from lotr_tn.testing import laws
from tests.conftest import BACKENDS, on_backend, stack_on
from tests.tripwire import LargestTensor

FLOORS = {"float64": 1e-14, "float32": 2.0**-20}


def random_block(rng, shape, ranks, dtype="float64", zero=()):
    up = rng.standard_normal((shape[0], sum(ranks)))
    down = rng.standard_normal((sum(ranks), shape[1]))
    stack = lt.LoRAStack(up.astype(dtype), down.astype(dtype), ranks)
    for layer in zero:
        stack.up[:, stack.slices[layer]] = 0
    return stack


def planted(rng, count, *, shape=(90, 70), rank=(6, 5), layers=8, terms=4, eta=0.0):
    """Blocks of layers in common subspaces of these ranks, and noise of relative size eta."""
    m, n = shape
    u, v = (np.linalg.qr(rng.standard_normal((s, r)))[0] for s, r in zip(shape, rank, strict=True))
    for _ in range(count):
        up = u @ rng.standard_normal((rank[0], layers * terms))
        down = rng.standard_normal((layers * terms, rank[1])) @ v.T
        up += eta / 2 * np.sqrt(rank[0] / m) * rng.standard_normal(up.shape)
        down += eta / 2 * np.sqrt(rank[1] / n) * rng.standard_normal(down.shape)
        yield lt.LoRAStack(up, down, (terms,) * layers)


def squares(dense):
    return (dense**2).sum(axis=(1, 2))


def magnitudes(stack):
    """Σ_j ‖x_j‖²‖y_j‖² of each layer, which rounding is relative to."""
    up, down = (to_numpy(x).astype(float) for x in (stack.up, stack.down))
    products = (up**2).sum(axis=0) * (down**2).sum(axis=1)
    return np.array([products[part].sum() for part in stack.slices])


def inside(bases, block):
    """The dense layers (b, m, n) that a block stands for in bases that may have grown since."""
    up, down = to_numpy(block.up), to_numpy(block.down)
    left = to_numpy(bases.left)[:, : up.shape[0]]
    right = to_numpy(bases.right)[:, : down.shape[1]]
    ends = np.cumsum((0, *block.ranks))
    parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
    return np.stack([left @ up[:, s] @ down[s, :] @ right.T for s in parts])


def assert_orthonormal(bases, tolerance=1e-13):
    for side in (to_numpy(bases.left), to_numpy(bases.right)):
        assert side.dtype == np.float64
        assert np.abs(side.T @ side - np.eye(side.shape[1])).max(initial=0) < tolerance


def assert_true(bases, block, stack):
    """Coordinates, norms and missed are those of the dense updates, without any rank choice."""
    dense, own = laws.dense_updates(stack), magnitudes(stack)
    left, right = to_numpy(bases.left), to_numpy(bases.right)
    assert block.ranks == stack.ranks
    x, y = (to_numpy(z).astype(float) for z in (stack.up, stack.down))
    size = 1e-12 * np.abs(x).max(initial=0), 1e-12 * np.abs(y).max(initial=0)
    assert np.abs(to_numpy(block.up) - left.T @ x).max(initial=0) <= size[0]
    assert np.abs(to_numpy(block.down) - y @ right).max(initial=0) <= size[1]
    truth = squares(dense - left @ (left.T @ dense @ right) @ right.T)
    assert (np.abs(to_numpy(block.missed) - truth) <= 1e-12 * own).all()
    assert (np.abs(to_numpy(block.norms) - squares(dense)) <= 1e-12 * own).all()


blocks_of_ranks = st.lists(
    st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=5
)


@given(
    seed=st.integers(0, 10**6),
    ranks=blocks_of_ranks,
    shape=st.sampled_from([(7, 12), (25, 9), (40, 31)]),
    eta=st.sampled_from([0.0, 1e-6, 0.05, 0.4, 1.0]),
    dtype=st.sampled_from(["float32", "float64"]),
)
@example(seed=0, ranks=[[0], [0, 0], [3, 0, 1]], shape=(7, 12), eta=0.0, dtype="float64")
@example(seed=0, ranks=[[4] * 4] * 3, shape=(7, 12), eta=0.0, dtype="float32")
def test_every_layer_is_within_its_bound_in_any_order(seed, ranks, shape, eta, dtype):
    """Measured against dense truth; the order of blocks changes the bases but breaks no bound."""
    rng = np.random.default_rng(seed)
    stacks = [random_block(rng, shape, tuple(r), dtype, zero=range(0, len(r), 3)) for r in ranks]
    for order in (range(len(stacks)), reversed(range(len(stacks)))):
        bases, seen = Bases.empty(*shape), []
        for index in order:
            stack = stacks[index]
            allowed = eta**2 * squares(laws.dense_updates(stack))
            before = bases
            bases, block = grow(bases, stack, allowed)
            assert_true(bases, block, stack)
            floor = 2 * FLOORS[dtype] ** 2 * magnitudes(stack)
            assert (block.missed <= allowed * (1 + 1e-12) + floor).all()
            assert np.array_equal(bases.left[:, : before.ranks[0]], before.left)
            assert np.array_equal(bases.right[:, : before.ranks[1]], before.right)
            seen.append((stack, block))
        assert_orthonormal(bases)
        whole, missed = joined(bases, [block for _, block in seen])
        truth = np.concatenate([laws.dense_updates(stack) for stack, _ in seen])
        own = np.concatenate([magnitudes(stack) for stack, _ in seen])
        assert whole.shape == truth.shape
        assert whole.shared_ranks == bases.ranks
        errors = squares(truth - laws.dense_updates(whole))
        assert (np.abs(errors - missed) <= 1e-12 * own).all()
        if eta == 0:
            assert (errors <= 1e-24 * own).all()


def test_nothing_is_added_that_is_not_needed():
    """One direction fewer on a side, and a layer of the block would leave its bound."""
    rng = np.random.default_rng(3)
    scale = 0.6 ** np.arange(20)
    up, down = rng.standard_normal((60, 20)) * scale, rng.standard_normal((20, 50))
    up, down = (np.concatenate([x, x[::-1]], axis=a) for x, a in ((up, 1), (down, 0)))
    stack = lt.LoRAStack(up, down, (10, 10, 20))
    dense = laws.dense_updates(stack)
    norms = squares(dense)
    for eta in (0.5, 0.1, 0.01, 1e-4, 1e-6):
        allowed = eta**2 * norms
        bases, _ = grow(Bases.empty(60, 50), stack, allowed)
        k = bases.ranks[0]
        scaled = np.concatenate([w / a**0.5 for w, a in zip(dense, allowed, strict=True)], axis=1)
        vectors = np.linalg.svd(scaled)[0]
        lost = [squares(vectors[:, i:].T @ dense) for i in (k - 1, k)]
        assert (lost[0] > allowed / 2).any()
        assert (lost[1] <= allowed / 2).all()
        assert np.linalg.norm(vectors[:, :k].T @ bases.left, 2) == pytest.approx(1, abs=1e-9)
        again, block = grow(bases, stack, allowed)
        assert again.ranks == bases.ranks
        assert (block.missed <= allowed).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lossless_on_every_backend(backend, dtype):
    rng = np.random.default_rng(1)
    stacks = [
        random_block(rng, (50, 40), ranks, dtype, zero)
        for ranks, zero in (((3, 3), ()), ((4, 0, 2), (0,)), ((5,) * 4, (1, 2)), ((5,) * 6, ()))
    ]
    bases = Bases.empty(50, 40, like=on_backend(np.zeros(1), backend))
    blocks, widths = [], []
    for stack in stacks:
        moved = stack_on(stack, backend)
        bases, block = grow(bases, moved, on_backend(np.zeros(stack.shape[0]), backend))
        assert type(block.missed) is type(bases.left) is type(moved.up)
        assert_true(bases, block, stack)
        blocks.append(block)
        widths.append(bases.ranks)
    assert widths == [(6, 6), (8, 8), (18, 18), (48, 40)]
    assert_orthonormal(bases)
    whole, missed = joined(bases, blocks)
    assert isinstance(whole, lt.LowRankTucker2)
    truth = np.concatenate([laws.dense_updates(stack) for stack in stacks])
    assert np.abs(laws.dense_updates(whole) - truth).max() < 1e-12 * np.abs(truth).max()
    assert to_numpy(missed).max() < 1e-24 * squares(truth).max()


def test_a_complete_basis_misses_nothing_more():
    rng = np.random.default_rng(2)
    bases = Bases.empty(12, 30)
    for _ in range(8):
        bases, block = grow(bases, random_block(rng, (12, 30), (2, 3)), (0, 0))
    assert bases.ranks == (12, 30)
    assert np.array_equal(block.missed, [0, 0])
    assert_orthonormal(bases)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("eta", [0.0, 0.01, 0.02])
def test_a_common_subspace_is_found_and_not_left(dtype, eta):
    """300 layers and more: noise below the error that is allowed adds no direction."""
    rng = np.random.default_rng(5)
    bases = Bases.empty(90, 70)
    for number, stack in enumerate(planted(rng, 40, eta=eta)):
        stack = lt.astype(stack, dtype)
        norms = to_numpy(lt.layer_norms(stack)) ** 2
        bases, block = grow(bases, stack, (0.7 * 0.05) ** 2 * norms)
        assert bases.ranks == (6, 5), number
        assert (block.missed <= (0.7 * 0.05) ** 2 * norms).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_alone_adds_no_direction(dtype):
    """Without any error allowed: factors are products over 40 columns, rounded to their dtype."""
    rng = np.random.default_rng(6)
    bases = Bases.empty(90, 70)
    for stack in planted(rng, 60, rank=(40, 35)):
        bases, _ = grow(bases, lt.astype(stack, dtype), np.zeros(8))
        assert bases.ranks[0] <= 40
        assert bases.ranks[1] <= 35
    assert bases.ranks == (40, 35)


def test_residuals_are_sums_of_squares():
    """Missed squares of 1e-16 to 1e-24 of the norm keep their digits: no cancellation."""
    rng = np.random.default_rng(7)
    bases, _ = grow(Bases.empty(90, 70), next(planted(rng, 1)), np.zeros(8))
    for share in (1e-8, 1e-10, 1e-12):
        along = (
            bases.left @ rng.standard_normal((6, 2)),
            rng.standard_normal((2, 5)) @ bases.right.T,
        )
        beside = rng.standard_normal((90, 2))
        beside -= bases.left @ (bases.left.T @ beside)
        stack = lt.LoRAStack(along[0] + share * beside, along[1], (2,))
        block = project(bases, stack)
        truth = squares((share * beside @ along[1])[None])
        assert block.missed == pytest.approx(truth, rel=1e-3 * (1e-12 / share))


def test_long_sums_of_one_sign_leave_no_rounding():
    """Sums of 200 000 numbers of one sign round to 1e-14; a second split clears that away."""
    rng, m = np.random.default_rng(21), 200_000
    shape = 1 + 1e-3 * np.sin(np.arange(m))
    bases, found = Bases.empty(m, 3), []
    for _ in range(6):
        up, down = np.outer(shape, rng.uniform(1, 2, 4)), rng.standard_normal((4, 3))
        bases, block = grow(bases, lt.LoRAStack(up, down, (2, 2)), (0, 0))
        found.append(float((block.missed / block.norms).max()))
    assert bases.ranks == (1, 3)
    assert max(found) < 2e-30


@pytest.mark.parametrize("gap", [1e-4, 1e-7])
def test_terms_that_cancel_are_measured_to_the_last_digit(gap):
    """e cᵀ − e (c + gap·d)ᵀ, whose parts are 1 / gap times as large, outside the bases."""
    rng = np.random.default_rng(22)
    e, c, d = (rng.standard_normal(s) for s in (50, 40, 40))
    other = c + gap * d
    stack = lt.LoRAStack(np.stack([e, -e], axis=1), np.stack([c, other]), (2,))
    truth = squares(np.outer(e, c - other)[None])
    bases, _ = grow(Bases.empty(50, 40), random_block(rng, (50, 40), (3,)), (0,))
    left, right = bases.left, bases.right
    inside = squares((left @ (left.T @ np.outer(e, c - other) @ right) @ right.T)[None])
    block = project(bases, stack)
    assert block.norms == pytest.approx(truth, rel=1e-11 / gap)
    assert block.missed == pytest.approx(truth - inside, rel=1e-11 / gap)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_terms_of_unlike_lengths_keep_their_digits(dtype):
    """(x c)(y / c)ᵀ for c from 1e-9 to 1e9, term by term: the same update, the same numbers."""
    rng = np.random.default_rng(8)
    stack = random_block(rng, (40, 30), (4, 4))
    bases, _ = grow(Bases.empty(40, 30), random_block(rng, (40, 30), (3,) * 4), (0,) * 4)
    factor = 2.0 ** np.array([-30, 0, 30, 3, 20, -20, 0, 10])
    turned = lt.LoRAStack(
        (stack.up * factor).astype(dtype), (stack.down / factor[:, None]).astype(dtype), (4, 4)
    )
    assert_true(bases, project(bases, turned), turned)


def test_a_limit_on_columns_is_kept_and_reported():
    rng = np.random.default_rng(9)
    stack = random_block(rng, (40, 30), (5, 5))
    bases, block = grow(Bases.empty(40, 30), stack, (0, 0), most=4)
    assert bases.ranks == (4, 4)
    assert (block.missed > 0.1 * block.norms).all()
    assert_true(bases, block, stack)
    same, block = grow(bases, random_block(rng, (40, 30), (5, 5)), (0, 0), most=2)
    assert same.ranks == (4, 4)
    assert block.up.shape == (4, 10)
    none, block = grow(Bases.empty(40, 30), stack, (0, 0), most=0)
    assert none.ranks == (0, 0)
    assert block.missed == pytest.approx(squares(laws.dense_updates(stack)), rel=1e-13)
    assert np.array_equal(block.missed, block.norms)
    wider, _ = grow(bases, stack, (0, 0), most=7)
    assert wider.ranks == (7, 7)
    anything, _ = grow(Bases.empty(40, 30), stack, (np.inf, np.inf))
    assert anything.ranks == (0, 0)


def test_orthonormal_after_two_thousand_updates():
    """New directions down to 1e-9 of a layer, most of which lies in the bases already.

    Those are known to 1e-7 when first seen, so that more columns follow when they are strong.
    """
    rng = np.random.default_rng(10)
    m, n, k = 700, 600, 150
    u, v = (np.linalg.qr(rng.standard_normal((s, k)))[0] for s in (m, n))
    bases, worst = Bases.empty(m, n), 0.0
    for update in range(2000):
        new = min(k, 2 + update // 12)
        strength = np.ones(new)
        strength[-1] = 10.0 ** -rng.integers(0, 10)
        up = u[:, :new] * strength @ rng.standard_normal((new, 3))
        down = rng.standard_normal((3, new)) * strength @ v[:, :new].T
        before = bases
        bases, block = grow(bases, lt.LoRAStack(up, down, (2, 1)), (0, 0))
        worst = max(worst, float((block.missed / block.norms).max()))
        assert np.shares_memory(bases.left, before.left) or bases.ranks[0] > before.ranks[0]
    assert k <= min(bases.ranks)
    assert max(bases.ranks) < 3 * k
    assert worst < 1e-26
    assert_orthonormal(bases)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_bases_that_grow_in_two_ways_do_not_share_columns(backend):
    """Spare room is written to once: the second branch, and copies, have memory of their own."""
    rng = np.random.default_rng(11)

    def block(rank):
        return stack_on(random_block(rng, (60, 50), (rank,)), backend)

    root, _ = grow(Bases.empty(60, 50, like=block(1).up), block(3), (0,))
    kept = to_numpy(root.left).copy()
    copies = [copy.deepcopy(root), pickle.loads(pickle.dumps(root))]
    branches, seen = [], []
    for start in (root, root, root, *copies):
        stack = block(2)
        branches.append(grow(start, stack, (0,))[0])
        seen.append(stack)
    twigs = [grow(branch, block(4), (0,))[0] for branch in (*branches, *branches)]
    for branch, stack in zip(branches, seen, strict=True):
        assert branch.ranks == (5, 5)
        assert np.array_equal(to_numpy(branch.left)[:, :3], kept)
        assert to_numpy(project(branch, stack).missed)[0] < 1e-24 * 1e4
    assert np.array_equal(to_numpy(root.left), kept)
    for twig, branch in zip(twigs, (*branches, *branches), strict=True):
        assert np.array_equal(to_numpy(twig.left)[:, :5], to_numpy(branch.left))
        assert_orthonormal(twig)
    given = Bases(root.left, root.right)  # made by hand: its memory is the caller's
    grow(given, block(2), (0,))
    assert np.array_equal(to_numpy(root.left), kept)


def test_room_is_taken_rarely():
    """A column at a time, and memory is moved only when the number of columns has doubled."""
    rng = np.random.default_rng(12)
    bases, moves, held = Bases.empty(200, 190), 0, None
    for _ in range(130):
        bases, _ = grow(bases, random_block(rng, (200, 190), (1,)), (0,))
        place = bases.left.__array_interface__["data"][0]
        moves, held = moves + (place != held), place
    assert bases.ranks == (130, 130)
    assert moves == 5  # room for 16, 32, 64, 128 and 200 columns


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tripwire(dtype):
    size, terms = 100_000, 6
    generator = torch.Generator().manual_seed(0)
    bases = Bases.empty(size, size, like=torch.empty(0))
    sketch = Sketch.empty(size, size, 4, like=torch.empty(0))
    with LargestTensor() as largest:
        for ranks in ((3, 3), (1, 2, 3)):
            up = torch.randn(size, terms, generator=generator).to(dtype)
            down = torch.randn(terms, size, generator=generator).to(dtype)
            stack = lt.LoRAStack(up, down, ranks)
            bases, block = grow(bases, stack, [0.0] * len(ranks))
            sketch = sketch.including(stack)
        joined(bases, [project(bases, stack)]), project(sketch.bases(), stack)
    assert bases.ranks == (12, 12)
    assert block.missed.shape == (3,)
    assert largest.entries <= size * 24  # the room of the bases; m · n is 4000 times this


def test_memory_does_not_grow_with_the_number_of_layers():
    def peak(blocks):
        rng = np.random.default_rng(0)
        tracemalloc.start()
        try:
            bases = Bases.empty(900, 700)
            for stack in planted(rng, blocks, shape=(900, 700)):
                bases, block = grow(bases, stack, 1e-6 * lt.layer_norms(stack) ** 2)
            return tracemalloc.get_traced_memory()[1], block
        finally:
            tracemalloc.stop()

    peak(2)
    (few, _), (many, block) = peak(3), peak(40)
    assert many < 1.1 * few
    assert many < 10 * 8 * (900 + 700) * (16 + 32)
    assert many < 900 * 700 * 8 * 8 / 4  # of one block as dense matrices
    assert block.up.base is None or block.up.base.size <= 2 * block.up.size


def test_joined_fills_up_and_refuses():
    rng = np.random.default_rng(13)
    first, second = (random_block(rng, (40, 30), (2, 3)) for _ in range(2))
    early, one = grow(Bases.empty(40, 30), first, (0, 0))
    late, two = grow(early, second, (0, 0))
    whole, missed = joined(late, [one, two])
    assert whole.ranks == (2, 3, 2, 3)
    assert (whole.up.shape, whole.down.shape) == ((10, 10), (10, 10))
    assert not whole.up[5:, :5].any()
    assert not whole.down[:5, 5:].any()
    assert np.array_equal(missed, np.concatenate([one.missed, two.missed]))
    with pytest.raises(FormatError, match="block 1 has 10 by 10 coordinates, the bases 5 by 5"):
        joined(early, [one, two])
    with pytest.raises(FormatError, match="at least one block"):
        joined(late, [])


@pytest.mark.parametrize(("size", "factor"), [(6 + 16, 2), (6 + 6, 10)])
def test_a_sketch_is_within_its_expected_error(size, factor):
    """Planted subspaces and noise: the mean over seeds against theorem 10.5, for both sides."""
    rng = np.random.default_rng(14)
    stacks = list(planted(rng, 4, eta=0.05, shape=(90, 70), rank=(6, 6)))
    dense = np.concatenate([laws.dense_updates(stack) for stack in stacks])
    sides = np.concatenate(dense, axis=1), np.concatenate(dense, axis=0).T
    tails = [(np.linalg.svd(side, compute_uv=False)[6:] ** 2).sum() for side in sides]
    lost = np.zeros((40, 2))
    for seed in range(len(lost)):
        sketch = Sketch.empty(90, 70, size, seed=seed)
        for stack in stacks:
            sketch = sketch.including(stack)
        assert sketch.layers == 32
        bases = sketch.bases()
        assert bases.ranks == (size, size)
        assert_orthonormal(bases)
        for index, (side, q) in enumerate(zip(sides, (bases.left, bases.right), strict=True)):
            lost[seed, index] = ((side - q @ (q.T @ side)) ** 2).sum()
    bound = 1 + 6 / (size - 6 - 1)
    assert (lost.mean(axis=0) <= bound * np.array(tails)).all()
    assert (lost.max(axis=0) <= factor * np.array(tails)).all()
    for stack in stacks:
        assert_true(bases, project(bases, stack), stack)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sketch_as_large_as_the_stack_loses_nothing(backend, dtype):
    rng = np.random.default_rng(15)
    stacks = [random_block(rng, (50, 40), ranks, dtype) for ranks in ((2, 3, 0), (1,), (0,))]
    sketch = Sketch.empty(50, 40, 9, like=on_backend(np.zeros(1), backend))
    for stack in stacks:
        sketch = sketch.including(stack_on(stack, backend))
    bases = sketch.bases()
    assert bases.ranks == (6, 6)  # three columns of nine hold rounding alone
    for stack in stacks:
        block = project(bases, stack_on(stack, backend))
        assert (to_numpy(block.missed) <= 1e-24 * magnitudes(stack)).all()
        assert_true(bases, block, stack)


def test_layers_that_cancel_are_seen_by_a_sketch():
    rng = np.random.default_rng(16)
    one = random_block(rng, (50, 40), (3,))
    both = lt.LoRAStack(
        np.concatenate([one.up, -one.up], axis=1), np.concatenate([one.down] * 2), (3, 3)
    )
    for blocks in ([both], [one, lt.scale(one, -1.0)]):
        sketch = Sketch.empty(50, 40, 5)
        for stack in blocks:
            sketch = sketch.including(stack)
        assert sketch.bases().ranks == (3, 3)
        assert project(sketch.bases(), one).missed[0] < 1e-24 * magnitudes(one)[0]


def test_a_sketch_depends_on_its_seed_and_scales_alone():
    rng = np.random.default_rng(17)
    stack = random_block(rng, (50, 40), (3, 3))
    faint = lt.scale(stack, [1.0, 1e-6])
    empty = Sketch.empty(50, 40, 4, seed=3)
    once, twice = (empty.including(stack) for _ in range(2))
    assert np.array_equal(once.left, twice.left)
    assert np.array_equal(once.right, twice.right)
    assert not empty.left.any()
    assert not np.allclose(once.left, Sketch.empty(50, 40, 4, seed=4).including(stack).left)
    parts = empty.including(lt.take_layers(stack, [0])).including(lt.take_layers(stack, [1]))
    assert np.allclose(parts.left, once.left, atol=1e-12)
    back = empty.including(faint, scales=(1.0, 1e6))
    assert np.allclose(back.left, once.left, atol=1e-12)
    assert np.allclose(back.right, once.right, atol=1e-12)
    assert not np.allclose(empty.including(faint).left, once.left, atol=1e-3)


def test_torch_and_numpy_agree():
    rng = np.random.default_rng(18)
    kinds = {"numpy": Bases.empty(90, 70), "torch": Bases.empty(90, 70, like=torch.empty(0))}
    for stack in planted(rng, 3, eta=0.03):
        found = []
        allowed = 1e-3 * squares(laws.dense_updates(stack))
        for backend, bases in kinds.items():
            kinds[backend], block = grow(bases, stack_on(stack, backend), allowed)
            found.append(block)
        assert to_numpy(found[1].missed) == pytest.approx(to_numpy(found[0].missed), rel=1e-9)
    projectors = [to_numpy(b.left) @ to_numpy(b.left).T for b in kinds.values()]
    assert np.allclose(*projectors, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu():
    rng = np.random.default_rng(19)
    bases = Bases.empty(90, 70, like=torch.empty(0, device="cuda"))
    sketch = Sketch.empty(90, 70, 20, like=torch.empty(0, device="cuda"))
    for stack in planted(rng, 3, eta=0.03):
        moved = lt.LoRAStack(
            torch.from_numpy(stack.up).cuda(), torch.from_numpy(stack.down).cuda(), stack.ranks
        )
        bases, block = grow(bases, moved, 1e-3 * squares(laws.dense_updates(stack)))
        sketch = sketch.including(moved)
        assert_true(bases, block, stack)
    assert block.up.device.type == bases.left.device.type == "cuda"
    assert_true(sketch.bases(), project(sketch.bases(), moved), stack)


def test_refusals():
    rng = np.random.default_rng(20)
    stack, bases = random_block(rng, (40, 30), (2, 2)), Bases.empty(40, 30)
    with pytest.raises(
        FormatError, match="for updates of 40 by 31, those of the block are 40 by 30"
    ):
        grow(Bases.empty(40, 31), stack, (0, 0))
    for allowed in ((0, -1), (0, np.nan)):
        with pytest.raises(OptionError, match="allowed must be at least 0; found"):
            grow(bases, stack, allowed)
    with pytest.raises(OptionError, match=r"allowed must be one number for each of 2 layers"):
        grow(bases, stack, (0, 0, 0))
    with pytest.raises(OptionError, match="most must be at least 0"):
        grow(bases, stack, (0, 0), most=-1)
    with pytest.raises(OptionError, match="at least one column"):
        Sketch.empty(40, 30, 0)
    with pytest.raises(OptionError, match="scales must be finite"):
        Sketch.empty(40, 30, 3).including(stack, scales=(1, np.inf))
    with pytest.raises(FormatError, match="bases must be float64, found float32"):
        Bases(np.zeros((4, 2), np.float32), np.zeros((3, 1), np.float32))
    with pytest.raises(FormatError, match="left"):
        Bases(np.zeros(4), np.zeros((3, 1)))
    with pytest.raises(BackendError):
        grow(Bases.empty(40, 30, like=torch.empty(0)), stack, (0, 0))
    recorded = stack_on(stack, "torch")
    recorded.up.requires_grad_(True)
    with pytest.raises(DerivativeError, match="block by block"):
        grow(Bases.empty(40, 30, like=recorded.down), recorded, (0, 0))
    for value in (np.nan, np.inf):
        broken = copy.deepcopy(stack)
        broken.up[3, 2] = value
        for refuse in (lambda s: grow(bases, s, (0, 0)), Sketch.empty(40, 30, 3).including):
            with pytest.raises(FormatError, match="layer 1 of the block has no finite norm"):
                refuse(broken)
    assert isinstance(project(bases, stack), Block)
