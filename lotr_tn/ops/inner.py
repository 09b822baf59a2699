"""Inner products and angles from factors."""

from collections.abc import Sequence

import array_api_compat
import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, Namespace, namespace_of, zeros
from lotr_tn.errors import FormatError
from lotr_tn.formats import Format, Stack
from lotr_tn.linalg import cross_gram
from lotr_tn.ops.arrays import common_namespace, first_array
from lotr_tn.ops.checks import require_same_shape
from lotr_tn.ops.layers import Layer, layer_inner, layer_of, left_times_middle
from lotr_tn.ops.magnitude import in_range, measured, times_power
from lotr_tn.ops.norms import norm
from lotr_tn.ops.primitives import by_rule_or_hub, measured_in_hub


@door
@measured
def inner(a: Stack, b: Stack) -> Array:
    """⟨a, b⟩ = Σ_l tr(a_lᵀ b_l), the inner product behind `norm`.

    Args:
        a: any stack (L, m, n).
        b: any stack of the same shape, library, dtype and device.

    Returns:
        A float64 number on the stacks' device; derivatives flow through it in torch.

    Raises:
        FormatError: the shapes differ.
        BackendError: library, dtype or device differ.

    Cost: O((m + n)·r_a·r_b) flops a layer; O(r_a·r_b) memory.
    Accuracy: 1e-15·‖a‖‖b‖ absolute; a product below 1e-308 is 0. For ‖a − b‖ use
    `distance`, which does not cancel.
    """
    require_same_shape(a, b)
    if isinstance(a, Format) or isinstance(b, Format):
        return by_rule_or_hub(inner, a, b)
    xp = common_namespace(a, b)
    (a, p), (b, q) = in_range(a), in_range(b)
    pairs = ([layer_of(x, index, xp=xp) for x in (a, b)] for index in range(a.shape[0]))
    total = xp.sum(xp.stack([layer_inner(x, y, xp=xp) for x, y in pairs]))
    return times_power(total, p + q) if p + q else total


@door
@measured
def cosine(a: Stack, b: Stack) -> Array:
    """⟨a, b⟩ / (‖a‖·‖b‖), the cosine of the angle between two stacks; 0 where one is zero.

    Returns:
        A float64 number in [-1, 1]. Cost and errors as for `inner`.
    """
    (a, _), (b, _) = in_range(a), in_range(b)
    dot, size = inner(a, b), norm(a) * norm(b)
    xp = namespace_of(dot=dot)
    safe = xp.where(size == 0, xp.ones_like(size), size)
    return xp.clip(xp.where(size == 0, xp.zeros_like(dot), dot / safe), -1.0, 1.0)


@door
@measured
def gram(stacks: Sequence[Stack]) -> Array:
    """All inner products of N stacks: entry (i, j) is ⟨stacks[i], stacks[j]⟩.

    Args:
        stacks: N stacks of one shape (L, m, n), library, dtype and device; formats may differ.

    Returns:
        (N, N) float64, symmetric and positive semidefinite up to rounding. Its diagonal holds the
        squared norms, and its entries over their roots the cosines.

    Raises:
        FormatError: no stack, or shapes that differ.
        BackendError: library, dtype or device differ.

    Cost: with R the summed rank of all stacks in a layer, 2·(m + n)·R² flops a layer in two
    matrix products, and O((m + n)·R) memory.
    """
    if not stacks:
        raise FormatError("stacks must hold at least one stack; found none")
    for other in stacks[1:]:
        require_same_shape(stacks[0], other)
    xp = common_namespace(*stacks)
    cores = measured_in_hub(stacks)
    total = zeros((len(cores),) * 2, first_array(cores[0]), xp=xp)
    for index in range(cores[0].shape[0]):
        total = total + _layer_gram([layer_of(x, index, xp=xp) for x in cores], xp=xp)
    return (total + total.mT) / 2


def _layer_gram(layers: Sequence[Layer], *, xp: Namespace) -> Array:
    """(N, N): the inner products of N updates of one layer."""
    if any(layer.left is None for layer in layers):
        rows = [xp.stack([layer_inner(x, y, xp=xp) for y in layers]) for x in layers]
        return xp.stack(rows)
    left = xp.concat([left_times_middle(layer, xp=xp) for layer in layers], axis=1)
    right = xp.concat([layer.right for layer in layers], axis=1)
    products = cross_gram(left, left, xp=xp) * cross_gram(right, right, xp=xp)
    sizes = [int(layer.right.shape[1]) for layer in layers]
    # (N, Σ sizes) with a one where a column belongs to a row's stack: sums over blocks
    members = np.repeat(np.eye(len(sizes)), sizes, axis=1)
    members = xp.asarray(members, device=array_api_compat.device(products))
    return members @ products @ members.mT
