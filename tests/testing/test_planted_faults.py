"""A law that cannot fail is no law: each is broken by a fault planted for it."""

import dataclasses
import operator

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.formats import Dense, LoRAStack, Tucker1, Tucker2
from lotr_tn.testing import laws

RNG = np.random.default_rng(0)
STACK = lt.LoRAStack(RNG.standard_normal((9, 10)), RNG.standard_normal((10, 7)), (2, 3, 1, 4))
OTHER = lt.Tucker2(
    RNG.standard_normal((9, 2)), RNG.standard_normal((4, 2, 3)), RNG.standard_normal((7, 3))
)
RANKS = (3, 2)
NEARLY = lt.LoRAStack(  # rank (1, 1) but for 2e-5
    np.array([[3, 0], [0, 2e-5]], np.float32), np.array([[2, 0, 0], [0, 0, 1]], np.float32), (2,)
)
METHODS = {"hosvd": lt.hosvd, "st-hosvd": lt.st_hosvd, "hooi": lt.hooi}


def altered(method, **change):
    """A decomposition whose result is changed after it was certified."""

    def decompose(stack, ranks):
        result = method(stack, ranks)
        return dataclasses.replace(result, **{k: f(result) for k, f in change.items()})

    return decompose


def certified(method, **change):
    """A decomposition whose certificate is changed."""

    def decompose(stack, ranks):
        result = method(stack, ranks)
        certificate = dataclasses.replace(
            result.certificate, **{k: f(result.certificate) for k, f in change.items()}
        )
        return dataclasses.replace(result, certificate=certificate)

    return decompose


def mirrored(core):
    """Each core transposed, where the ranks allow it; else its rows in reverse."""
    return np.swapaxes(core, 1, 2) if core.shape[1] == core.shape[2] else core[:, ::-1]


def by_entry(method):
    """Ranks chosen by a factor's entries, which a change of gauge changes."""
    return lambda stack, ranks: method(stack, ranks if stack.up[0, 0] == STACK.up[0, 0] else (1, 1))


def unlike_for(method, condition):
    """A decomposition that drops to rank (1, 1) under a condition."""
    return lambda stack, ranks: method(stack, (1, 1) if condition(stack, ranks) else ranks)


def reporting(error):
    """Hosvd, with an error of its own in place of the certificate."""

    def decompose(stack, ranks):
        result = lt.hosvd(stack, ranks)
        return (result.u, result.core, result.v), error(stack, result)

    return decompose


def root_of_norms(stack, result):
    """√(‖T‖² − ‖G‖²) in the stack's dtype: it cancels."""
    size, kept = (np.linalg.norm(x) for x in (lt.to_dense(stack), result.core))
    return np.sqrt(max(size**2 - kept**2, 0)) / size


def noisy(method):
    """A decomposition with unseeded random numbers."""
    rng = np.random.default_rng(0)
    return altered(method, core=lambda t: t.core * (1 + 1e-15 * rng.standard_normal()))


def writing(method):
    """A decomposition that works in the caller's memory."""

    def decompose(stack, ranks):
        stack.up[:, :] = 2 * stack.up
        return method(stack, ranks)

    return decompose


FAULTS = {
    laws.result_fits_the_stack: {
        "a layer is lost": lambda f: altered(f, core=lambda t: t.core[:-1]),
        "another dtype": lambda f: lambda s, r: f(s, r, dtype="float32"),
        "nan": lambda f: altered(f, core=lambda t: t.core * np.nan),
        "misfit factors": lambda f: lambda s, r: (f(s, r).u, f(s, r).core.mT, f(s, r).v),
    },
    laws.rank_is_kept: {
        "rank one too large": lambda f: lambda s, r: f(s, (r[0] + 1, r[1])),
        "pair the other way round": lambda f: lambda s, r: f(s, r[::-1]),
    },
    laws.reported_error_is_true: {
        "transposed core": lambda f: altered(f, core=lambda t: mirrored(t.core)),
        "dropped scale": lambda f: altered(f, core=lambda t: t.core / 2),
        "error of the unrounded factors": lambda f: altered(f, u=lambda t: t.u.round(3)),
        "layers in another order": lambda f: certified(f, distances=lambda c: c.distances[::-1]),
        "nearly right": lambda f: certified(f, distances=lambda c: c.distances * (1 + 1e-6)),
        "no error": lambda f: lambda s, r: (f(s, r).u, f(s, r).core, f(s, r).v),
        "error of the core alone": lambda f: reporting(lambda s, t: np.linalg.norm(t.core)),
    },
    laws.small_errors_are_seen: {
        "root of a difference of squares": lambda f: reporting(root_of_norms),
        "none at all": lambda f: reporting(lambda s, t: 0.0),
    },
    laws.bounds_bracket_the_error: {
        "lower bound too high": lambda f: certified(f, lower=lambda c: c.upper * 1.01),
        "upper bound too low": lambda f: certified(f, upper=lambda c: c.lower * 0.5),
        "one tail left out": lambda f: certified(f, lower=lambda c: c.lower * 0.5),
    },
    laws.error_is_nearly_the_best: {
        "ranks too small": lambda f: lambda s, r: f(s, (1, 1)),
        "transposed core": lambda f: altered(f, core=lambda t: mirrored(t.core)),
        "last directions": lambda f: altered(f, u=lambda t: np.eye(*t.u.shape)),
    },
    laws.error_rule_is_met: {
        "twice the error": lambda f: lambda s, r: f(s, lt.RelativeError(2 * r.epsilon)),
    },
    laws.factors_are_orthonormal: {
        "scaled factor": lambda f: altered(f, u=lambda t: t.u * 1.01),
        "skewed factor": lambda f: altered(f, v=lambda t: t.v + 0.01 * t.v[:, ::-1]),
    },
    laws.scaling_scales_the_result: {
        "absolute threshold": lambda f: unlike_for(f, lambda s, _: abs(s.down).max() > 3),
        "squared scale": lambda f: altered(f, core=lambda t: t.core * abs(t.core).max()),
    },
    laws.layers_may_be_reordered: {
        "first layer favoured": lambda f: unlike_for(f, lambda s, _: s.ranks[0] == 2),
    },
    laws.gauge_invariance: {"depends on entries of up": by_entry},
    laws.larger_ranks_never_lose_more: {
        "rank one too small": lambda f: unlike_for(f, lambda _, r: r != RANKS),
    },
    laws.exact_at_full_rank: {
        "one rank missing": lambda f: lambda s, r: f(s, (r[0] - 1, r[1] - 1)),
        "dropped scale": lambda f: altered(f, core=lambda t: t.core * 0.999),
    },
    laws.twice_is_once: {
        "shrinks": lambda f: altered(f, core=lambda t: t.core * 0.999),
        "one rank less": lambda f: lambda s, r: f(s, tuple(x - 1 for x in used(s, r))),
    },
    laws.repeating_gives_the_same: {"unseeded": noisy},
    laws.input_is_left_alone: {"writes into it": writing},
}


def used(stack, ranks):
    """The ranks that a stack has, up to those asked for."""
    return tuple(map(min, lt.hosvd(stack, lt.RelativeError(1e-9)).ranks, ranks))


def hold(law, decompose):
    """A law on the example, with the arguments that it takes."""
    stack = dataclasses.replace(STACK, up=STACK.up.copy())
    if law is laws.exact_at_full_rank:
        law(decompose, stack)
    elif law is laws.error_rule_is_met:
        law(decompose, stack, 0.3)
    elif law is laws.small_errors_are_seen:
        law(decompose, NEARLY, (1, 1))
    else:
        law(decompose, stack, RANKS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("law", FAULTS, ids=lambda law: law.__name__)
def test_the_law_holds(law, method):
    hold(law, METHODS[method])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("law", "fault"),
    [(law, fault) for law, faults in FAULTS.items() for fault in faults],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_fault_breaks_the_law(law, fault, method):
    with pytest.raises(AssertionError) as failure:
        hold(law, FAULTS[law][fault](METHODS[method]))
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 200


def transposed_core(stack):
    if isinstance(stack, Tucker2):
        return Tucker2(stack.u, stack.core[:, ::-1], stack.v)
    return stack


RNG = np.random.default_rng(1)
X, Y = RNG.standard_normal((4, 7)), RNG.standard_normal((4, 9))
NEAR = lt.Tucker2(OTHER.u, OTHER.core * (1 + 1e-9), OTHER.v)
SHARED = lt.Tucker1(RNG.standard_normal((7, 2)), RNG.standard_normal((4, 9, 2)), "in")
DENSE = lt.Dense(RNG.integers(-3, 4, (4, 9, 7)) * 1.0)


def gram_distance(a, b):
    """The formula that cancels."""
    square = lt.norm(a) ** 2 - 2 * lt.inner(a, b) + lt.norm(b) ** 2
    return np.sqrt(max(float(square), 0.0))


def factor_similarity(a, b):
    """The angle between the first factors, as if they were the updates."""
    x, y = (s.u if isinstance(s, Tucker2) else s.up[:, :2] for s in (a, b))
    return float((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))


def without_layer(apply):
    return lambda s, x, layer=None: apply(s, x) if layer is None else apply(s, x, layer=0)


def row_by_row_in_order(s, x, layer=None):
    return lt.apply(s, x, layer=sorted(layer))


class WrongAdjoint:
    """An operator whose adjoint forgets to transpose."""

    def __init__(self, stack, layer):
        self.right = lt.as_linear_operator(stack, layer)
        self.shape, self.matmat, self.matvec = (
            self.right.shape,
            self.right.matmat,
            self.right.matvec,
        )
        self.rmatvec = self.right.rmatvec

    def rmatmat(self, y):
        return -self.right.rmatmat(y)


def rescaled(function, by):
    return lambda *arguments: function(*arguments) * by


OPERATIONS = [  # law, what obeys it, what breaks it, arguments
    (laws.sum_is_exact, lt.add, lt.subtract, (STACK, OTHER)),
    (laws.sum_is_exact, lt.add, lambda a, b: lt.Dense(lt.to_dense(a)), (DENSE, DENSE)),
    (laws.difference_is_exact, lt.subtract, lambda a, b: lt.subtract(b, a), (STACK, OTHER)),
    (laws.difference_is_exact, lt.subtract, lambda a, b: a, (STACK, OTHER)),
    (
        laws.scaling_is_exact,
        lt.scale,
        lambda s, f: lt.scale(s, list(f)[::-1]),
        (STACK, [1.0, 2.0, 3.0, 4.0]),
    ),
    (
        laws.scaling_is_exact,
        lt.scale,
        lambda s, f: LoRAStack(s.up * f, s.down * f, s.ranks),
        (STACK, 2.0),
    ),
    (laws.transposing_twice_changes_nothing, lt.transpose, lambda s: s, (STACK,)),
    (
        laws.transposing_twice_changes_nothing,
        lt.transpose,
        lambda s: Tucker2(s.v, s.core.mT[::-1], s.u),
        (OTHER,),
    ),
    (laws.dense_is_the_product, lt.to_dense, lambda s: lt.to_dense(s)[::-1], (SHARED,)),
    (
        laws.dense_is_the_product,
        lt.to_dense,
        lambda s: lt.to_dense(s).astype(np.float32),
        (DENSE,),
    ),
    (laws.conversion_is_exact, lt.convert, lambda s, to: s, (STACK, Tucker2)),
    (
        laws.conversion_is_exact,
        lt.convert,
        lambda s, to: lt.scale(lt.convert(s, to), 1 + 1e-15),
        (DENSE, Tucker1),
    ),
    (
        laws.storage_rounds_each_entry_once,
        lt.astype,
        lambda s, dtype: Dense(lt.astype(s, "float16").w.astype(dtype)),
        (lt.Dense(np.full((1, 2, 3), 0.1)), "float32"),
    ),
    (
        laws.parameters_are_the_stored_entries,
        lt.parameter_count,
        lambda s: s.core.size,
        (OTHER,),
    ),
    (
        laws.taken_layers_are_those_layers,
        lt.take_layers,
        lambda s, layers: lt.take_layers(s, sorted(layers)),
        (STACK, [2, 0, -1]),
    ),
    (
        laws.concatenated_layers_stand_in_order,
        lt.concat_layers,
        lambda stacks: lt.concat_layers(stacks[::-1]),
        ([STACK, OTHER],),
    ),
    (laws.norm_is_the_root_of_squares, lt.norm, lambda s: lt.norm(s) ** 2, (OTHER,)),
    (
        laws.norm_is_the_root_of_squares,
        lt.norm,
        lambda s: lt.norm(lt.take_layers(s, [0])),
        (STACK,),
    ),
    (laws.norm_is_the_root_of_squares, lt.norm, lambda s: np.linalg.norm(s.core), (OTHER,)),
    (
        laws.layer_norms_are_those_of_the_matrices,
        lt.layer_norms,
        lambda s, kind: lt.layer_norms(s, "frobenius"),
        (STACK, "nuclear"),
    ),
    (
        laws.layer_norms_are_those_of_the_matrices,
        lt.layer_norms,
        lambda s, kind: lt.layer_norms(s, kind)[::-1],
        (OTHER, "spectral"),
    ),
    (
        laws.singular_values_are_those_of_the_matrices,
        lt.layer_singular_values,
        lambda s: [values[::-1] for values in lt.layer_singular_values(s)],
        (STACK,),
    ),
    (
        laws.inner_is_the_sum_of_products,
        lt.inner,
        lambda a, b: lt.inner(a, transposed_core(b)),
        (STACK, OTHER),
    ),
    (
        laws.inner_is_the_sum_of_products,
        lt.inner,
        lambda a, b: lt.norm(a) * lt.norm(b),
        (STACK, OTHER),
    ),
    (
        laws.inner_is_symmetric,
        lt.inner,
        lambda a, b: lt.inner(a, b) * lt.norm(a),
        (STACK, OTHER),
    ),
    (
        laws.inner_is_bilinear,
        lt.inner,
        lambda a, b: abs(lt.inner(a, b)),
        (STACK, OTHER, SHARED, -2.0),
    ),
    (
        laws.inner_is_bounded_by_the_norms,
        (lt.inner, lt.norm),
        (lt.inner, rescaled(lt.norm, 0.9)),
        (STACK, STACK),
    ),
    (
        laws.norm_squared_is_the_inner_product,
        (lt.inner, lt.norm),
        (lt.inner, rescaled(lt.norm, 1.001)),
        (SHARED,),
    ),
    (
        laws.gram_holds_all_inner_products,
        lt.gram,
        lambda stacks: np.diag(np.diag(lt.gram(stacks))),
        ([STACK, OTHER, SHARED],),
    ),
    (laws.cosine_is_that_of_the_angle, lt.cosine, lt.inner, (STACK, OTHER)),
    (
        laws.cosine_is_that_of_the_angle,
        lt.cosine,
        lambda a, b: lt.inner(a, b) / lt.norm(b) ** 2,
        (STACK, OTHER),
    ),
    (laws.distance_is_the_norm_of_the_difference, lt.distance, gram_distance, (OTHER, NEAR)),
    (
        laws.distance_is_the_norm_of_the_difference,
        lt.distance,
        lambda a, b: lt.distance(a, transposed_core(b)),
        (STACK, OTHER),
    ),
    (
        laws.layer_distances_are_those_of_the_matrices,
        lt.layer_distances,
        lambda a, b: lt.layer_distances(a, b)[::-1],
        (STACK, OTHER),
    ),
    (laws.measure_is_gauge_invariant, lt.cosine, factor_similarity, ((STACK, OTHER), 0)),
    (
        laws.measure_is_gauge_invariant,
        lt.norm,
        lambda s: np.linalg.norm(s.core),
        ((OTHER,), 0),
    ),
    (
        laws.apply_is_the_matrix_product,
        lt.apply,
        lambda s, x: lt.apply(transposed_core(s), x),
        (OTHER, X),
    ),
    (laws.apply_is_the_matrix_product, lt.apply, rescaled(lt.apply, 2), (STACK, X)),
    (laws.one_layer_is_applied_alone, lt.apply, without_layer(lt.apply), (STACK, X, -1)),
    (laws.rows_go_through_their_layers, lt.apply, row_by_row_in_order, (OTHER, X, [2, 0, 2, 1])),
    (
        laws.apply_transpose_is_the_adjoint,
        (lt.apply, lt.apply_transpose),
        (lt.apply, lambda s, y: lt.apply_transpose(lt.transpose(lt.transpose(s)), y[::-1])),
        (SHARED, X, Y),
    ),
    (
        laws.matmul_is_the_matrix_product,
        operator.matmul,
        lambda s, x: (s @ x)[:, ::-1],
        (STACK, X.T),
    ),
    (laws.linear_operator_is_the_matrix, lt.as_linear_operator, WrongAdjoint, (STACK, 2)),
]


def called(law, functions, arguments):
    """A law of one function, or of several."""
    several = functions if isinstance(functions, tuple) else (functions,)
    law(*several, *arguments)


@pytest.mark.parametrize(("law", "right", "wrong", "arguments"), OPERATIONS)
def test_a_fault_breaks_the_law_of_an_operation(law, right, wrong, arguments):
    called(law, right, arguments)
    with pytest.raises(AssertionError) as failure:
        called(law, wrong, arguments)
    assert "\n" not in str(failure.value)


def test_every_law_has_a_fault():
    named = {law.__name__ for law in FAULTS} | {law.__name__ for law, *_ in OPERATIONS}
    tools = {"Decomposition", "change_gauge", "dense_updates", "gauge_sizes", "magnitude"}
    assert named | tools == set(laws.__all__)
