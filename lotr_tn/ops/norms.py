"""Norms from factors."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, assert_never

import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, Namespace, float64, is_wide, namespace_of, on_host, to_numpy
from lotr_tn.errors import OptionError
from lotr_tn.formats import Core, Dense, Format, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.linalg import triangular_factor
from lotr_tn.linalg.derivatives import truncated_svd_with_gradient
from lotr_tn.linalg.factor import singular_values, triangle_of
from lotr_tn.linalg.product import product_or_zero, sizes_of_terms
from lotr_tn.ops.arrays import common_namespace, differentiable
from lotr_tn.ops.batches import in_batches, row_norms, side_by_side
from lotr_tn.ops.layers import layer_inner, layer_of, left_times_middle
from lotr_tn.ops.magnitude import measured
from lotr_tn.ops.primitives import by_rule_or_hub

CANCELLED = 2.0**-20
"""Share of the sizes of its terms below which a narrow product is computed in full precision."""

NormKind = Literal["frobenius", "spectral", "nuclear"]


@door
@measured
def norm(stack: Stack) -> Array:
    """The Frobenius norm of the whole stack, ‖T‖ = (Σ_l ‖ΔW_l‖²)^½.

    Returns:
        A float64 number on the stack's device. Derivatives flow through it in torch; at a zero
        stack the derivative is 0.

    Cost: O((m + n)·Σ r_l²) flops for LoRA, O((m + n)·r² + L·r³) for Tucker-2; O((m + n)·r² + r²·K)
    for a low-rank one; O(r²) memory.

    Raises:
        FormatError: an entry is not finite (its field is named), or the norm is beyond float64.

    Accuracy: 1e-15 relative for float64 input; 1e-8 for factors stored narrower, and where torch
    records derivatives. What is below 4e-15 of Σ_j ‖x_j‖‖y_j‖ over a layer's rank terms is rounding
    of terms that cancel, and 0.
    """
    return root_sum_squares(layer_norms(stack))


@door
@measured
def layer_norms(stack: Stack, kind: NormKind = "frobenius") -> Array:
    """A norm of each layer.

    Args:
        stack: any stack (L, m, n).
        kind: "frobenius", the root of the sum of squares; "spectral", the largest singular value;
            "nuclear", the sum of singular values.

    Returns:
        (L,) float64 on the stack's device. Cost and accuracy as for `norm`.

    Raises:
        OptionError: an unknown kind.
    """
    if isinstance(stack, Format):
        return by_rule_or_hub(layer_norms, stack, kind)
    xp = common_namespace(stack)
    match kind:
        case "frobenius":
            if differentiable(stack):
                return _norms_with_gradient(stack, xp=xp)
            return norms_of(_small_layers(stack, xp=xp), xp=xp)
        case "spectral":
            return xp.stack([_largest(s, xp=xp) for s in layer_singular_values(stack)])
        case "nuclear":
            return xp.stack([xp.sum(s) for s in layer_singular_values(stack)])
        case _:
            raise OptionError(f"kind must be frobenius, spectral or nuclear; found {kind!r}")


@door
@measured
def layer_singular_values(stack: Stack) -> list[Array]:
    """The singular values of each layer's update, largest first.

    Returns:
        L arrays in float64 on the stack's device: r_l values of a LoRA, min(r1, r2) of a
        Tucker-2, at most k_l of those of a low-rank one; at most min(m, n).

    Cost: O((m + n)·r_l²) flops a layer.
    Accuracy: 1e-15 of the largest for float64 input, 1e-8 for factors stored narrower.
    """
    if isinstance(stack, Format):
        return by_rule_or_hub(layer_singular_values, stack)
    xp = common_namespace(stack)
    if differentiable(stack):
        return [_singular_values_with_gradient(stack, i, xp=xp) for i in range(stack.shape[0])]
    count = min(stack.shape[1:])
    small = _small_layers(stack, xp=xp)
    return [singular_values(x, xp=xp)[: min(count, *x.shape)] for x in small]


def _small_layers(stack: Core, *, xp: Namespace) -> list[Array]:
    """For each layer a small matrix with its singular values: T_left middle T_rightᵀ."""
    layers = range(stack.shape[0])
    match stack:
        case Dense():
            return [stack.w[i, ...] for i in layers]
        case Tucker2():
            left, right = (triangular_factor(x, xp=xp) for x in (stack.u, stack.v))
            cores = (float64(stack.core[i, ...], xp=xp) for i in layers)
            return [product_or_zero(left @ core, right, xp=xp) for core in cores]
        case LowRankTucker2():
            up = triangular_factor(stack.u, xp=xp) @ float64(stack.up, xp=xp)
            down = float64(stack.down, xp=xp) @ triangular_factor(stack.v, xp=xp).mT
            cores = LoRAStack(up, down, stack.ranks)
            return _small_loras(cores, xp=xp)
        case Tucker1():
            shared = stack.shared[None, ...]
            return [_small(stack.own[i, ...][None, ...], shared, xp=xp)[0] for i in layers]
        case LoRAStack():
            return _small_loras(stack, xp=xp)
        case never:
            assert_never(never)


def _small_loras(stack: LoRAStack, *, xp: Namespace) -> list[Array]:
    """The same for factors of a LoRA's form: those of one rank all at once."""
    parts, sides = stack.slices, (stack.up, stack.down.mT)

    def made(places: list[int]) -> list[Array]:
        left, right = (side_by_side(x, parts, places, xp) for x in sides)
        return _small(left, right, xp=xp)

    return in_batches(stack.ranks, sum(stack.shape[1:]) * max(stack.ranks), made)


def _small(left: Array, right: Array, *, xp: Namespace) -> list[Array]:
    """For each of (G, m, r) and (G, n, r) a small matrix with the singular values of left rightᵀ.

    It is 0 where all of it cancels.
    """
    x, y = (triangular_factor(factor, xp=xp) for factor in (left, right))
    made = product_or_zero(x, y, xp=xp)
    found = list(xp.unstack(made))
    if is_wide(left) or 0 in made.shape or not on_host(made):
        return found
    # the Gram matrices leave 1e-8 of the terms: where as little is left, it is looked at again
    size = CANCELLED * sizes_of_terms(x, y, xp=xp)
    for at, much in enumerate(to_numpy(xp.max(xp.abs(made), axis=(1, 2)) > size)):
        if not much:
            a, b = (triangle_of(factor[at, ...], xp=xp) for factor in (left, right))
            found[at] = product_or_zero(a, b, xp=xp)
    return found


def _norms_with_gradient(stack: Core, *, xp: Namespace) -> Array:
    """Norms by Gram matrices: triangular factors have no derivative at equal or zero values."""
    layers = (layer_of(stack, index, xp=xp) for index in range(stack.shape[0]))
    return _safe_root(xp.stack([layer_inner(x, x, xp=xp) for x in layers]), xp=xp)


def _singular_values_with_gradient(stack: Core, index: int, *, xp: Namespace) -> Array:
    layer = layer_of(stack, index, xp=xp)
    if layer.left is None or layer.right is None:
        return singular_values(layer.middle, xp=xp)
    left = left_times_middle(layer, xp=xp)
    right = float64(layer.right, xp=xp).mT
    within = stack.shared_ranks if isinstance(stack, LowRankTucker2) else ()
    rank = min(*layer.left.shape, *right.shape, *within)
    return truncated_svd_with_gradient(left, right, rank)[1]


def _largest(values: Array, *, xp: Namespace) -> Array:
    return values[0] if values.shape[0] else xp.sum(values)


def norms_of(matrices: Sequence[Array], *, xp: Namespace) -> Array:
    """(L,) the norm of each matrix, in float64."""

    def made(places: list[int]) -> Iterable[Array]:
        alike = xp.stack([matrices[place] for place in places])
        return xp.unstack(row_norms(float64(alike, xp=xp), xp=xp))

    shapes = [tuple(x.shape) for x in matrices]
    return xp.stack(in_batches(shapes, max(map(math.prod, shapes)), made))


def frobenius(x: Array, *, xp: Namespace) -> Array:
    """The root of the sum of squares of a matrix, in float64."""
    return root_sum_squares(float64(x, xp=xp))


def root_sum_squares(x: Array) -> Array:
    """The root of the sum of squares of all entries, scaled so that nothing over- or underflows."""
    if isinstance(x, np.ndarray) and x.size:  # the same in a third of the time, for small arrays
        largest = np.abs(x).max()
        scale = largest if largest != 0 else 1
        return scale * np.sqrt(((x / scale) ** 2).sum())
    xp = namespace_of(x=x)
    if 0 in x.shape:
        return xp.sum(x)
    largest = xp.max(xp.abs(x))
    scale = xp.where(largest == 0, xp.ones_like(largest), largest)
    return scale * _safe_root(xp.sum((x / scale) ** 2), xp=xp)


def _safe_root(squares: Array, *, xp: Namespace) -> Array:
    """Square roots whose derivative at 0 is 0 instead of infinite."""
    nothing = squares <= 0  # NaN is not, and stays NaN
    roots = xp.sqrt(xp.where(nothing, xp.ones_like(squares), squares))
    return xp.where(nothing, xp.zeros_like(squares), roots)
