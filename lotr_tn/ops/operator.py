"""Updates as SciPy linear operators, for its iterative solvers."""

from typing import TYPE_CHECKING, Any

import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, from_numpy, to_numpy
from lotr_tn.formats import Format, Stack
from lotr_tn.ops.apply import apply, apply_transpose
from lotr_tn.ops.arrays import first_array, storage_dtype
from lotr_tn.ops.checks import require_layer
from lotr_tn.ops.moving import astype
from lotr_tn.ops.primitives import has_rule, lowered

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


@door
def as_linear_operator(stack: Stack, layer: int | None = None) -> "LinearOperator":
    """One update, or all of them one below the other, as a `scipy.sparse.linalg.LinearOperator`.

    So that `svds`, `lsmr`, `eigsh` and the like work on an update whose matrix would not fit.

    Args:
        stack: any stack (L, m, n) on NumPy, or on torch, from which vectors are copied.
        layer: one layer's index, for ΔW_l of shape (m, n); or None for [ΔW_1; …; ΔW_L] of shape
            (L·m, n), whose right singular vectors are the best V to share.

    Returns:
        An operator with matvec, matmat and their adjoints, in the dtype of the stack (float32 for
        half precision).

    Raises:
        FormatError: there is no such layer.

    Cost: that of `apply` a product; memory of the vectors.

    Examples:
        >>> import numpy as np
        >>> from scipy.sparse.linalg import svds
        >>> from lotr_tn import LoRAStack
        >>> stack = LoRAStack(np.eye(1000, 2), 3 * np.eye(2, 2000), (2,))
        >>> print(svds(as_linear_operator(stack, 0), k=2, return_singular_vectors=False))
        [3. 3.]
    """
    from scipy.sparse.linalg import LinearOperator

    if isinstance(stack, Format) and not has_rule("apply", type(stack)):
        stack = lowered(stack)  # once, and not in each product
    layers, m, n = stack.shape
    if layer is not None:
        layer = require_layer(layers, layer)
    if storage_dtype(stack) not in ("float32", "float64"):
        stack = astype(stack, "float32")
    dtype = np.dtype(storage_dtype(stack))
    like = first_array(stack)

    def forward(x: np.ndarray) -> np.ndarray:
        """(n, b) to (m, b) or (L·m, b)."""
        y = to_numpy(apply(stack, _moved(x.T, dtype, like), layer=layer))
        return y.T if layer is not None else np.moveaxis(y, 1, 2).reshape(layers * m, -1)

    def backward(y: np.ndarray) -> np.ndarray:
        """(m, b) or (L·m, b) to (n, b)."""
        parts = y.reshape(-1, m, y.shape[1])
        chosen = range(layers) if layer is None else [layer]
        total = np.zeros((n, y.shape[1]), dtype)
        for index, part in zip(chosen, parts, strict=True):
            moved = _moved(part.T, dtype, like)
            total += to_numpy(apply_transpose(stack, moved, layer=index)).T
        return total

    make: Any = LinearOperator  # its constructor picks a subclass that takes these functions
    return make(
        shape=(m if layer is not None else layers * m, n),
        dtype=dtype,
        matvec=lambda x: forward(x.reshape(-1, 1))[:, 0],
        rmatvec=lambda y: backward(y.reshape(-1, 1))[:, 0],
        matmat=forward,
        rmatmat=backward,
    )


def _moved(x: np.ndarray, dtype: np.dtype, like: Array) -> Array:
    """A host array in the dtype, and on the device, of the stack's arrays."""
    x = np.ascontiguousarray(x, dtype=dtype)
    if isinstance(like, np.ndarray):
        return x
    return from_numpy(x, backend="torch", device=str(like.device))
