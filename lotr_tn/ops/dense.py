"""Dense matrices on request, and nowhere else."""

import warnings

from lotr_tn._arrays import Array, cast, dtype_name, namespace_of
from lotr_tn.errors import PerformanceWarning
from lotr_tn.formats import Stack
from lotr_tn.ops.layers import arrays_of, layer_product

__all__ = ["to_dense"]

WARN_ABOVE_ENTRIES = 2**28
"""`to_dense` warns above this many entries: 1 GiB of float32."""


def to_dense(stack: Stack) -> Array:
    """The updates as plain matrices.

    Args:
        stack: any stack.

    Returns:
        (L, m, n) in the stack's dtype; products are formed in float32 or float64.

    Warns:
        PerformanceWarning: the result has more than 2²⁸ entries.

    Cost: O(L·m·n·r) flops and L·m·n memory: for small stacks and for checks.
    """
    layers, m, n = stack.shape
    if layers * m * n > WARN_ABOVE_ENTRIES:
        warnings.warn(
            f"to_dense forms {layers} matrices of {m} x {n}, {layers * m * n:,} numbers; "
            "norm, distance, inner and apply need none of them",
            PerformanceWarning,
            stacklevel=2,
        )
    arrays = arrays_of(stack)
    xp = namespace_of(**arrays)
    dtype = dtype_name(next(iter(arrays.values())))
    return cast(xp.stack([layer_product(stack, i, xp=xp) for i in range(layers)]), dtype, xp=xp)
