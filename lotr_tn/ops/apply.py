"""Updates applied to vectors, in the order that needs the fewest operations."""

from collections.abc import Sequence
from typing import Literal, assert_never

import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, Namespace, cast, dtype_name, is_wide, namespace_of, to_numpy
from lotr_tn.errors import FormatError
from lotr_tn.formats import Core, Dense, Format, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.ops.arithmetic import transpose
from lotr_tn.ops.arrays import first_array
from lotr_tn.ops.chain import chain_product, rows_of
from lotr_tn.ops.checks import require_layer
from lotr_tn.ops.layers import cores_as_lora
from lotr_tn.ops.moving import astype
from lotr_tn.ops.primitives import by_rule_or_hub

Order = Literal["chain", "fold left", "fold right", "merge"]
"""How x ΔWᵀ is computed: ((x V) Gᵀ) Uᵀ, (x V)(U G)ᵀ, (x V Gᵀ) Uᵀ, or x (U G Vᵀ)ᵀ."""

GATHERED_BYTES = 2_000_000
"""Cores gathered at a time on the host: a piece stays in the cache, and a call costs little."""

GATHERED_ROWS_PER_LAYER = 4
"""Above that many rows a layer, rows of one layer are brought together instead."""


@door
def apply(stack: Stack, x: Array, *, layer: int | Sequence[int] | Array | None = None) -> Array:
    """y_l = x ΔW_lᵀ, in torch's orientation, without forming ΔW_l.

    Args:
        stack: any stack (L, m, n).
        x: (..., n), of the stack's library, dtype and device.
        layer: one layer's index; or None for all layers on the same x; or b indices, a layer for
            each row of x (b, ..., n), which may repeat.

    Returns:
        (..., m) for one layer, (L, ..., m) for all, (b, ..., m) for a layer a row; in the dtype
        of x. Half precision is widened to float32 inside. Derivatives flow through it in torch.

    Raises:
        FormatError: the last axis of x is not n, there is no such layer, or not one index a row.
        BackendError: library, dtype or device differ.

    Cost: for b rows and one layer 2·b·(m·r1 + r1·r2 + n·r2) flops, or less where a core is first
    multiplied into a factor: the order is chosen from the shapes by `cheapest_order`. All layers,
    and a layer a row, share x V. A layer a row gathers b cores.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import Tucker2, apply
        >>> stack = Tucker2(np.ones((5, 2)), np.ones((7, 2, 3)), np.ones((4, 3)))
        >>> apply(stack, np.ones((6, 4)), layer=[0, 3, 3, 1, 6, 2]).shape
        (6, 5)
    """
    first = first_array(stack)  # a stack's arrays agree with each other
    xp = namespace_of(x=x, stack=first)
    layers, _, n = stack.shape
    if x.ndim == 0 or x.shape[-1] != n:
        raise FormatError(
            f"the last axis of x must have size n = {n}; found shape {tuple(x.shape)}"
        )
    if dtype_name(x) not in ("float32", "float64"):
        wide = apply(astype(stack, "float32"), cast(x, "float32", xp=xp), layer=layer)
        return cast(wide, dtype_name(x), xp=xp)
    if isinstance(stack, Format):
        return by_rule_or_hub(apply, stack, x, layer=layer)
    if layer is None:
        return _all_layers(stack, x, xp=xp)
    if isinstance(layer, int):
        return _one_layer(stack, x, require_layer(layers, layer))
    return _layer_a_row(stack, x, layer, xp=xp)


@door
def apply_transpose(
    stack: Stack, y: Array, *, layer: int | Sequence[int] | Array | None = None
) -> Array:
    """x_l = y ΔW_l, the transpose of `apply`: what a gradient takes on its way back.

    Args:
        stack: any stack (L, m, n).
        y: (..., m), of the stack's library, dtype and device.
        layer: as for `apply`.

    Returns:
        (..., n), (L, ..., n) or (b, ..., n), as for `apply`, whose errors and cost it has.
    """
    return apply(transpose(stack), y, layer=layer)


def cheapest_order(rows: int, m: int, n: int, r1: int, r2: int) -> tuple[Order, int]:
    """The order with the fewest multiply-adds for x V Gᵀ Uᵀ, and their number.

    x is (rows, n), U (m, r1) and V (n, r2).

    Examples:
        >>> cheapest_order(1, 4096, 4096, 64, 64)
        ('chain', 528384)
        >>> cheapest_order(4096, 4096, 4096, 64, 16)
        ('fold left', 541065216)
        >>> cheapest_order(10**6, 32, 32, 30, 30)[0]
        'merge'
    """
    chain = rows * (n * r2 + r2 * r1 + r1 * m)
    fold_left = m * r1 * r2 + rows * r2 * (n + m)
    fold_right = n * r1 * r2 + rows * r1 * (n + m)
    merge = min(m * r2 * (r1 + n), n * r1 * (r2 + m)) + rows * m * n
    best = min(chain, fold_left, fold_right, merge)
    if best == chain:
        return "chain", best
    if best == fold_left:
        return "fold left", best
    return ("fold right" if best == fold_right else "merge"), best


@door
def merge_break_even(m: int, n: int, r1: int, r2: int | None = None) -> int | None:
    """From how many rows on a merged m × n matrix takes fewer operations than the factors.

    Args:
        m: outputs.
        n: inputs.
        r1: columns of U, or the rank of a LoRA.
        r2: columns of V; left out for a LoRA, which has no core.

    Returns:
        The number of rows, its own merging included; None where the factors always win, which is
        as long as n·r2 + r1·r2 + m·r1 ≤ m·n (or a core folded into a factor does).

    Examples:
        >>> merge_break_even(4096, 4096, 64, 64) is None
        True
        >>> merge_break_even(768, 768, 500, 500)
        1656
    """
    if r2 is None:
        a_row, merging = r1 * (m + n), m * r1 * n
    else:
        a_row = min(n * r2 + r1 * r2 + m * r1, r1 * (m + n), r2 * (m + n))
        merging = min(m * r2 * (r1 + n), n * r1 * (r2 + m))
    if a_row <= m * n:
        return None
    rows = merging // (a_row - m * n)

    def merged_wins(count: int) -> bool:
        if r2 is None:
            return merging + count * m * n < count * a_row
        return cheapest_order(count, m, n, r1, r2)[0] == "merge"

    while not merged_wins(rows):
        rows += 1
    while rows > 1 and merged_wins(rows - 1):
        rows -= 1
    return rows


def _one_layer(stack: Core, x: Array, index: int) -> Array:
    match stack:
        case Tucker2():
            return _through_core(stack.u, stack.core[index, ...], stack.v, x)
        case LowRankTucker2():
            part = stack.slices[index]
            across = stack.down[part, :].mT, stack.up[:, part].mT
            return chain_product([x, stack.v, *across, stack.u.mT])
        case Tucker1(side="in"):
            return _through_rank(stack.own[index, ...], stack.shared, x)
        case Tucker1():
            return _through_rank(stack.shared, stack.own[index, ...], x)
        case LoRAStack():
            part = stack.slices[index]
            return _through_rank(stack.up[:, part], stack.down[part, :].mT, x)
        case Dense():
            return x @ stack.w[index, ...].mT
        case never:
            assert_never(never)


def _through_rank(left: Array, right: Array, x: Array) -> Array:
    """X (left rightᵀ)ᵀ, merged where there are so many rows that it takes fewer operations."""
    m, n, rank = left.shape[0], right.shape[0], left.shape[1]
    if rows_of(x) * (rank * (m + n) - m * n) > m * n * rank:
        return x @ (left @ right.mT).mT
    return (x @ right) @ left.mT


def _through_core(u: Array, core: Array, v: Array, x: Array) -> Array:
    """X V Gᵀ Uᵀ, in the cheapest order."""
    m, n, (r1, r2) = u.shape[0], v.shape[0], core.shape
    order = cheapest_order(rows_of(x), m, n, r1, r2)[0]
    if order == "chain":
        return ((x @ v) @ core.mT) @ u.mT
    if order == "fold left":
        return (x @ v) @ (u @ core).mT
    if order == "fold right":
        return (x @ (v @ core.mT)) @ u.mT
    if m * r2 * (r1 + n) <= n * r1 * (r2 + m):
        return x @ ((u @ core) @ v.mT).mT
    return x @ (u @ (core @ v.mT)).mT


def _all_layers(stack: Core, x: Array, *, xp: Namespace) -> Array:
    """(L, ..., m): what the layers share is computed once."""
    layers, m, n = stack.shape
    rows = rows_of(x)
    flat = xp.reshape(x, (rows, n))
    match stack:
        case Tucker2():
            r1, r2 = stack.ranks
            inside = flat @ stack.v  # (b, r2)
            if rows * r1 * (r2 + m) <= r2 * m * (r1 + rows):
                y = (inside @ stack.core.mT) @ stack.u.mT
            else:
                y = inside @ (stack.u @ stack.core).mT
        case LowRankTucker2():
            y = _all_low_rank_layers(stack, flat, xp=xp)
        case Tucker1(side="in"):
            y = (flat @ stack.shared) @ stack.own.mT
        case Tucker1():
            y = (flat @ stack.own) @ stack.shared.mT
        case LoRAStack():
            inside = flat @ stack.down.mT  # (b, R)
            y = xp.stack([inside[:, part] @ stack.up[:, part].mT for part in stack.slices])
        case Dense():
            y = flat @ stack.w.mT
        case never:
            assert_never(never)
    return xp.reshape(y, (layers, *x.shape[:-1], m))


def _all_low_rank_layers(stack: LowRankTucker2, x: Array, *, xp: Namespace) -> Array:
    """(L, b, m) for x (b, n)."""
    layers, m, _ = stack.shape
    rows, r1, total = x.shape[0], stack.shared_ranks[0], sum(stack.ranks)
    inside = chain_product([x, stack.v, stack.down.mT])  # (b, K)
    folds = m * total * (r1 + rows) < rows * r1 * (total + layers * m)
    up = stack.u @ stack.up if folds else stack.up
    y = xp.stack([inside[:, part] @ up[:, part].mT for part in stack.slices])
    return y if folds else y @ stack.u.mT


def _layer_a_row(stack: Core, x: Array, layer: Sequence[int] | Array, *, xp: Namespace) -> Array:
    """Row i of x through layer[i]."""
    chosen = layers_of_rows(stack, x, layer)
    m, n = stack.shape[1:]
    if (count := len(chosen)) == 0:
        return xp.zeros((0, *x.shape[1:-1], m), dtype=x.dtype, device=x.device)
    few = count <= GATHERED_ROWS_PER_LAYER * stack.shape[0]
    if isinstance(stack, Tucker2 | LowRankTucker2) and few:
        r1, r2 = stack.u.shape[1], stack.v.shape[1]
        # what all rows share is one product of two matrices, not a product for each row
        each = rows_of(x) // count
        inside = xp.reshape(xp.reshape(x, (count * each, n)) @ stack.v, (count, each, r2))
        if isinstance(stack, Tucker2):
            inside = _through_own_cores(stack.core, inside, chosen, xp=xp)
        else:
            inside = _through_low_rank_cores(stack, inside, chosen, xp=xp)
        y = xp.reshape(inside, (count * each, r1)) @ stack.u.mT
    else:
        y = _layer_by_layer(stack, xp.reshape(x, (count, rows_of(x) // count, n)), chosen, xp=xp)
    return xp.reshape(y, (*x.shape[:-1], m))


def _through_own_cores(core: Array, z: Array, chosen: np.ndarray, *, xp: Namespace) -> Array:
    """Row i of z (b, t, r2) times the transpose of core chosen[i]: (b, t, r1)."""
    size = int(core.shape[1] * core.shape[2]) * (8 if is_wide(core) else 4)
    on_host = str(core.device) == "cpu"
    step = max(1, GATHERED_BYTES // max(1, size)) if on_host else len(chosen)
    parts = [
        z[start : start + step, ...] @ taken(core, chosen[start : start + step], xp=xp).mT
        for start in range(0, len(chosen), step)
    ]
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)


def _through_low_rank_cores(
    stack: LowRankTucker2, z: Array, chosen: np.ndarray, *, xp: Namespace
) -> Array:
    """The same for cores up_l down_l: both gathered where all have one rank."""
    if len({*stack.ranks}) > 1:
        return _layer_by_layer(cores_as_lora(stack), z, chosen, xp=xp)
    layers, rank, (r1, r2) = stack.shape[0], stack.ranks[0], stack.shared_ranks
    down = xp.reshape(stack.down, (layers, rank, r2))
    up = xp.permute_dims(xp.reshape(stack.up, (r1, layers, rank)), (1, 0, 2))
    return _through_own_cores(up, _through_own_cores(down, z, chosen, xp=xp), chosen, xp=xp)


def _layer_by_layer(stack: Core, rows: Array, chosen: np.ndarray, *, xp: Namespace) -> Array:
    """Rows (b, t, n) brought together by layer, and put back in order."""
    order = np.argsort(chosen, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(chosen[order])) + 1)
    parts = [_one_layer(stack, taken(rows, own, xp=xp), int(chosen[own[0]])) for own in members]
    return taken(xp.concat(parts, axis=0), np.argsort(order, kind="stable"), xp=xp)


def taken(x: Array, index: np.ndarray, *, xp: Namespace) -> Array:
    """The rows of an array that a host index names."""
    return xp.take(x, xp.asarray(index, device=x.device), axis=0)


def layers_of_rows(stack: Stack, x: Array, layer: Sequence[int] | Array) -> np.ndarray:
    """A layer for each row of x (b, ..., n), checked: indices on the host, from 0 to L - 1."""
    if getattr(layer, "ndim", 1) != 1:
        raise FormatError("layer must be one index, or one for each row of x: whole numbers")
    count = len(layer)
    if x.ndim < 2 or x.shape[0] != count:
        raise FormatError(
            f"x must have one row for each of {count} layer indices; found shape {tuple(x.shape)}"
        )
    chosen = to_numpy(layer) if hasattr(layer, "dtype") else np.asarray(layer, dtype=np.int64)
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise FormatError("layer must be one index, or one for each row of x: whole numbers")
    layers = stack.shape[0]
    outside = chosen[(chosen < -layers) | (chosen >= layers)]
    if outside.size:
        raise FormatError(f"layer must lie in 0 … {layers - 1}; found {int(outside[0])}")
    return chosen.astype(np.int64) % layers
