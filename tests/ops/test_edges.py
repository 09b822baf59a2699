"""What single operations do at their edges: narrow dtypes, known counts, refusals, warnings."""

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.errors import BackendError, FormatError, PerformanceWarning
from lotr_tn.testing import laws


def test_distance_does_not_cancel_in_float32():
    """Cores apart by 1e-3 (style of the classic trap): the Gram formula gives 0 here."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((k, 4)))[0].astype(np.float32) for k in (50, 40))
    core = rng.standard_normal((3, 4, 4)).astype(np.float32)
    a = lt.Tucker2(u, core, v)
    b = lt.Tucker2(u, (core * np.float32(1 + 1e-6)), v)
    laws.distance_is_the_norm_of_the_difference(lt.distance, a, b)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_narrow_dtypes_are_measured_in_float64(dtype):
    rng = np.random.default_rng(0)
    a = lt.LoRAStack(
        rng.standard_normal((30, 6)).astype(dtype),
        rng.standard_normal((6, 20)).astype(dtype),
        (2, 4),
    )
    assert np.isclose(float(lt.norm(a)), np.linalg.norm(laws.dense_updates(a)), rtol=1e-9)
    assert lt.apply(a, np.ones((1, 20), dtype)).dtype == dtype
    assert lt.to_dense(a).dtype == dtype


@pytest.mark.parametrize(
    ("count", "stack"),
    [
        (7 * (5 + 4), lt.LoRAStack(np.ones((5, 7)), np.ones((7, 4)), (3, 4))),
        (
            5 * 2 + 4 * 3 + 6 * 2 * 3,
            lt.Tucker2(np.ones((5, 2)), np.ones((6, 2, 3)), np.ones((4, 3))),
        ),
        (2 * 3 * 4, lt.Dense(np.ones((2, 3, 4)))),
    ],
)
def test_parameter_count(count, stack):
    assert lt.parameter_count(stack) == count


@pytest.mark.parametrize(
    ("rank", "count"), [(1, 1560), (2, 3168), (4, 6528), (8, 13824), (16, 30720), (32, 73728)]
)
def test_published_counts_of_roberta_base(rank, count):
    u, core = np.ones((768, rank)), np.ones((24, rank, rank))
    assert lt.parameter_count(lt.Tucker2(u, core, u)) == count


def test_refusals():
    a = lt.Dense(np.ones((2, 3, 4)))
    with pytest.raises(FormatError, match=r"\(2, 3, 4\) and \(2, 4, 3\)"):
        lt.distance(a, lt.Dense(np.ones((2, 4, 3))))
    with pytest.raises(BackendError, match="one dtype"):
        lt.inner(a, lt.Dense(np.ones((2, 3, 4), np.float32)))
    with pytest.raises(FormatError, match="n = 4"):
        lt.apply(a, np.ones((5, 3)))
    with pytest.raises(FormatError, match=r"0 … 1; found 2"):
        lt.apply(a, np.ones((5, 4)), layer=2)
    with pytest.raises(FormatError, match="at least one layer"):
        lt.take_layers(a, [])
    with pytest.raises(FormatError, match="found -3"):
        lt.take_layers(a, [-3])


def test_to_dense_warns_before_it_is_huge(monkeypatch):
    monkeypatch.setattr("lotr_tn.ops.dense.WARN_ABOVE_ENTRIES", 10)
    with pytest.warns(PerformanceWarning, match="24 numbers"):
        lt.to_dense(lt.Dense(np.ones((2, 3, 4))))
