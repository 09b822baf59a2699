"""Laws of norms, distances, inner products and angles."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from lotr_tn._arrays import Array, to_numpy
from lotr_tn.formats import Stack
from lotr_tn.ops import add, scale
from lotr_tn.ops.arrays import storage_dtype
from lotr_tn.testing.laws.truth import (
    dense_updates,
    expect,
    expect_close,
    expect_same,
    magnitude,
    norm_of,
)

OfOne: TypeAlias = Callable[[Stack], Array]
OfTwo: TypeAlias = Callable[[Stack, Stack], Array]

ORDERS = {"frobenius": "fro", "spectral": 2, "nuclear": "nuc"}  # NumPy's names of the matrix norms
NARROW = 1e-7  # what Gram matrices of factors below float64 may lose, relative to the magnitude


def norm_is_the_root_of_squares(norm: OfOne, stack: Stack) -> None:
    """‖T‖ is the root of the sum of squared entries."""
    wanted = norm_of(dense_updates(stack))
    expect_close(norm(stack), wanted, _slack(stack, wanted), "the norm")


def layer_norms_are_those_of_the_matrices(
    layer_norms: Callable[[Stack, str], Array], stack: Stack, kind: str
) -> None:
    """Frobenius, spectral or nuclear norm of each layer, as NumPy has it for the dense matrix."""
    found = to_numpy(layer_norms(stack, kind))
    dense = dense_updates(stack)
    expect_same("the shape", found.shape, dense.shape[:1])
    for layer, (value, matrix) in enumerate(zip(found, dense, strict=True)):
        wanted = float(np.linalg.norm(matrix, ORDERS[kind]))
        slack = 4 * _slack(stack, wanted)
        expect_close(value, wanted, slack, f"the {kind} norm of layer {layer}")


def singular_values_are_those_of_the_matrices(
    layer_singular_values: Callable[[Stack], Sequence[Array]], stack: Stack
) -> None:
    """The singular values of each layer, largest first; those left out are zero."""
    found, dense = layer_singular_values(stack), dense_updates(stack)
    expect_same("the number of layers", len(found), len(dense))
    for layer, (values, matrix) in enumerate(zip(found, dense, strict=True)):
        wanted = np.linalg.svd(matrix, compute_uv=False)
        ours = to_numpy(values)
        expect(len(ours) <= len(wanted), f"layer {layer} has {len(ours)} singular values")
        padded = np.concatenate([ours, np.zeros(len(wanted) - len(ours))])
        off = float(np.abs(padded - wanted).max(initial=0.0))
        slack = 2 * _slack(stack, float(wanted.max(initial=0.0)))
        expect(off <= slack, f"the singular values of layer {layer} are off by {off:.2g}")


def inner_is_the_sum_of_products(inner: OfTwo, a: Stack, b: Stack) -> None:
    """⟨a, b⟩ is the sum of products of entries."""
    wanted = float((dense_updates(a) * dense_updates(b)).sum())
    expect_close(inner(a, b), wanted, _inner_slack(a, b), "the inner product")


def inner_is_symmetric(inner: OfTwo, a: Stack, b: Stack) -> None:
    """⟨a, b⟩ = ⟨b, a⟩."""
    expect_close(inner(b, a), float(inner(a, b)), _inner_slack(a, b), "the product the other way")


def inner_is_bilinear(inner: OfTwo, a: Stack, b: Stack, c: Stack, factor: float) -> None:
    """⟨f·a + b, c⟩ = f·⟨a, c⟩ + ⟨b, c⟩."""
    multiple = scale(a, factor)  # pyright: ignore[reportArgumentType, reportCallIssue]
    together = add(multiple, b)
    wanted = factor * float(inner(a, c)) + float(inner(b, c))
    slack = 10 * (_inner_slack(multiple, c) + _inner_slack(b, c))
    if storage_dtype(a) != "float64":  # the multiple is rounded to the storage dtype
        slack += NARROW * (magnitude(multiple) + magnitude(b)) * magnitude(c)
    expect_close(inner(together, c), wanted, slack, "the inner product of the sum")


def inner_is_bounded_by_the_norms(inner: OfTwo, norm: OfOne, a: Stack, b: Stack) -> None:
    """|⟨a, b⟩| ≤ ‖a‖ ‖b‖ (Cauchy and Schwarz), with equality for a = b."""
    product = float(norm(a)) * float(norm(b))
    bound = product + _inner_slack(a, b)
    if storage_dtype(a) != "float64":
        bound += NARROW * magnitude(a) * magnitude(b)
    found = abs(float(inner(a, b)))
    expect(found <= bound, f"|⟨a, b⟩| = {found:.12g} is above ‖a‖ ‖b‖ = {product:.12g}")


def norm_squared_is_the_inner_product(inner: OfTwo, norm: OfOne, stack: Stack) -> None:
    """‖T‖² = ⟨T, T⟩."""
    size = float(norm(stack))
    slack = 10 * _inner_slack(stack, stack) + 2 * size * _slack(stack, size)
    expect_close(inner(stack, stack), size**2, slack, "the inner product of the stack with itself")


def gram_holds_all_inner_products(
    gram: Callable[[Sequence[Stack]], Array], stacks: Sequence[Stack]
) -> None:
    """Entry (i, j) is ⟨stacks[i], stacks[j]⟩."""
    found = to_numpy(gram(stacks))
    dense = [dense_updates(stack) for stack in stacks]
    expect_same("the shape", found.shape, (len(stacks),) * 2)
    for i, (a, x) in enumerate(zip(stacks, dense, strict=True)):
        for j, (b, y) in enumerate(zip(stacks, dense, strict=True)):
            wanted = float((x * y).sum())
            expect_close(found[i, j], wanted, _inner_slack(a, b), f"entry ({i}, {j})")


def cosine_is_that_of_the_angle(cosine: OfTwo, a: Stack, b: Stack) -> None:
    """⟨a, b⟩ / (‖a‖ ‖b‖), within −1 … 1; 0 where one is zero; the same for multiples."""
    found = float(cosine(a, b))
    expect(-1 <= found <= 1, f"a cosine lies in −1 … 1; found {found:.17g}")
    x, y = dense_updates(a), dense_updates(b)
    sizes = norm_of(x) * norm_of(y)
    terms = magnitude(a) * magnitude(b)
    if terms == 0:
        expect_close(found, 0.0, 0.0, "the cosine with a zero stack")
    elif sizes > 1e-6 * terms:  # else the updates are rounding, and have no direction
        loss = 1e-12 if storage_dtype(a) == "float64" else NARROW
        slack = 10 * loss * (terms / sizes) ** 2
        expect_close(found, float((x * y).sum()) / sizes, slack, "the cosine")
        double = scale(a, 2.0)  # pyright: ignore[reportArgumentType, reportCallIssue]
        expect_close(cosine(double, b), found, slack, "the cosine of twice the stack")


def distance_is_the_norm_of_the_difference(distance: OfTwo, a: Stack, b: Stack) -> None:
    """‖a − b‖ is the root of the sum of squared differences of entries, however small."""
    wanted = norm_of(dense_updates(a) - dense_updates(b))
    expect_close(distance(a, b), wanted, _distance_slack(a, b, wanted), "the distance")


def layer_distances_are_those_of_the_matrices(layer_distances: OfTwo, a: Stack, b: Stack) -> None:
    """‖a_l − b_l‖ of each layer, however small."""
    found = to_numpy(layer_distances(a, b))
    differences = dense_updates(a) - dense_updates(b)
    expect_same("the shape", found.shape, differences.shape[:1])
    for layer, (value, matrix) in enumerate(zip(found, differences, strict=True)):
        wanted = norm_of(matrix)
        slack = _distance_slack(a, b, wanted)
        expect_close(value, wanted, slack, f"the distance of layer {layer}")


def _slack(stack: Stack, wanted: float) -> float:
    """For norms and singular values: relative to the value, and to what cancels in it."""
    if storage_dtype(stack) == "float64":
        return 1e-12 * wanted + 1e-14 * magnitude(stack)
    return 1e-6 * wanted + NARROW * magnitude(stack)


def _inner_slack(a: Stack, b: Stack) -> float:
    return 1e-13 * magnitude(a) * magnitude(b)


def _distance_slack(a: Stack, b: Stack, wanted: float) -> float:
    return 1e-7 * wanted + 1e-13 * (magnitude(a) + magnitude(b))
