"""The laws of every operation, on every format and backend, against plain dense matrices."""

import operator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotr_tn import ops
from lotr_tn.testing import laws
from tests.conftest import LAW_BACKENDS
from tests.ops.cases import FORMATS, Case, largest
from tests.testing.budget import examples, laws_in

LAWS = {
    "add": lambda c: laws.sum_is_exact(ops.add, c.a, c.b),
    "add to another": lambda c: laws.sum_is_exact(ops.add, c.b, c.a),
    "plus": lambda c: laws.sum_is_exact(operator.add, c.a, c.a),
    "subtract": lambda c: laws.difference_is_exact(ops.subtract, c.a, c.b),
    "minus": lambda c: laws.difference_is_exact(operator.sub, c.b, c.a),
    "scale": lambda c: laws.scaling_is_exact(ops.scale, c.a, c.factor),
    "scale each layer": lambda c: laws.scaling_is_exact(ops.scale, c.a, c.factors),
    "times": lambda c: laws.scaling_is_exact(lambda s, f: f * s, c.a, c.factor),
    "transpose": lambda c: laws.transposing_twice_changes_nothing(ops.transpose, c.a),
    "to_dense": lambda c: laws.dense_is_the_product(ops.to_dense, c.a),
    "convert": lambda c: each_conversion(c.a),
    "astype": lambda c: each_dtype(c.a),
    "parameter_count": lambda c: laws.parameters_are_the_stored_entries(ops.parameter_count, c.a),
    "take_layers": lambda c: laws.taken_layers_are_those_layers(ops.take_layers, c.a, c.layers),
    "concat_layers": lambda c: each_concatenation(c.a, c.b, c.c, c.layers),
    "norm": lambda c: laws.norm_is_the_root_of_squares(ops.norm, c.a),
    "norm and inner": lambda c: laws.norm_squared_is_the_inner_product(ops.inner, ops.norm, c.a),
    "layer_norms": lambda c: each_norm(c.a),
    "layer_singular_values": lambda c: laws.singular_values_are_those_of_the_matrices(
        ops.layer_singular_values, c.a
    ),
    "inner": lambda c: laws.inner_is_the_sum_of_products(ops.inner, c.a, c.b),
    "inner is symmetric": lambda c: laws.inner_is_symmetric(ops.inner, c.a, c.b),
    "inner is bilinear": lambda c: laws.inner_is_bilinear(ops.inner, c.a, c.b, c.c, c.factor),
    "inner is bounded": lambda c: laws.inner_is_bounded_by_the_norms(ops.inner, ops.norm, c.a, c.b),
    "gram": lambda c: laws.gram_holds_all_inner_products(ops.gram, (c.a, c.b, c.a, c.c)),
    "cosine": lambda c: laws.cosine_is_that_of_the_angle(ops.cosine, c.a, c.b),
    "distance": lambda c: laws.distance_is_the_norm_of_the_difference(ops.distance, c.a, c.b),
    "small distance": lambda c: laws.distance_is_the_norm_of_the_difference(
        ops.distance, c.a, c.near
    ),
    "distance from near": lambda c: laws.distance_is_the_norm_of_the_difference(
        ops.distance, c.near, c.a
    ),
    "layer_distances": lambda c: laws.layer_distances_are_those_of_the_matrices(
        ops.layer_distances, c.a, c.b
    ),
    "small layer_distances": lambda c: laws.layer_distances_are_those_of_the_matrices(
        ops.layer_distances, c.a, c.near
    ),
    "gauge of norm": lambda c: gauge(ops.norm, (c.a,), largest((c.a,)), c.seed),
    "gauge of inner": lambda c: gauge(ops.inner, (c.a, c.b), largest((c.a, c.b)) ** 2, c.seed),
    "gauge of cosine": lambda c: gauge(ops.cosine, (c.a, c.b), 1.0, c.seed),
    "gauge of distance": lambda c: gauge(ops.distance, (c.a, c.b), largest((c.a, c.b)), c.seed),
    "apply": lambda c: laws.apply_is_the_matrix_product(ops.apply, c.a, c.x),
    "apply to a vector": lambda c: laws.apply_is_the_matrix_product(ops.apply, c.a, c.x[0, :]),
    "apply to a batch": lambda c: laws.apply_is_the_matrix_product(ops.apply, c.a, c.x[None, ...]),
    "apply one layer": lambda c: laws.one_layer_is_applied_alone(ops.apply, c.a, c.x, c.layers[0]),
    "apply a layer a row": lambda c: laws.rows_go_through_their_layers(
        ops.apply, c.a, c.x, c.layers
    ),
    "apply a layer a block": lambda c: laws.rows_go_through_their_layers(
        ops.apply, c.a, c.x[:, None, :], c.layers
    ),
    "apply to no row": lambda c: laws.rows_go_through_their_layers(ops.apply, c.a, c.x[:0, :], []),
    "apply_transpose": lambda c: laws.apply_transpose_is_the_adjoint(
        ops.apply, ops.apply_transpose, c.a, c.x, c.y
    ),
    "matmul": lambda c: laws.matmul_is_the_matrix_product(operator.matmul, c.a, c.x.T),
    "matmul with a vector": lambda c: laws.matmul_is_the_matrix_product(
        operator.matmul, c.a, c.x[0, :]
    ),
    "as_linear_operator": lambda c: each_operator(c.a),
}


def each_conversion(stack):
    for to in (*FORMATS.values(), type(stack)):
        laws.conversion_is_exact(ops.convert, stack, to)
    laws.conversion_is_exact(partial(ops.convert, side="out"), stack, FORMATS["Tucker1"])


def each_dtype(stack):
    for dtype in ("float32", "float64"):
        laws.storage_rounds_each_entry_once(ops.astype, stack, dtype)


def each_concatenation(a, b, c, layers):
    part = ops.take_layers(b, layers)
    for stacks in ([a], [a, part], [part, a, c], [a, a]):
        laws.concatenated_layers_stand_in_order(ops.concat_layers, stacks)


def each_norm(stack):
    for kind in ("frobenius", "spectral", "nuclear"):
        laws.layer_norms_are_those_of_the_matrices(ops.layer_norms, stack, kind)


def each_operator(stack):
    for layer in (None, 0, -1):
        laws.linear_operator_is_the_matrix(ops.as_linear_operator, stack, layer)


def gauge(measure, stacks, scale, seed):
    laws.measure_is_gauge_invariant(measure, stacks, seed, scale=scale)


@pytest.mark.parametrize("backend", LAW_BACKENDS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("law", LAWS)
def test_law(law, name, backend):
    if law == "as_linear_operator" and backend == "array-api-strict":
        pytest.skip("SciPy's operators take stacks of NumPy and torch")
    hold(law, FORMATS[name], backend, "float64")


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("law", LAWS)
def test_law_in_float32(law, name, backend):
    hold(law, FORMATS[name], backend, "float32")


def hold(law, kind, backend, dtype):
    @examples(backend)
    @given(data=st.data())
    def holds(data):
        LAWS[law](Case(data.draw, kind, backend, dtype))

    holds()


def test_no_law_of_an_operation_is_left_out():
    """The other laws are those of truncations."""
    used = {name for check in LAWS.values() for name in check.__code__.co_names}
    used |= {
        name
        for check in (
            each_conversion,
            each_dtype,
            each_concatenation,
            each_norm,
            each_operator,
            gauge,
        )
        for name in check.__code__.co_names
    }
    modules = ("application", "arithmetic", "measures")
    wanted = {n for m in modules for n in laws_in(getattr(laws, m))} | {
        "measure_is_gauge_invariant"
    }
    assert wanted <= used
