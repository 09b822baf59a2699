"""What bits would take at other errors, against files that are written."""

from pathlib import Path

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn import demo
from lotr_tn.adapters.grouping import lora_groups
from lotr_tn.coding.bound import gaussian_bits
from lotr_tn.inspection.bits import bits_curves

ADAPTER = Path(demo.__file__).parent / "adapter"


@pytest.fixture(scope="module")
def adapter():
    return lt.load_adapter(ADAPTER)


@pytest.fixture(scope="module")
def stacks(adapter):
    return [group.stack for group in lora_groups(adapter, "shape").values()]


@pytest.fixture(scope="module")
def curves(stacks):
    return bits_curves(stacks)


@pytest.mark.parametrize(("error", "off"), [(0.005, 0.02), (0.29, 0.02), (0.5, 0.06)])
def test_what_is_told_is_what_is_written(error, off, adapter, curves):
    done = lt.convert_adapter(adapter, lt.TotalError(error), format="auto", coding="auto")
    told, rate = curves[0].at(done.relative_error)
    assert told == pytest.approx(done.bytes_after, rel=off)
    assert 0.8 * told < rate < told


def test_curves_fall_and_those_of_groups_are_their_own(stacks, curves):
    assert len(curves) == 1 + len(stacks)
    for curve in curves:
        assert (np.diff(curve.bytes) <= 0).all()
        assert (np.diff(curve.relative_error) > 0).all()
        assert (np.diff(curve.rate) < 0).all()
        assert curve.relative_error[0] < 0.005
        assert curve.relative_error[-1] > 0.8
    (alone, same) = bits_curves(stacks[:1])
    assert (alone.bytes == same.bytes).all()
    assert alone.at(0.1) == pytest.approx(curves[1].at(0.1), rel=0.01)


def test_between_two_steps_both_agree(curves):
    curve = curves[0]
    for place in (0, 7, -1):
        told = curve.at(curve.relative_error[place])
        assert told == pytest.approx((curve.bytes[place], curve.rate[place]))
    left, right = curve.at(curve.relative_error[5]), curve.at(curve.relative_error[6])
    size, rate = curve.at((curve.relative_error[5] * curve.relative_error[6]) ** 0.5)
    assert size == pytest.approx((left[0] * right[0]) ** 0.5)
    assert rate == pytest.approx((left[1] * right[1]) ** 0.5)
    assert curve.at(curve.relative_error[0] / 2) is None
    assert curve.at(1.0) is None


def test_the_rate_is_that_of_all_directions(stacks, curves):
    values = [
        np.linalg.svd(stack.up[:, s] @ stack.down[s])[1] for stack in stacks for s in stack.slices
    ]
    shapes = [stack.shape[1:] for stack in stacks for _ in stack.ranks]
    energy = sum(float((one**2).sum()) for one in values)
    error = float(curves[0].relative_error[8])
    found = gaussian_bits(values, shapes, error**2 * energy) / 8
    assert curves[0].rate[8] == pytest.approx(found, rel=1e-3)


def test_a_scale_changes_nothing(stacks, curves):
    (whole, _) = bits_curves(
        [lt.LoRAStack(2.0**12 * stacks[0].up, stacks[0].down, stacks[0].ranks)]
    )
    (same, _) = bits_curves(stacks[:1])
    assert whole.bytes == pytest.approx(same.bytes)
    assert whole.relative_error == pytest.approx(same.relative_error)


def test_nothing_has_no_curve(stacks):
    zero = lt.LoRAStack(np.zeros((5, 2)), np.zeros((2, 4)), (2, 0))
    assert bits_curves([zero]) is None
    whole, empty, other = bits_curves([zero, stacks[0]])
    assert empty.bytes.size == 0
    assert empty.at(0.1) is None
    assert (whole.bytes == other.bytes).all()
    up, down = 1e20 * stacks[0].up.astype(float), stacks[0].down.astype(float)
    far = lt.LoRAStack(up, down, stacks[0].ranks)
    assert bits_curves([far, stacks[0]]) is None
