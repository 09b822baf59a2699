"""Factors of several stacks side by side, and cores with zeros around them."""

import itertools
from collections.abc import Sequence

from lotr_tn._arrays import Array, Namespace, cast, dtype_name, zeros
from lotr_tn.formats import LoRAStack, LowRankTucker2


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


def placed(x: Array, axis: int, start: int, size: int, *, xp: Namespace) -> Array:
    """`x` with zeros before and after it: an axis is of that size, and `x` begins at the start."""
    return zero_blocks(x, axis, start, size - start - int(x.shape[axis]), xp=xp)


def side_by_side(factors: Sequence[Array], *, xp: Namespace) -> tuple[Array, list[int]]:
    """Factors as columns of one, and where each begins; the same array stands there once."""
    if all(factor is factors[0] for factor in factors):
        return factors[0], [0] * len(factors)
    *starts, _ = itertools.accumulate((int(x.shape[1]) for x in factors), initial=0)
    return xp.concat(factors, axis=1), starts


def on_common_sides(
    stacks: Sequence[LowRankTucker2], *, xp: Namespace
) -> tuple[Array, list[LoRAStack], Array]:
    """U, the cores of each stack, and V, where U and V are those of all stacks side by side."""
    u, starts = side_by_side([s.u for s in stacks], xp=xp)
    v, ends = side_by_side([s.v for s in stacks], xp=xp)
    r1, r2 = int(u.shape[1]), int(v.shape[1])
    cores = [
        LoRAStack(placed(s.up, 0, p, r1, xp=xp), placed(s.down, 1, q, r2, xp=xp), s.ranks)
        for s, p, q in zip(stacks, starts, ends, strict=True)
    ]
    return u, cores, v
