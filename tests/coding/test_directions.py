"""Singular directions in steps: the loss is the true one, and bits fall as it grows."""

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.coding.directions import decode_directions
from lotr_tn.decompose.coded import Codable, codable, largest_step
from lotr_tn.errors import FormatError
from lotr_tn.testing.laws.truth import dense_updates

SHAPE, RANKS = (60, 45), (4, 0, 3, 5)


def planted(seed=0, falls=0.6, ranks=RANKS):
    rng = np.random.default_rng(seed)
    values = np.concatenate([falls ** np.arange(rank) for rank in ranks])
    up = rng.standard_normal((SHAPE[0], sum(ranks))) * values
    return lt.LoRAStack(up, rng.standard_normal((sum(ranks), SHAPE[1])), ranks)


@pytest.mark.parametrize("share", [1e-3, 0.02, 0.1, 0.5, 1.5])
def test_the_loss_is_that_of_the_dense_difference(share):
    stack = planted()
    codable = Codable(stack)
    step = share * codable.largest
    made, data = codable.at(step)
    off = dense_updates(made) - dense_updates(stack)
    each = np.linalg.norm(off, axis=(1, 2))
    size = np.linalg.norm(dense_updates(stack))
    assert made.certificate.distances == pytest.approx(each, abs=1e-9 * size)
    assert np.sqrt(codable.lost(step)) == pytest.approx(each, abs=1e-6 * size)
    assert made.certificate.lower_bound <= made.certificate.relative_error
    assert made.up.dtype == made.down.dtype == np.float32
    assert len(data) > 0 or made.ranks == (0, 0, 0, 0)


def test_bits_fall_and_the_loss_grows_with_the_step():
    codable = Codable(planted())
    found = [codable.at(codable.largest * 2.0**-k) for k in range(8, 0, -1)]
    sizes = [len(data) for _, data in found]
    errors = [made.certificate.relative_error for made, _ in found]
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    told = [codable.bits(codable.largest * 2.0**-k) / 8 for k in range(8, 3, -1)]
    assert told == pytest.approx(sizes[:5], rel=0.03, abs=32)


def test_a_power_of_two_changes_the_weights_alone():
    stack = planted()
    larger = lt.LoRAStack(stack.up * 4, stack.down * 2.0**9, stack.ranks)
    one, other = Codable(stack), Codable(larger)
    made, data = one.at(one.largest / 50)
    scaled, same = other.at(other.largest / 50)
    rank = sum(made.ranks)
    assert data[4 * rank :] == same[4 * rank :]
    assert np.array_equal(dense_updates(scaled), 2.0**11 * dense_updates(made))


def test_other_factors_of_the_same_updates_take_as_many_bits():
    stack = planted()
    turned = lt.LoRAStack(stack.up.copy(), stack.down.copy(), stack.ranks)
    rng = np.random.default_rng(3)
    for part in turned.slices:
        gauge = rng.standard_normal((part.stop - part.start,) * 2) + 3 * np.eye(
            part.stop - part.start
        )
        turned.up[:, part] = turned.up[:, part] @ gauge
        turned.down[part] = np.linalg.solve(gauge, turned.down[part])
    step = Codable(stack).largest / 40
    (one, data), (other, same) = Codable(stack).at(step), Codable(turned).at(step)
    assert len(same) == pytest.approx(len(data), rel=0.01)
    assert other.certificate.relative_error == pytest.approx(
        one.certificate.relative_error, rel=0.01
    )


@pytest.mark.parametrize(("share", "above"), [(0.05, 1.08), (0.1, 1.1), (0.2, 1.15), (0.3, 1.25)])
def test_gaussian_directions_take_little_more_than_the_bound(share, above):
    """Many layers of long columns, whose side information weighs little."""
    rng = np.random.default_rng(0)
    m, n, rank, layers = 1200, 900, 6, 4
    falls = 0.6 ** np.arange(rank)
    up = rng.standard_normal((m, rank * layers)) * np.tile(falls, layers)
    stack = lt.LoRAStack(up, rng.standard_normal((rank * layers, n)), (rank,) * layers)
    codable = Codable(stack)
    allowed = share**2 * codable.energies.sum()
    step = largest_step(lambda s: codable.lost(s).sum() / allowed, codable.largest)
    taken = 8 * len(codable.at(step)[1])
    assert taken <= above * gaussian_bound(np.array(codable.values), m, n, share)


def gaussian_bound(values, m, n, share):
    """Bits of Gaussian directions at an error: reverse water-filling, and some of them dropped."""
    squares = np.sort((values**2).ravel())[::-1]
    best = np.inf
    for kept in range(1, len(squares) + 1):
        rest = share**2 * squares.sum() - squares[kept:].sum()
        if rest > 0:
            level = rest / kept  # error of each direction that is kept
            each = np.minimum(level, squares[:kept])
            part = m * np.log2(squares[:kept] * (m + n) / (m * each))
            part += n * np.log2(squares[:kept] * (m + n) / (n * each))
            best = min(best, float(np.maximum(part, 0).sum()) / 2)
    return best


def test_nothing_to_code():
    zero = lt.LoRAStack(np.zeros((5, 2)), np.zeros((2, 4)), (2, 0))
    codable = Codable(zero)
    assert codable.largest == 0
    assert largest_step(lambda step: 0.0, codable.largest) is None
    made, data = codable.at(1.0)
    assert (made.ranks, data) == ((0, 0), b"")
    assert largest_step(lambda step: 2.0, 1.0) is None


CURVES = {
    "straight": lambda step: 3 * step,
    "a square": lambda step: (step / 0.07) ** 2,
    "bent": lambda step: np.expm1(9 * step) + 0.3 * step**0.1,
    "in steps": lambda step: 2.0 ** np.round(7 * np.log2(step / 0.2)),
    "a cliff": lambda step: 1e-6 if step < 0.011 else 1e9,
    "flat, then steep": lambda step: max(0.999, (step / 0.5) ** 40),
    "nothing, then all": lambda step: 0.0 if step < 0.3 else np.inf,
    "all within": lambda step: 0.5,
}


@pytest.mark.parametrize("near", [None, 0.3, 0.011])
@pytest.mark.parametrize("curve", CURVES)
def test_the_largest_step_is_found_in_few_looks(curve, near):
    seen = []
    step = largest_step(lambda at: seen.append(at) or CURVES[curve](at), 1.0, near)
    assert CURVES[curve](step) <= 1
    assert CURVES[curve](1.002 * step) > 1 or step > 1.99
    assert len(seen) <= (7 if curve in ("straight", "a square") else 30)


def test_a_step_may_be_too_fine():
    codable = Codable(planted())
    assert codable.at(codable.largest * 1e-7) is None


@pytest.mark.parametrize("size", [1e-200, 1e-20, 1e20, 1e200])
def test_numbers_beyond_those_that_float32_multiplies_are_not_coded(size):
    stack = planted()
    assert codable(stack) is not None
    assert codable(lt.LoRAStack(stack.up * size, stack.down, stack.ranks)) is None


def test_few_layers_at_a_time_make_the_same(monkeypatch):
    one = Codable(planted())
    monkeypatch.setattr("lotr_tn.ops.batches.BLOCK_ELEMENTS", 1)
    other = Codable(planted())
    assert one.at(0.3)[1] == other.at(0.3)[1]
    assert one.lost(0.3) == pytest.approx(other.lost(0.3), rel=1e-12)


@pytest.mark.parametrize("damage", ["short", "nan", "rank"])
def test_damaged_bits_are_refused(damage):
    made, data = Codable(planted()).at(0.3)
    rank = sum(made.ranks)
    nan = np.full(1, np.nan, "<f4").tobytes()
    bad = {"short": data[:-8], "nan": nan + data[4:], "rank": data}[damage]
    with pytest.raises(FormatError, match="damaged"):
        decode_directions(bad, SHAPE, rank + (damage == "rank"))
