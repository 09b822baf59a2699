import numpy as np
import pytest

from lotr_tn import Dense, LoRAStack, Tucker2
from lotr_tn.errors import BackendError, FormatError


def test_shapes_and_ranks():
    stack = LoRAStack(np.ones((5, 3)), np.ones((3, 4)), (1, 0, 2))
    assert stack.shape == (3, 5, 4)
    assert stack.slices == (slice(0, 1), slice(1, 1), slice(1, 3))
    tucker = Tucker2(np.ones((5, 2)), np.ones((7, 2, 3)), np.ones((4, 3)))
    assert (tucker.shape, tucker.ranks) == ((7, 5, 4), (2, 3))
    assert Dense(np.ones((2, 3, 4))).shape == (2, 3, 4)


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


def test_frozen():
    with pytest.raises(AttributeError):
        Dense(np.ones((1, 2, 3))).w = None
