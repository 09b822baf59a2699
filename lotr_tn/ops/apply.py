"""Updates applied to vectors."""

from lotr_tn._arrays import Array, at_least_float32, cast, dtype_name, namespace_of
from lotr_tn.errors import FormatError
from lotr_tn.formats import Dense, Stack, Tucker2
from lotr_tn.ops.layers import arrays_of, layer_of

__all__ = ["apply"]


def apply(stack: Stack, x: Array, *, layer: int | None = None) -> Array:
    """y_l = x ΔW_lᵀ, in torch's orientation, without forming ΔW_l.

    Args:
        stack: any stack (L, m, n).
        x: (..., n), of the stack's library, dtype and device.
        layer: one layer's index, or None for all layers on the same x.

    Returns:
        (..., m) for one layer, (L, ..., m) for all, in the dtype of x. Half precision is widened
        to float32 inside.

    Raises:
        FormatError: the last axis of x is not n, or there is no such layer.
        BackendError: library, dtype or device differ.

    Cost: for b rows of x and one layer 2·b·(m + n)·r flops; Tucker-2 shares x V over the layers.
    """
    layers, _, n = stack.shape
    xp = namespace_of(x=x, **arrays_of(stack))
    if x.ndim == 0 or x.shape[-1] != n:
        raise FormatError(
            f"the last axis of x must have size n = {n}; found shape {tuple(x.shape)}"
        )
    if layer is not None and not -layers <= layer < layers:
        raise FormatError(f"layer must lie in 0 … {layers - 1}; found {layer}")
    wide = at_least_float32(x, xp=xp)
    chosen = range(layers) if layer is None else [layer % layers]
    shared = wide @ at_least_float32(stack.v, xp=xp) if isinstance(stack, Tucker2) else None
    results = []
    for index in chosen:
        if isinstance(stack, Dense):
            weight = at_least_float32(stack.w[index, ...], xp=xp)
            results.append(wide @ xp.matrix_transpose(weight))
            continue
        part = layer_of(stack, index, xp=xp)
        y = shared if shared is not None else wide @ at_least_float32(part.right, xp=xp)
        if part.middle is not None:
            y = y @ xp.matrix_transpose(at_least_float32(part.middle, xp=xp))
        results.append(y @ xp.matrix_transpose(at_least_float32(part.left, xp=xp)))
    y = xp.stack(results) if layer is None else results[0]
    return cast(y, dtype_name(x), xp=xp)
