"""Exact conversions between formats."""

from collections.abc import Sequence
from typing import Any

from lotr_tn._arrays import Array, Namespace, at_least_float32, cast, dtype_name, identity, narrow
from lotr_tn.errors import OptionError
from lotr_tn.formats import (
    Dense,
    LoRAStack,
    LowRankTucker2,
    SharedSide,
    Stack,
    Tucker1,
    Tucker2,
)
from lotr_tn.ops.dense import to_dense
from lotr_tn.ops.layers import common_namespace, core_of, cores_as_lora
from lotr_tn.ops.padding import zero_blocks

__all__ = [
    "as_lora",
    "as_low_rank_tucker2",
    "as_tucker1",
    "as_tucker2",
    "convert",
    "in_one_format",
]


def convert(stack: Stack, to: type[Stack], *, side: SharedSide = "in") -> Stack:
    """The same updates in another format, without loss.

    Where the entries are only moved, the updates are the same bit for bit: between `LoRAStack` and
    `Tucker1`, into `LowRankTucker2` from any format, into `Tucker2` but from `LowRankTucker2`, and
    from `Dense`. Where a core is multiplied into a factor, they are the same to the rounding of the
    dtype: else from `Tucker2` and `LowRankTucker2`, and into `Dense`. No conversion cuts ranks;
    that is `round`, `tucker1` and `hooi`.

    The ranks that come out: LoRA of a `Tucker2` has min(r1, r2) a layer, of a `Tucker1` r, of a
    `Dense` min(m, n), of a `LowRankTucker2` its k_l. `Tucker2` of a LoRA has R = Σ r_l on both
    sides, with cores of 0 and 1; so has a `LowRankTucker2`, of ranks r_l, with identities. Of a
    `Tucker2` that one has ranks min(r1, r2). A `Tucker1` of a LoRA shares all R directions, so its
    own factors take L·m·R numbers.

    Args:
        stack: any stack.
        to: the format: `LoRAStack`, `Tucker2`, `LowRankTucker2`, `Tucker1` or `Dense`.
        side: for `Tucker1`, which side is to be shared.

    Returns:
        A stack of that format; the stack itself where it has it already.

    Raises:
        OptionError: `to` is not a format, or side is unknown.

    Warns:
        PerformanceWarning: a `Dense` of more than 2²⁸ entries.
    """
    if side not in ("in", "out"):
        raise OptionError(f'side must be "in" or "out"; found {side!r}')
    if type(stack) is to and (not isinstance(stack, Tucker1) or stack.side == side):
        return stack
    if to is LoRAStack:
        return as_lora(stack)
    if to is Tucker2:
        return as_tucker2(stack)
    if to is LowRankTucker2:
        return as_low_rank_tucker2(stack)
    if to is Tucker1:
        return as_tucker1(stack, side)
    if to is Dense:
        return Dense(to_dense(stack))
    raise OptionError(
        f"to must be LoRAStack, Tucker2, LowRankTucker2, Tucker1 or Dense; found {to!r}"
    )


def in_one_format(*stacks: Stack) -> list[Any]:
    """Stacks of mixed formats in one that holds them all.

    Equal formats stay. With a dense stack all become dense; with a low-rank Tucker-2, that, which
    rounds no other format; with a Tucker-2, Tucker-2; LoRA and Tucker-1, or Tucker-1 of both
    sides, become LoRA.
    """
    kinds = {(type(s), s.side if isinstance(s, Tucker1) else None) for s in stacks}
    if len(kinds) == 1:
        return list(stacks)
    formats = {kind for kind, _ in kinds}
    if Dense in formats:
        return [convert(s, Dense) for s in stacks]
    if LowRankTucker2 in formats:
        return [as_low_rank_tucker2(s) for s in stacks]
    return [as_tucker2(s) if Tucker2 in formats else as_lora(s) for s in stacks]


def as_lora(stack: Stack) -> LoRAStack:
    """A stack as LoRA factors; a dense one gets an identity on its shorter side.

    Cost: a copy; for Tucker-2 min(r1, r2)·(m + n)·L numbers, for a low-rank one K·(m + n).
    """
    xp = common_namespace(stack)
    match stack:
        case LoRAStack():
            return stack
        case Tucker1(side="in"):
            up, down = _beside(stack.own, xp=xp), xp.matrix_transpose(stack.shared)
            return LoRAStack(up, xp.concat([down] * stack.shape[0]), (stack.rank,) * stack.shape[0])
        case Tucker1():
            up = xp.concat([stack.shared] * stack.shape[0], axis=1)
            down = xp.matrix_transpose(_beside(stack.own, xp=xp))
            return LoRAStack(up, down, (stack.rank,) * stack.shape[0])
        case Tucker2():
            return as_lora(as_tucker1(stack, "in" if stack.ranks[1] <= stack.ranks[0] else "out"))
        case LowRankTucker2():
            u, up, down, v = (
                at_least_float32(x, xp=xp) for x in (stack.u, stack.up, stack.down, stack.v)
            )
            dtype = dtype_name(stack.u)
            outer = narrow(u @ up, dtype, xp=xp)
            return LoRAStack(outer, narrow(down @ v.mT, dtype, xp=xp), stack.ranks)
        case Dense():
            return _dense_as_lora(stack, xp=xp)


def as_tucker2(stack: Stack) -> Tucker2:
    """A stack as Tucker-2; LoRA gets cores of 0 and 1, which select its own columns."""
    xp = common_namespace(stack)
    match stack:
        case Tucker2():
            return stack
        case LoRAStack():
            cores = _selectors(stack.ranks, stack.up, xp=xp)
            return Tucker2(stack.up, cores, xp.matrix_transpose(stack.down))
        case Tucker1():
            layers, rank = stack.shape[0], stack.rank
            wide = _selectors((rank,) * layers, stack.own, xp=xp)  # (L, L·r, L·r), diagonal blocks
            eye = cast(identity(rank, stack.own, xp=xp), dtype_name(stack.own), xp=xp)
            core = wide @ xp.concat([eye] * layers)  # each layer's block on its own rows
            own = _beside(stack.own, xp=xp)
            if stack.side == "in":
                return Tucker2(own, core, stack.shared)
            return Tucker2(stack.shared, xp.matrix_transpose(core), own)
        case LowRankTucker2():
            dtype = dtype_name(stack.u)
            cores = [narrow(core_of(stack, i, xp=xp), dtype, xp=xp) for i in range(stack.shape[0])]
            return Tucker2(stack.u, xp.stack(cores), stack.v)
        case Dense():
            eyes = [
                cast(identity(size, stack.w, xp=xp), dtype_name(stack.w), xp=xp)
                for size in stack.shape[1:]
            ]
            return Tucker2(eyes[0], stack.w, eyes[1])


def as_low_rank_tucker2(stack: Stack) -> LowRankTucker2:
    """A stack as a low-rank Tucker-2, bit for bit.

    A LoRA keeps its own factors as the shared ones, between identities. Cores of a Tucker-2, or
    matrices of a dense stack, get an identity on their shorter side.

    Cost: a copy; R² numbers for a LoRA of R = Σ r_l.
    """
    xp = common_namespace(stack)
    match stack:
        case LowRankTucker2():
            return stack
        case LoRAStack():
            total = sum(stack.ranks)
            eye = cast(identity(total, stack.up, xp=xp), dtype_name(stack.up), xp=xp)
            return LowRankTucker2(stack.up, eye, eye, xp.matrix_transpose(stack.down), stack.ranks)
        case Tucker2():
            cores = _dense_as_lora(Dense(stack.core), xp=xp)
            return LowRankTucker2(stack.u, cores.up, cores.down, stack.v, cores.ranks)
        case Tucker1():
            layers, rank = stack.shape[0], stack.rank
            chosen, eye = (
                cast(identity(size, stack.own, xp=xp), dtype_name(stack.own), xp=xp)
                for size in (layers * rank, rank)
            )
            tiles, own, ranks = (
                xp.concat([eye] * layers),
                _beside(stack.own, xp=xp),
                (rank,) * layers,
            )
            if stack.side == "in":
                return LowRankTucker2(own, chosen, tiles, stack.shared, ranks)
            beside = xp.matrix_transpose(tiles)
            return LowRankTucker2(stack.shared, beside, chosen, own, ranks)
        case Dense():
            return as_low_rank_tucker2(as_tucker2(stack))


def as_tucker1(stack: Stack, side: SharedSide) -> Tucker1:
    """A stack as Tucker-1, with one factor shared on the side named."""
    xp = common_namespace(stack)
    match stack:
        case Tucker1() if stack.side == side:
            return stack
        case Tucker2():
            dtype, core = dtype_name(stack.u), at_least_float32(stack.core, xp=xp)
            if side == "in":
                own = at_least_float32(stack.u, xp=xp) @ core
                return Tucker1(stack.v, narrow(own, dtype, xp=xp), "in")
            own = at_least_float32(stack.v, xp=xp) @ xp.matrix_transpose(core)
            return Tucker1(stack.u, narrow(own, dtype, xp=xp), "out")
        case LowRankTucker2():
            return _low_rank_as_tucker1(stack, side, xp=xp)
        case Dense():
            eye = identity(stack.shape[2 if side == "in" else 1], stack.w, xp=xp)
            own = stack.w if side == "in" else xp.matrix_transpose(stack.w)
            return Tucker1(cast(eye, dtype_name(stack.w), xp=xp), own, side)
        case _:
            lora = as_lora(stack)
            shared = xp.matrix_transpose(lora.down) if side == "in" else lora.up
            factor = lora.up if side == "in" else xp.matrix_transpose(lora.down)
            total = int(factor.shape[1])
            own = [
                zero_blocks(factor[:, part], 1, part.start, total - part.stop, xp=xp)
                for part in lora.slices
            ]
            return Tucker1(shared, xp.stack(own), side)


def _low_rank_as_tucker1(stack: LowRankTucker2, side: SharedSide, *, xp: Namespace) -> Tucker1:
    """U (up_l down_l) beside V, or V (up_l down_l)ᵀ beside U."""
    cores = cores_as_lora(stack)
    wide = at_least_float32(stack.u if side == "in" else stack.v, xp=xp)
    up, down = (at_least_float32(x, xp=xp) for x in (cores.up, cores.down))
    if side == "out":
        up, down = xp.matrix_transpose(down), xp.matrix_transpose(up)
    dtype, own = dtype_name(stack.u), wide @ up
    parts = [narrow(own[:, part] @ down[part, :], dtype, xp=xp) for part in cores.slices]
    return Tucker1(stack.v if side == "in" else stack.u, xp.stack(parts), side)


def _beside(own: Array, *, xp: Namespace) -> Array:
    """(L, p, r) as one matrix (p, L·r), layer beside layer."""
    layers, p, r = own.shape
    return xp.reshape(xp.permute_dims(own, (1, 0, 2)), (p, layers * r))


def _selectors(ranks: Sequence[int], like: Array, *, xp: Namespace) -> Array:
    """(L, R, R): for each layer the identity on its own ranks, and zero elsewhere."""
    total = sum(ranks)
    eye = cast(identity(total, like, xp=xp), dtype_name(like), xp=xp)
    cores, start = [], 0
    for rank in ranks:
        own = eye[:, start : start + rank]
        cores.append(zero_blocks(own, 1, start, total - start - rank, xp=xp))
        start += rank
    return xp.stack(cores)


def _dense_as_lora(stack: Dense, *, xp: Namespace) -> LoRAStack:
    layers, m, n = stack.shape
    eye = cast(identity(min(m, n), stack.w, xp=xp), dtype_name(stack.w), xp=xp)
    tiles = [eye] * layers
    if m < n:
        down = xp.reshape(stack.w, (layers * m, n))
        return LoRAStack(xp.concat(tiles, axis=1), down, (m,) * layers)
    return LoRAStack(_beside(stack.w, xp=xp), xp.concat(tiles, axis=0), (n,) * layers)
