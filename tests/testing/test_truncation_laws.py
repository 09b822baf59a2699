"""The laws of truncations, on every function of the package that cuts ranks."""

from functools import cache, partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotr_tn.testing import laws, strategies
from tests.conftest import LAW_BACKENDS, on_backend
from tests.testing.budget import examples, laws_in
from tests.testing.methods import METHODS

OF_ONE_RESULT = (
    "result_fits_the_stack",
    "rank_is_kept",
    "reported_error_is_true",
    "bounds_bracket_the_error",
    "error_is_nearly_the_best",
    "larger_ranks_never_lose_more",
)
LAWS = {
    name: getattr(laws, name)
    for name in (
        *OF_ONE_RESULT,
        "twice_is_once",
        "repeating_gives_the_same",
        "input_is_left_alone",
        "gauge_invariance",
        "scaling_scales_the_result",
        "layers_may_be_reordered",
    )
}
OTHERS = {
    "exact_at_full_rank",
    "error_rule_is_met",
    "factors_are_orthonormal",
    "small_errors_are_seen",
}
UNSETTLED = {"larger_ranks_never_lose_more", "layers_may_be_reordered"}
"""Laws that an alternating method may break: it ends in one of several minima."""


pytestmark = pytest.mark.filterwarnings("ignore::lotr_tn.errors.PrecisionWarning")
"""Updates whose terms cancel to rounding meet no error rule, and are drawn too."""


TABLE = [
    *((backend, "float64") for backend in LAW_BACKENDS),
    *((backend, "float32") for backend in ("numpy", "torch")),
]


@pytest.mark.parametrize(("backend", "dtype"), TABLE)
@pytest.mark.parametrize("method", METHODS)
def test_laws(method, backend, dtype):
    """All laws on each example: those that look at one result share it."""
    tested = METHODS[method]
    options = {"dtype": dtype, "array": partial(on_backend, backend=backend)}

    @examples(backend)
    @given(stack=tested.stacks(**options), ranks=tested.ranks)
    def hold(stack, ranks):
        found = cache(partial(tested.call, stack))
        for name, law in LAWS.items():
            if name in OF_ONE_RESULT:
                law(lambda _, ranks: found(ranks), stack, ranks)
            elif not (name in UNSETTLED and tested.alternates):
                law(tested.call, stack, ranks)

    hold()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("backend", LAW_BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_full_ranks_are_exact(method, backend, dtype):
    tested = METHODS[method]

    @examples(backend)
    @given(stack=tested.stacks(dtype=dtype, array=partial(on_backend, backend=backend)))
    def holds(stack):
        laws.exact_at_full_rank(tested.call, stack, max(stack.shape[1:]))

    holds()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("backend", LAW_BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_error_rules_are_met(method, backend, dtype):
    tested = METHODS[method]
    options = {"dtype": dtype, "array": partial(on_backend, backend=backend)}

    @examples(backend)
    @given(stack=tested.stacks(**options), epsilon=st.sampled_from((0.5, 0.1, 1e-2, 1e-4)))
    def holds(stack, epsilon):
        laws.error_rule_is_met(tested.call, stack, epsilon)

    holds()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("backend", LAW_BACKENDS)
@pytest.mark.parametrize(
    "method", ["hosvd", "st_hosvd", "hooi", "round Tucker2", "round LowRankTucker2"]
)
def test_factors_are_orthonormal(method, backend, dtype):
    tested = METHODS[method]
    options = {"dtype": dtype, "array": partial(on_backend, backend=backend)}

    @examples(backend)
    @given(stack=tested.stacks(**options), ranks=tested.ranks)
    def holds(stack, ranks):
        laws.factors_are_orthonormal(tested.call, stack, ranks)

    holds()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("backend", LAW_BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_small_errors_are_seen(method, backend, dtype):
    tested = METHODS[method]
    nearly = strategies.nearly_low_rank(dtype=dtype, array=partial(on_backend, backend=backend))

    @examples(backend)
    @given(nearly)
    def holds(pair):
        stack, ranks = pair
        one = tested.ranks is not METHODS["hosvd"].ranks
        laws.small_errors_are_seen(tested.call, stack, ranks[0] if one else ranks)

    holds()


def test_every_law_of_truncations_is_held():
    assert set(LAWS) | OTHERS == laws_in(laws.truncation)
