"""Dense matrices on request, and nowhere else."""

import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, narrow
from lotr_tn.errors import PerformanceWarning, warn_outside
from lotr_tn.formats import Format, Stack
from lotr_tn.ops.arrays import common_namespace, storage_dtype
from lotr_tn.ops.layers import layer_of, layer_product
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
    layers, m, n = stack.shape
    if layers * m * n > WARN_ABOVE_ENTRIES:
        warn_outside(
            f"to_dense forms {layers} matrices of {m} x {n}, {layers * m * n:,} numbers; "
            "norm, distance, inner and apply need none of them",
            PerformanceWarning,
        )
    xp = common_namespace(stack)
    each = (layer_of(stack, index, xp=xp) for index in range(layers))
    with np.errstate(over="ignore", invalid="ignore"):
        products = xp.stack([layer_product(layer, xp=xp) for layer in each])
    return narrow(products, storage_dtype(stack), xp=xp)
