"""Laws see the mistakes that can be made with low-rank cores."""

import dataclasses

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.formats import LoRAStack, LowRankTucker2, Tucker2
from lotr_tn.testing import laws

RNG = np.random.default_rng(0)
LOW = LowRankTucker2(
    *(RNG.standard_normal(shape) for shape in ((9, 5), (5, 8), (8, 4), (7, 4))), (2, 1, 3, 2)
)
LORA = lt.LoRAStack(RNG.standard_normal((9, 10)), RNG.standard_normal((10, 7)), (2, 3, 1, 4))
X = RNG.standard_normal((4, 7))


def crossed_sum(a, b):
    """Cores that look into the shared columns of the other term."""
    total = lt.add(a, b)
    return dataclasses.replace(total, up=total.up[::-1])


def with_wrong_layers(stack, to):
    """Cores in another order."""
    result = lt.convert(stack, to)
    if isinstance(result, LowRankTucker2):
        return dataclasses.replace(result, ranks=result.ranks[::-1])
    return dataclasses.replace(result, core=result.core[::-1])


def half_transposed(stack):
    """The terms of the cores come out in reverse on one side only."""
    other = lt.transpose(stack)
    return dataclasses.replace(other, up=other.up[:, ::-1])


def without_shared_side(stack):
    """V taken for the coordinates themselves."""
    return lt.to_dense(dataclasses.replace(stack, v=np.eye(*stack.v.shape)))


def norm_of_cores(stack):
    return lt.norm(LoRAStack(stack.up, stack.down, stack.ranks))


def through_next_cores(stack, x, layer=None):
    return lt.apply(dataclasses.replace(stack, ranks=(1, 3, 2, 2)), x, layer=layer)


def size_of_up(stack):
    """A number that belongs to a factor, not to the updates."""
    return np.linalg.norm(stack.up)


OPERATIONS = [  # law, what obeys it, what breaks it, arguments
    (laws.sum_is_exact, lt.add, crossed_sum, (LOW, LORA)),
    (laws.conversion_is_exact, lt.convert, with_wrong_layers, (LOW, Tucker2)),
    (laws.conversion_is_exact, lt.convert, with_wrong_layers, (LORA, LowRankTucker2)),
    (laws.transposing_twice_changes_nothing, lt.transpose, half_transposed, (LOW,)),
    (laws.dense_is_the_product, lt.to_dense, without_shared_side, (LOW,)),
    (laws.norm_is_the_root_of_squares, lt.norm, norm_of_cores, (LOW,)),
    (laws.measure_is_gauge_invariant, lt.norm, norm_of_cores, ((LOW,), 0)),
    (laws.measure_is_gauge_invariant, lt.norm, size_of_up, ((LOW,), 0)),
    (laws.apply_is_the_matrix_product, lt.apply, through_next_cores, (LOW, X)),
    (laws.rows_go_through_their_layers, lt.apply, through_next_cores, (LOW, X, [0, 1, 2, 0])),
    (
        laws.parameters_are_the_stored_entries,
        lt.parameter_count,
        lambda s: s.u.size + s.v.size + s.shape[0] * s.shared_ranks[0] * s.shared_ranks[1],
        (LOW,),
    ),
]


@pytest.mark.parametrize(("law", "right", "wrong", "arguments"), OPERATIONS)
def test_a_fault_breaks_the_law_of_an_operation(law, right, wrong, arguments):
    law(right, *arguments)
    with pytest.raises(AssertionError) as failure:
        law(wrong, *arguments)
    assert "\n" not in str(failure.value)


def kept_too_many(stack, rank):
    return lt.round(stack, rank + 1)


def cut_by_entries(stack, rank):
    """The first terms of each core, whatever their size."""
    parts = [
        slice(part.start, part.start + min(rank, part.stop - part.start)) for part in stack.slices
    ]
    up = np.concatenate([stack.up[:, part] for part in parts], axis=1)
    down = np.concatenate([stack.down[part] for part in parts])
    ranks = tuple(part.stop - part.start for part in parts)
    return LowRankTucker2(stack.u, up, down, stack.v, ranks)


def cut_in_the_cores(stack, rank):
    """Singular values of the cores alone, as if U and V were orthonormal."""
    cores = lt.round(LoRAStack(stack.up, stack.down, stack.ranks), rank)
    return LowRankTucker2(stack.u, cores.up, cores.down, stack.v, cores.ranks)


def certified_as(**change):
    def decompose(stack, rank):
        made = lt.round(stack, rank)
        values = {k: f(made.certificate) for k, f in change.items()}
        return dataclasses.replace(
            made, certificate=dataclasses.replace(made.certificate, **values)
        )

    return decompose


ROUNDING = [
    (laws.rank_is_kept, kept_too_many),
    (laws.error_is_nearly_the_best, cut_by_entries),
    (laws.error_is_nearly_the_best, cut_in_the_cores),
    (laws.gauge_invariance, cut_by_entries),
    (laws.gauge_invariance, cut_in_the_cores),
    (laws.factors_are_orthonormal, cut_in_the_cores),
    (laws.bounds_bracket_the_error, certified_as(lower=lambda c: c.lower * 1.01)),
    (laws.bounds_bracket_the_error, certified_as(lower=lambda c: c.lower * 0.5)),
    (laws.bounds_bracket_the_error, certified_as(upper=lambda c: c.lower * 0.99)),
    (laws.reported_error_is_true, certified_as(distances=lambda c: c.distances[::-1])),
]


@pytest.mark.parametrize(("law", "wrong"), ROUNDING)
def test_a_fault_breaks_the_law_of_rounding(law, wrong):
    law(lt.round, LOW, 1)
    with pytest.raises(AssertionError) as failure:
        law(wrong, LOW, 1)
    assert "\n" not in str(failure.value)
