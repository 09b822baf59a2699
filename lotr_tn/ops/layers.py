"""Layers of a stack, seen one by one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lotr_tn._arrays import (
    Array,
    Namespace,
    at_least_float32,
    dtype_name,
    float64,
    namespace_of,
    row_blocks,
    wants_gradient,
)
from lotr_tn.errors import DerivativeError, FormatError
from lotr_tn.formats import Dense, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2

__all__ = [
    "Kind",
    "Layer",
    "arrays_of",
    "common_namespace",
    "core_of",
    "cores_as_lora",
    "differentiable",
    "each_core",
    "first_array",
    "layer_of",
    "layer_product",
    "left_times_middle",
    "refuse_gradient",
    "require_layer",
    "require_same_shape",
    "storage_dtype",
    "wide_product",
    "with_arrays",
]


Kind = TypeVar("Kind", bound=Stack)
"""A stack whose format a function keeps."""


@dataclass(frozen=True)
class Layer:
    """One update as left @ middle @ rightᵀ; a middle of None is the identity."""

    left: Array  # (m, p)
    middle: Array | None  # (p, q)
    right: Array  # (n, q)


def arrays_of(stack: Stack) -> dict[str, Array]:
    """The arrays of a stack by field name."""
    match stack:
        case LoRAStack():
            return {"up": stack.up, "down": stack.down}
        case Tucker2():
            return {"u": stack.u, "core": stack.core, "v": stack.v}
        case LowRankTucker2():
            return {"u": stack.u, "up": stack.up, "down": stack.down, "v": stack.v}
        case Tucker1():
            return {"shared": stack.shared, "own": stack.own}
        case Dense():
            return {"w": stack.w}


def first_array(stack: Stack) -> Array:
    """One of a stack's arrays: all of them have one library, dtype and device."""
    match stack:
        case Tucker2() | LowRankTucker2():
            return stack.u
        case LoRAStack():
            return stack.up
        case Tucker1():
            return stack.shared
        case Dense():
            return stack.w


def common_namespace(*stacks: Stack) -> Namespace:
    """The array library of one or several stacks.

    Raises:
        BackendError: library, dtype or device differ.
    """
    if len(stacks) == 1:
        return namespace_of(**arrays_of(stacks[0]))
    named = {f"{'abcdefgh'[i % 8]}{i // 8 or ''}": stack for i, stack in enumerate(stacks)}
    return namespace_of(
        **{f"{name}.{k}": x for name, stack in named.items() for k, x in arrays_of(stack).items()}
    )


def storage_dtype(stack: Stack) -> str:
    """The name of a stack's dtype."""
    return dtype_name(first_array(stack))


def differentiable(*stacks: Stack) -> bool:
    """Whether torch records what is done with any of these stacks."""
    return any(wants_gradient(*arrays_of(stack).values()) for stack in stacks)


def with_arrays(stack: Kind, **changes: Any) -> Kind:
    """The stack with other arrays; its certificate, which measured the old ones, is dropped."""
    if not isinstance(stack, Dense):
        changes["certificate"] = None
    return replace(stack, **changes)


def refuse_gradient(what: str, *stacks: Stack) -> None:
    """Refuse stacks that torch records, where the derivative would not be right."""
    if differentiable(*stacks):
        raise DerivativeError(
            f"{what} has no derivative here, and the factors require one; detach them, or use "
            "round at fixed ranks, which has"
        )


def cores_as_lora(stack: LowRankTucker2) -> LoRAStack:
    """The cores alone, up_l down_l (L, r1, r2), with the stack's own arrays."""
    return LoRAStack(stack.up, stack.down, stack.ranks)


def core_of(stack: Tucker2 | LowRankTucker2, index: int, *, xp: Namespace) -> Array:
    """The core (r1, r2) of a layer in float64."""
    if isinstance(stack, Tucker2):
        return float64(stack.core[index, ...], xp=xp)
    part = stack.slices[index]
    return float64(stack.up[:, part], xp=xp) @ float64(stack.down[part, :], xp=xp)


def each_core(stack: Tucker2 | LowRankTucker2, *, xp: Namespace) -> Iterator[Array]:
    """The cores (r1, r2) of all layers in turn, in float64."""
    if isinstance(stack, Tucker2):
        for index in range(stack.shape[0]):
            yield float64(stack.core[index, ...], xp=xp)
        return
    up, down = float64(stack.up, xp=xp), float64(stack.down, xp=xp)
    for part in stack.slices:
        yield up[:, part] @ down[part, :]


def wide_product(x: Array, y: Array, *, xp: Namespace) -> Array:
    """The product x @ y in float64 for a tall x, of which no float64 copy is held whole."""
    y = float64(y, xp=xp)
    return xp.concat([float64(x[rows, :], xp=xp) @ y for rows in row_blocks(x)], axis=0)


def layer_of(
    stack: LoRAStack | Tucker2 | LowRankTucker2 | Tucker1, index: int, *, xp: Namespace
) -> Layer:
    """Layer `index` as factors that view the stack's arrays.

    Those of a low-rank Tucker-2 are products, U up_l and V down_lᵀ in float64.
    """
    match stack:
        case Tucker2():
            return Layer(stack.u, stack.core[index, ...], stack.v)
        case LowRankTucker2():
            part = stack.slices[index]
            down = xp.matrix_transpose(stack.down[part, :])
            left = wide_product(stack.u, stack.up[:, part], xp=xp)
            return Layer(left, None, wide_product(stack.v, down, xp=xp))
        case Tucker1(side="in"):
            return Layer(stack.own[index, ...], None, stack.shared)
        case Tucker1():
            return Layer(stack.shared, None, stack.own[index, ...])
        case LoRAStack():
            part = stack.slices[index]
            return Layer(stack.up[:, part], None, xp.matrix_transpose(stack.down[part, :]))


def left_times_middle(layer: Layer, *, xp: Namespace) -> Array:
    """Left @ middle (m, q) in float64, so that a layer is this times rightᵀ."""
    left = float64(layer.left, xp=xp)
    return left if layer.middle is None else left @ float64(layer.middle, xp=xp)


def layer_product(stack: Stack, index: int, *, xp: Namespace) -> Array:
    """Layer `index` as one (m, n) matrix, in float32 or float64."""
    if isinstance(stack, Dense):
        return at_least_float32(stack.w[index, ...], xp=xp)
    layer = layer_of(stack, index, xp=xp)
    left = at_least_float32(layer.left, xp=xp)
    if layer.middle is not None:
        left = left @ at_least_float32(layer.middle, xp=xp)
    return left @ xp.matrix_transpose(at_least_float32(layer.right, xp=xp))


def require_same_shape(a: Stack, b: Stack) -> None:
    """Refuse two stacks that differ in layers or in matrix size."""
    if a.shape != b.shape:
        raise FormatError(
            f"both stacks must have one shape (L, m, n); found {a.shape} and {b.shape}"
        )


def require_layer(layers: int, layer: int) -> int:
    """A layer's index from 0 to L - 1, or a refusal; negative ones count from the end."""
    if not -layers <= layer < layers:
        raise FormatError(f"layer must lie in 0 … {layers - 1}; found {layer}")
    return layer % layers
