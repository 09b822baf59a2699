"""Inner products and angles from factors."""

from lotr_tn._arrays import Array, Namespace, float64, namespace_of
from lotr_tn.formats import Dense, Stack
from lotr_tn.linalg import cross_gram
from lotr_tn.ops.layers import arrays_of, layer_of, layer_product, require_same_shape
from lotr_tn.ops.norms import norm

__all__ = ["cosine", "inner"]


def inner(a: Stack, b: Stack) -> Array:
    """⟨a, b⟩ = Σ_l tr(a_lᵀ b_l), the inner product behind `norm`.

    Args:
        a: any stack (L, m, n).
        b: any stack of the same shape, library, dtype and device.

    Returns:
        A float64 number on the stacks' device.

    Raises:
        FormatError: the shapes differ.
        BackendError: library, dtype or device differ.

    Cost: O((m + n)·r_a·r_b) flops a layer; O(r_a·r_b) memory.
    Accuracy: 1e-15·‖a‖‖b‖ absolute. For ‖a − b‖ use `distance`, which does not cancel.
    """
    require_same_shape(a, b)
    xp = namespace_of(**{f"a.{k}": v for k, v in arrays_of(a).items()}, **arrays_of(b))
    return xp.sum(xp.stack([_layer_inner(a, b, i, xp=xp) for i in range(a.shape[0])]))


def _layer_inner(a: Stack, b: Stack, index: int, *, xp: Namespace) -> Array:
    if isinstance(a, Dense) or isinstance(b, Dense):
        left, right = (float64(layer_product(s, index, xp=xp), xp=xp) for s in (a, b))
        return xp.sum(left * right)
    x, y = layer_of(a, index, xp=xp), layer_of(b, index, xp=xp)
    across = cross_gram(x.left, y.left, xp=xp)
    if x.middle is not None:
        across = xp.matrix_transpose(float64(x.middle, xp=xp)) @ across
    if y.middle is not None:
        across = across @ float64(y.middle, xp=xp)
    return xp.sum(across * cross_gram(x.right, y.right, xp=xp))


def cosine(a: Stack, b: Stack) -> Array:
    """⟨a, b⟩ / (‖a‖·‖b‖), the cosine of the angle between two stacks; 0 where one is zero.

    Returns:
        A float64 number in [-1, 1]. Cost and errors as for `inner`.
    """
    dot, size = inner(a, b), norm(a) * norm(b)
    xp = namespace_of(dot=dot)
    safe = xp.where(size > 0, size, xp.ones_like(size))
    return xp.clip(xp.where(size > 0, dot / safe, xp.zeros_like(dot)), -1.0, 1.0)
