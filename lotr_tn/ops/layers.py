"""Layers of a stack, one by one or as a smaller stack."""

from collections.abc import Sequence
from dataclasses import dataclass

from lotr_tn._arrays import Array, Namespace, at_least_float32, namespace_of
from lotr_tn.errors import FormatError
from lotr_tn.formats import Dense, LoRAStack, Stack, Tucker2

__all__ = ["Layer", "arrays_of", "layer_of", "layer_product", "require_same_shape", "take_layers"]


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
        case Dense():
            return {"w": stack.w}


def layer_of(stack: LoRAStack | Tucker2, index: int, *, xp: Namespace) -> Layer:
    """Layer `index` as three factors that view the stack's arrays."""
    if isinstance(stack, Tucker2):
        return Layer(stack.u, stack.core[index, ...], stack.v)
    part = stack.slices[index]
    return Layer(stack.up[:, part], None, xp.matrix_transpose(stack.down[part, :]))


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


def take_layers(stack: Stack, layers: Sequence[int]) -> Stack:
    """The stack of the layers named, in that order; layers may repeat.

    Args:
        stack: any stack of L updates.
        layers: indices from -L to L - 1, at least one.

    Returns:
        A stack of the same format; Tucker-2 factors are shared, not copied.

    Raises:
        FormatError: no index, or one out of range.

    Cost: a copy of the chosen layers' own arrays.
    """
    count = stack.shape[0]
    if not layers:
        raise FormatError("layers must name at least one layer; found none")
    for layer in layers:
        if not -count <= layer < count:
            raise FormatError(f"layers must lie in 0 … {count - 1}; found {layer}")
    chosen = [layer % count for layer in layers]
    xp = namespace_of(**arrays_of(stack))
    match stack:
        case Tucker2():
            core = xp.stack([stack.core[i, ...] for i in chosen])
            return Tucker2(stack.u, core, stack.v)
        case Dense():
            return Dense(xp.stack([stack.w[i, ...] for i in chosen]))
        case LoRAStack():
            slices = stack.slices
            up = xp.concat([stack.up[:, slices[i]] for i in chosen], axis=1)
            down = xp.concat([stack.down[slices[i], :] for i in chosen], axis=0)
            return LoRAStack(up, down, tuple(stack.ranks[i] for i in chosen))
