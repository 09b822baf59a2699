"""Frobenius norms from factors."""

from lotr_tn._arrays import Array, Namespace, float64, namespace_of
from lotr_tn.formats import Dense, LoRAStack, Stack, Tucker2
from lotr_tn.linalg import triangular_factor
from lotr_tn.ops.layers import arrays_of, layer_of

__all__ = ["layer_norms", "norm", "root_sum_squares"]


def norm(stack: Stack) -> Array:
    """The Frobenius norm of the whole stack, ‖T‖ = (Σ_l ‖ΔW_l‖²)^½.

    Returns:
        A float64 number on the stack's device.

    Cost: O((m + n)·Σ r_l²) flops for LoRA, O((m + n)·r² + L·r³) for Tucker-2; O(r²) memory.
    Accuracy: 1e-15 relative for float64 input; 1e-8 for factors stored narrower.
    """
    return root_sum_squares(layer_norms(stack))


def layer_norms(stack: Stack) -> Array:
    """The Frobenius norm of each layer.

    Returns:
        (L,) float64 on the stack's device. Cost and accuracy as for `norm`.
    """
    xp = namespace_of(**arrays_of(stack))
    match stack:
        case Dense():
            return xp.stack([frobenius(stack.w[i, ...], xp=xp) for i in range(stack.shape[0])])
        case Tucker2():
            left = triangular_factor(stack.u, xp=xp)
            right = xp.matrix_transpose(triangular_factor(stack.v, xp=xp))
            cores = [float64(stack.core[i, ...], xp=xp) for i in range(stack.shape[0])]
            return xp.stack([frobenius(left @ core @ right, xp=xp) for core in cores])
        case LoRAStack():
            return xp.stack([_lora_norm(stack, i, xp=xp) for i in range(stack.shape[0])])


def _lora_norm(stack: LoRAStack, index: int, *, xp: Namespace) -> Array:
    layer = layer_of(stack, index, xp=xp)
    left, right = triangular_factor(layer.left, xp=xp), triangular_factor(layer.right, xp=xp)
    return frobenius(left @ xp.matrix_transpose(right), xp=xp)


def frobenius(x: Array, *, xp: Namespace) -> Array:
    """The root of the sum of squares of a matrix, in float64."""
    return root_sum_squares(float64(x, xp=xp))


def root_sum_squares(x: Array) -> Array:
    """The root of the sum of squares of all entries, scaled so that nothing over- or underflows."""
    xp = namespace_of(x=x)
    if 0 in x.shape:
        return xp.sum(x)
    largest = xp.max(xp.abs(x))
    scale = xp.where(largest > 0, largest, xp.ones_like(largest))
    return scale * xp.sqrt(xp.sum((x / scale) ** 2))
