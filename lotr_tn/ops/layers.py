"""Layers of a stack, seen one by one."""

import functools
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from lotr_tn._arrays import Array, Namespace, at_least_float32, float64, identity
from lotr_tn.formats import Dense, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.linalg.gram import cross_gram, wide_product
from lotr_tn.ops.primitives import lowered


@dataclass(frozen=True)
class Layer:
    """One update as left @ middle @ rightᵀ, where None is the identity: both sides if dense."""

    left: Array  # (m, p), or None
    middle: Array | None  # (p, q)
    right: Array  # (n, q), or None


def layer_of(stack: Stack, index: int, *, xp: Namespace) -> Layer:
    """Layer `index` as factors that view the stack's arrays."""
    # of a low-rank Tucker-2 they are products in float64; lower a registered format before a loop
    stack = lowered(stack)
    match stack:
        case Tucker2():
            return Layer(stack.u, stack.core[index, ...], stack.v)
        case LowRankTucker2():
            part = stack.slices[index]
            left = wide_product(stack.u, stack.up[:, part], xp=xp)
            return Layer(left, None, wide_product(stack.v, stack.down[part, :].mT, xp=xp))
        case Tucker1(side="in"):
            return Layer(stack.own[index, ...], None, stack.shared)
        case Tucker1():
            return Layer(stack.shared, None, stack.own[index, ...])
        case LoRAStack():
            part = stack.slices[index]
            return Layer(stack.up[:, part], None, stack.down[part, :].mT)
        case Dense():
            return Layer(None, stack.w[index, ...], None)
        case never:
            assert_never(never)


def between_shared(stack: Stack, index: int, *, xp: Namespace) -> Layer:
    """Layer `index` between factors that all share on both sides, in float64; else as it is."""
    match stack := lowered(stack):
        case Tucker2():
            return Layer(stack.u, float64(stack.core[index, ...], xp=xp), stack.v)
        case LowRankTucker2():
            part = stack.slices[index]
            core = float64(stack.up[:, part], xp=xp) @ float64(stack.down[part, :], xp=xp)
            return Layer(stack.u, core, stack.v)
    return layer_of(stack, index, xp=xp)


def left_times_middle(layer: Layer, *, xp: Namespace) -> Array:
    """Left @ middle (m, q) in float64, so that a layer is this times rightᵀ."""
    if layer.left is None:
        return float64(layer.middle, xp=xp)
    left = float64(layer.left, xp=xp)
    return left if layer.middle is None else left @ float64(layer.middle, xp=xp)


def two_factors(layer: Layer, *, xp: Namespace) -> tuple[Array, Array]:
    """Float64 factors (m, k) and (n, k) of a layer, narrow: its middle is on the wider side."""
    if layer.left is None or layer.right is None:
        wide = float64(layer.middle, xp=xp)
        m, n = wide.shape
        eye = identity(min(m, n), wide, xp=xp)
        return (eye, wide.mT) if m < n else (wide, eye)
    right = float64(layer.right, xp=xp)
    if layer.middle is not None and layer.left.shape[1] < right.shape[1]:
        across = float64(layer.middle, xp=xp).mT
        return float64(layer.left, xp=xp), right @ across
    return left_times_middle(layer, xp=xp), right


def layer_inner(x: Layer, y: Layer, *, xp: Namespace) -> Array:
    """tr(xᵀ y) of two layers, from Gram matrices of their factors; differentiable."""
    if x.left is None or x.right is None:
        if y.left is None:
            return xp.sum(float64(x.middle, xp=xp) * float64(y.middle, xp=xp))
        return layer_inner(y, x, xp=xp)
    if y.left is None or y.right is None:
        left = left_times_middle(x, xp=xp).mT
        right = float64(x.right, xp=xp).mT
        return xp.sum((left @ float64(y.middle, xp=xp)) * right)
    across = cross_gram(x.left, y.left, xp=xp)
    if x.middle is not None:
        across = float64(x.middle, xp=xp).mT @ across
    if y.middle is not None:
        across = across @ float64(y.middle, xp=xp)
    return xp.sum(across * cross_gram(x.right, y.right, xp=xp))


def layer_product(layer: Layer, *, xp: Namespace) -> Array:
    """A layer as one (m, n) matrix, in float32 or float64."""
    across = None if layer.right is None else layer.right.mT
    factors = [x for x in (layer.left, layer.middle, across) if x is not None]
    return functools.reduce(operator.matmul, [at_least_float32(x, xp=xp) for x in factors])


def cores_as_lora(stack: LowRankTucker2) -> LoRAStack:
    """The cores alone, up_l down_l (L, r1, r2), with the stack's own arrays."""
    return LoRAStack(stack.up, stack.down, stack.ranks)


def each_core(stack: Tucker2 | LowRankTucker2, *, xp: Namespace) -> Iterator[Array]:
    """The cores (r1, r2) of all layers in turn, in float64."""
    match stack:
        case Tucker2():
            yield from (float64(stack.core[i, ...], xp=xp) for i in range(stack.shape[0]))
        case LowRankTucker2():
            up, down = float64(stack.up, xp=xp), float64(stack.down, xp=xp)
            yield from (up[:, part] @ down[part, :] for part in stack.slices)
        case never:
            assert_never(never)
