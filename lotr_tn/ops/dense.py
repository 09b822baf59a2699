"""Dense matrices on request, and nowhere else."""

import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, Namespace, is_finite, narrow, on_host
from lotr_tn.errors import PerformanceWarning, warn_outside
from lotr_tn.formats import Format, Stack
from lotr_tn.ops.arrays import common_namespace, storage_dtype
from lotr_tn.ops.layers import layer_of, layer_product
from lotr_tn.ops.moving import astype
from lotr_tn.ops.primitives import by_rule_or_hub

WARN_ABOVE_ENTRIES = 2**28  # `to_dense` warns above this many entries: 1 GiB of float32


@door
def to_dense(stack: Stack) -> Array:
    """The updates as plain matrices.

    Args:
        stack: any stack.

    Returns:
        (L, m, n) in the stack's dtype; products are formed in float32 or float64.

    Raises:
        FormatError: an entry is too large for the dtype.

    Warns:
        PerformanceWarning: the result has more than 2²⁸ entries.

    Cost: O(L·m·n·r) flops and L·m·n memory: for small stacks and for checks.
    """
    if isinstance(stack, Format):
        return by_rule_or_hub(to_dense, stack)
    warn_of_size(stack.shape)
    xp = common_namespace(stack)
    products = _products(stack, xp=xp)
    dtype = storage_dtype(stack)
    if dtype != "float64" and on_host(products) and not is_finite(products):
        # terms that float32 has no room for may cancel, or end as NaN
        products = _products(astype(stack, "float64"), xp=xp)
    return narrow(products, dtype, xp=xp)


def warn_of_size(shape: tuple[int, int, int]) -> None:
    """Warn before matrices are formed that are far larger than their factors."""
    layers, m, n = shape
    if layers * m * n > WARN_ABOVE_ENTRIES:
        warn_outside(
            f"to_dense forms {layers} matrices of {m} x {n}, {layers * m * n:,} numbers; "
            "norm, distance, inner and apply need none of them",
            PerformanceWarning,
        )


def _products(stack: Stack, *, xp: Namespace) -> Array:
    each = (layer_of(stack, index, xp=xp) for index in range(stack.shape[0]))
    with np.errstate(over="ignore", invalid="ignore"):
        return xp.stack([layer_product(layer, xp=xp) for layer in each])
