"""Zeros around a core."""

from lotr_tn._arrays import Array, Namespace, cast, dtype_name, zeros


def zero_blocks(x: Array, axis: int, before: int, after: int, *, xp: Namespace) -> Array:
    """`x` with that many zeros before and after it along an axis; `x` itself for none."""
    parts = []
    for count in (before, after):
        shape = tuple(count if i == axis else int(size) for i, size in enumerate(x.shape))
        parts.append(cast(zeros(shape, x, xp=xp), dtype_name(x), xp=xp) if count else None)
    kept = [part for part in (parts[0], x, parts[1]) if part is not None]
    return xp.concat(kept, axis=axis) if len(kept) > 1 else x


def block_diagonal(x: Array, y: Array, *, xp: Namespace) -> Array:
    """(L, p + s, q + t) with x (L, p, q) and y (L, s, t) on the diagonal of each layer."""
    above = zero_blocks(x, 2, 0, int(y.shape[2]), xp=xp)
    below = zero_blocks(y, 2, int(x.shape[2]), 0, xp=xp)
    return xp.concat([above, below], axis=1)
