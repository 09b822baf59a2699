import numpy as np
import pytest

from lotr_tn import Certificate, Dense, LoRAStack, LowRankTucker2, Tucker2
from lotr_tn.errors import BackendError, FormatError


def test_shapes_and_ranks():
    stack = LoRAStack(np.ones((5, 3)), np.ones((3, 4)), (1, 0, 2))
    assert stack.shape == (3, 5, 4)
    assert stack.slices == (slice(0, 1), slice(1, 1), slice(1, 3))
    tucker = Tucker2(np.ones((5, 2)), np.ones((7, 2, 3)), np.ones((4, 3)))
    assert (tucker.shape, tucker.ranks) == ((7, 5, 4), (2, 3))
    assert Dense(np.ones((2, 3, 4))).shape == (2, 3, 4)
    low = low_rank(ranks=(1, 0, 2))
    assert (low.shape, low.shared_ranks, low.ranks) == ((3, 5, 4), (2, 6), (1, 0, 2))
    assert low.slices == (slice(0, 1), slice(1, 1), slice(1, 3))
    assert (low.T.shape, low.T.shared_ranks) == ((3, 4, 5), (6, 2))


def low_rank(u=(5, 2), up=(2, 3), down=(3, 6), v=(4, 6), ranks=(3,), dtype=float):
    return LowRankTucker2(np.ones(u), np.ones(up), np.ones(down, dtype), np.ones(v), ranks)


def test_a_low_rank_stack_is_printed_with_its_ranks():
    small = LowRankTucker2(*(np.ones((1, 1)) for _ in range(4)), (1,))
    assert repr(small) == "LowRankTucker2(u=[[1.]], up=[[1.]], down=[[1.]], v=[[1.]], ranks=(1,))"
    assert "u=<float64 (50, 2)>" in repr(low_rank(u=(50, 2)))
    half = np.asarray(0.5)
    lost = Certificate(half[None], half[None] * 2, half, half, "truncated-svd", 0)
    made = LowRankTucker2(*(np.ones((1, 1)) for _ in range(4)), (1,), lost)
    assert repr(made).endswith("ranks=(1,), relative_error=0.5)")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: LoRAStack(np.ones((5, 3)), np.ones((2, 4)), (3,)),
            "axis R .*3 in up and 2 in down",
        ),
        (lambda: LoRAStack(np.ones((5, 3)), np.ones((3, 4)), (1, 1)), "3 in up and 2 in the sum"),
        (lambda: LoRAStack(np.ones((5, 0)), np.ones((0, 4)), ()), "at least one"),
        (lambda: LoRAStack(np.ones((5, 1)), np.ones((1, 4)), (2, -1)), "at least one; found"),
        (lambda: LoRAStack(np.ones(5), np.ones((3, 4)), (3,)), r"up must have 2 axes \(m, R\)"),
        (lambda: Tucker2(np.ones((5, 2)), np.ones((7, 3, 3)), np.ones((4, 3))), "axis r1"),
        (lambda: Tucker2(np.ones((5, 2)), np.ones((7, 2, 2)), np.ones((4, 3))), "axis r2"),
        (lambda: Tucker2(np.ones((5, 2)), np.ones((0, 2, 3)), np.ones((4, 3))), "L = 0"),
        (lambda: low_rank(up=(3, 3)), "axis r1 .*2 in u and 3 in up"),
        (lambda: low_rank(down=(3, 2)), "axis r2 .*6 in v and 2 in down"),
        (lambda: low_rank(down=(4, 6)), "axis K .*3 in up and 4 in down"),
        (lambda: low_rank(ranks=(1, 1)), "3 in up and 2 in the sum of ranks"),
        (lambda: low_rank(ranks=(4, -1)), "at least one; found"),
        (lambda: low_rank(up=(2, 0), down=(0, 6), ranks=()), "at least one; found"),
        (lambda: low_rank(v=(4,)), r"v must have 2 axes \(n, r2\)"),
        (lambda: Dense(np.ones((2, 3))), "w must have 3 axes"),
        (lambda: Dense(np.ones((0, 2, 3))), "L = 0"),
    ],
)
def test_refusals_name_axis_fields_and_sizes(build, message):
    with pytest.raises(FormatError, match=message):
        build()


def test_one_dtype():
    with pytest.raises(BackendError, match="one dtype"):
        Tucker2(np.ones((5, 2)), np.ones((7, 2, 3), np.float32), np.ones((4, 3)))
    with pytest.raises(BackendError, match="down: float32"):
        low_rank(dtype=np.float32)


def test_frozen():
    with pytest.raises(AttributeError):
        Dense(np.ones((1, 2, 3))).w = None
