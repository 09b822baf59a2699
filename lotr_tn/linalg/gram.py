"""Products of tall matrices accumulated in float64, block by block."""

from lotr_tn._arrays import Array, Namespace, float64, is_wide, row_blocks


def cross_gram(x: Array, y: Array, *, xp: Namespace) -> Array:
    """xᵀ y (…, p, q) in float64, for x (…, m, p) and y (…, m, q) of any storage dtype.

    Narrow input is widened one block of rows at a time, so no float64 copy of x or y is ever held.

    Cost: 2·m·p·q flops; O(p·q) memory beside the input.
    """
    if is_wide(x) and is_wide(y):
        return x.mT @ y
    total = None
    for rows in row_blocks(x if x.shape[-1] >= y.shape[-1] else y):
        left = float64(x[..., rows, :], xp=xp)
        right = left if x is y else float64(y[..., rows, :], xp=xp)
        part = left.mT @ right
        total = part if total is None else total + part
    return total if total is not None else float64(x.mT @ y, xp=xp)


def wide_product(x: Array, y: Array, *, xp: Namespace) -> Array:
    """The product x @ y in float64 for a tall x, of which no float64 copy is held whole."""
    y = float64(y, xp=xp)
    return xp.concat([float64(x[rows, :], xp=xp) @ y for rows in row_blocks(x)], axis=0)
