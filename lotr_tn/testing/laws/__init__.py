"""Laws that every decomposition and every operation must obey.

Each law is a function that raises `AssertionError`, with a sentence on what is wrong, where the
law is broken. The truth is plain dense matrices in float64. Stacks may be of any backend and dtype.

What rounding may cost is relative to the magnitude of the terms, 1e-13 in float64 and 2e-6 in
float32; where all entries are whole numbers and only sums and products are taken, nothing.

Examples:
    >>> import numpy as np
    >>> from lotr_tn import LoRAStack, hosvd
    >>> from lotr_tn.testing import laws
    >>> rng = np.random.default_rng(0)
    >>> up, down = rng.standard_normal((7, 6)), rng.standard_normal((6, 5))
    >>> laws.reported_error_is_true(hosvd, LoRAStack(up, down, (1, 2, 3)), (2, 3))
"""

from lotr_tn.testing.laws.application import (
    apply_is_the_matrix_product,
    apply_transpose_is_the_adjoint,
    linear_operator_is_the_matrix,
    matmul_is_the_matrix_product,
    one_layer_is_applied_alone,
    rows_go_through_their_layers,
)
from lotr_tn.testing.laws.arithmetic import (
    concatenated_layers_stand_in_order,
    conversion_is_exact,
    dense_is_the_product,
    difference_is_exact,
    parameters_are_the_stored_entries,
    scaling_is_exact,
    storage_rounds_each_entry_once,
    sum_is_exact,
    taken_layers_are_those_layers,
    transposing_twice_changes_nothing,
)
from lotr_tn.testing.laws.gauge import change_gauge, gauge_sizes, measure_is_gauge_invariant
from lotr_tn.testing.laws.measures import (
    cosine_is_that_of_the_angle,
    distance_is_the_norm_of_the_difference,
    gram_holds_all_inner_products,
    inner_is_bilinear,
    inner_is_bounded_by_the_norms,
    inner_is_symmetric,
    inner_is_the_sum_of_products,
    layer_distances_are_those_of_the_matrices,
    layer_norms_are_those_of_the_matrices,
    norm_is_the_root_of_squares,
    norm_squared_is_the_inner_product,
    singular_values_are_those_of_the_matrices,
)
from lotr_tn.testing.laws.outcome import Decomposition
from lotr_tn.testing.laws.truncation import (
    bounds_bracket_the_error,
    error_is_nearly_the_best,
    error_rule_is_met,
    exact_at_full_rank,
    factors_are_orthonormal,
    gauge_invariance,
    input_is_left_alone,
    larger_ranks_never_lose_more,
    layers_may_be_reordered,
    rank_is_kept,
    repeating_gives_the_same,
    reported_error_is_true,
    result_fits_the_stack,
    scaling_scales_the_result,
    small_errors_are_seen,
    twice_is_once,
)
from lotr_tn.testing.laws.truth import dense_updates, magnitude

__all__ = [
    "Decomposition",
    "apply_is_the_matrix_product",
    "apply_transpose_is_the_adjoint",
    "bounds_bracket_the_error",
    "change_gauge",
    "concatenated_layers_stand_in_order",
    "conversion_is_exact",
    "cosine_is_that_of_the_angle",
    "dense_is_the_product",
    "dense_updates",
    "difference_is_exact",
    "distance_is_the_norm_of_the_difference",
    "error_is_nearly_the_best",
    "error_rule_is_met",
    "exact_at_full_rank",
    "factors_are_orthonormal",
    "gauge_invariance",
    "gauge_sizes",
    "gram_holds_all_inner_products",
    "inner_is_bilinear",
    "inner_is_bounded_by_the_norms",
    "inner_is_symmetric",
    "inner_is_the_sum_of_products",
    "input_is_left_alone",
    "larger_ranks_never_lose_more",
    "layer_distances_are_those_of_the_matrices",
    "layer_norms_are_those_of_the_matrices",
    "layers_may_be_reordered",
    "linear_operator_is_the_matrix",
    "magnitude",
    "matmul_is_the_matrix_product",
    "measure_is_gauge_invariant",
    "norm_is_the_root_of_squares",
    "norm_squared_is_the_inner_product",
    "one_layer_is_applied_alone",
    "parameters_are_the_stored_entries",
    "rank_is_kept",
    "repeating_gives_the_same",
    "reported_error_is_true",
    "result_fits_the_stack",
    "rows_go_through_their_layers",
    "scaling_is_exact",
    "scaling_scales_the_result",
    "singular_values_are_those_of_the_matrices",
    "small_errors_are_seen",
    "storage_rounds_each_entry_once",
    "sum_is_exact",
    "taken_layers_are_those_layers",
    "transposing_twice_changes_nothing",
    "twice_is_once",
]
