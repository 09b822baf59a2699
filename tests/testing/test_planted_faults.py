"""A law that cannot fail is no law: each is broken by a fault planted for it."""

import dataclasses

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.formats import Tucker2
from lotr_tn.testing import laws

RNG = np.random.default_rng(0)
STACK = lt.LoRAStack(RNG.standard_normal((9, 10)), RNG.standard_normal((10, 7)), (2, 3, 1, 4))
OTHER = lt.Tucker2(
    RNG.standard_normal((9, 2)), RNG.standard_normal((4, 2, 3)), RNG.standard_normal((7, 3))
)
RANKS = (3, 2)
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


FAULTS = {
    laws.reported_error_is_true: {
        "transposed core": lambda f: altered(f, core=lambda t: mirrored(t.core)),
        "dropped scale": lambda f: altered(f, core=lambda t: t.core / 2),
        "error of the unrounded factors": lambda f: altered(f, u=lambda t: t.u.round(3)),
        "layers in another order": lambda f: certified(f, distances=lambda c: c.distances[::-1]),
        "norm minus core norm": lambda f: certified(
            f, distances=lambda c: c.distances * (1 + 1e-6)
        ),
    },
    laws.bounds_bracket_the_error: {
        "lower bound too high": lambda f: certified(f, lower=lambda c: c.upper * 1.01),
        "upper bound too low": lambda f: certified(f, upper=lambda c: c.lower * 0.5),
        "one tail left out": lambda f: certified(f, lower=lambda c: c.lower * 0.5),
    },
    laws.factors_are_orthonormal: {
        "scaled factor": lambda f: altered(f, u=lambda t: t.u * 1.01),
        "skewed factor": lambda f: altered(f, v=lambda t: t.v + 0.01 * t.v[:, ::-1]),
    },
    laws.scaling_scales_the_result: {
        "absolute threshold": lambda f: unlike_for(f, lambda s, _: abs(s.up).max() > 3),
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
}


def hold(law, decompose):
    """A law on the example, with the arguments that it takes."""
    if law is laws.gauge_invariance:
        law(decompose, STACK, RANKS, 0)
    elif law is laws.exact_at_full_rank:
        law(decompose, STACK)
    else:
        law(decompose, STACK, RANKS)


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
    with pytest.raises(AssertionError):
        hold(law, FAULTS[law][fault](METHODS[method]))


def transposed_core(stack):
    if isinstance(stack, Tucker2):
        return Tucker2(stack.u, stack.core[:, ::-1], stack.v)
    return stack


X = RNG.standard_normal((4, 7))
NEAR = lt.Tucker2(OTHER.u, OTHER.core * (1 + 1e-9), OTHER.v)


def gram_distance(a, b):
    """The formula that cancels."""
    square = lt.norm(a) ** 2 - 2 * lt.inner(a, b) + lt.norm(b) ** 2
    return np.sqrt(max(float(square), 0.0))


OPERATIONS = [
    (laws.norm_is_the_root_of_squares, lt.norm, lambda s: lt.norm(s) ** 2, (OTHER,)),
    (
        laws.norm_is_the_root_of_squares,
        lt.norm,
        lambda s: lt.norm(lt.take_layers(s, [0])),
        (STACK,),
    ),
    (laws.norm_is_the_root_of_squares, lt.norm, lambda s: np.linalg.norm(s.core), (OTHER,)),
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
    (laws.distance_is_the_norm_of_the_difference, lt.distance, gram_distance, (OTHER, NEAR)),
    (
        laws.distance_is_the_norm_of_the_difference,
        lt.distance,
        lambda a, b: lt.distance(a, transposed_core(b)),
        (STACK, OTHER),
    ),
    (laws.difference_is_exact, lt.subtract, lambda a, b: lt.subtract(b, a), (STACK, OTHER)),
    (laws.difference_is_exact, lt.subtract, lambda a, b: a, (STACK, OTHER)),
    (
        laws.apply_is_the_matrix_product,
        lt.apply,
        lambda s, x: lt.apply(transposed_core(s), x),
        (OTHER, X),
    ),
    (laws.apply_is_the_matrix_product, lt.apply, lambda s, x: 2 * lt.apply(s, x), (STACK, X)),
]


@pytest.mark.parametrize(("law", "right", "wrong", "arguments"), OPERATIONS)
def test_a_fault_breaks_the_law_of_an_operation(law, right, wrong, arguments):
    law(right, *arguments)
    with pytest.raises(AssertionError):
        law(wrong, *arguments)


def test_every_law_has_a_fault():
    named = {law.__name__ for law in FAULTS} | {law.__name__ for law, *_ in OPERATIONS}
    assert named | {"dense_updates"} == set(laws.__all__)
