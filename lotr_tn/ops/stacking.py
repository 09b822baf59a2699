"""Stacks cut into layers, and put together from them."""

from collections.abc import Sequence
from typing import assert_never

from lotr_tn._arrays import Array, Namespace
from lotr_tn.errors import FormatError
from lotr_tn.formats import Dense, Format, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.ops.arrays import Kind, common_namespace, with_arrays
from lotr_tn.ops.conversion import (
    as_dense,
    as_lora,
    as_low_rank_tucker2,
    as_tucker1,
    as_tucker2,
    in_shared_format,
)
from lotr_tn.ops.padding import zero_blocks
from lotr_tn.ops.primitives import by_rule_or_hub, joined, layered_field, lowered


def take_layers(stack: Kind, layers: Sequence[int]) -> Kind:
    """The stack of the layers named, in that order; layers may repeat.

    Args:
        stack: any stack of L updates.
        layers: indices from -L to L - 1, at least one.

    Returns:
        A stack of the same format; shared factors are shared, not copied.

    Raises:
        FormatError: no index, or one out of range.

    Cost: a copy of the chosen layers' own arrays.
    """
    count = stack.shape[0]
    if not layers:
        raise FormatError("layers must name at least one layer; found none")
    for layer in layers:
        if not -count <= layer < count:
            raise FormatError(f"layers must lie in 0 … {count - 1}; found {layer}")
    chosen = [layer % count for layer in layers]
    xp = common_namespace(stack)
    if isinstance(stack, Format):
        if (name := layered_field("take_layers", stack)) is None:
            return by_rule_or_hub(take_layers, stack, layers)
        x = getattr(stack, name)
        return with_arrays(stack, **{name: xp.stack([x[i, ...] for i in chosen])})
    match stack:
        case Tucker2():
            return with_arrays(stack, core=xp.stack([stack.core[i, ...] for i in chosen]))
        case Tucker1():
            return with_arrays(stack, own=xp.stack([stack.own[i, ...] for i in chosen]))
        case Dense():
            return with_arrays(stack, w=xp.stack([stack.w[i, ...] for i in chosen]))
        case LoRAStack() | LowRankTucker2():
            slices = stack.slices
            up = xp.concat([stack.up[:, slices[i]] for i in chosen], axis=1)
            down = xp.concat([stack.down[slices[i], :] for i in chosen], axis=0)
            ranks = tuple(stack.ranks[i] for i in chosen)
            return with_arrays(stack, up=up, down=down, ranks=ranks)
        case never:
            assert_never(never)


def concat_layers(stacks: Sequence[Stack]) -> Stack:
    """One stack of the layers of all, in order.

    Stacks of one format stay in it; mixtures become what `add` would make of them. Factors that
    are the same arrays in all stacks stay shared; others stand side by side, with cores (or own
    factors) filled up by zeros, so that ranks add.

    Args:
        stacks: at least one; all of one matrix size (m, n), library, dtype and device.

    Raises:
        FormatError: no stack, or matrix sizes that differ.
        BackendError: library, dtype or device differ.

    Cost: a copy of all; for Tucker-2 with N different factors N² times the cores, for low-rank
    cores N times.
    """
    if not stacks:
        raise FormatError("stacks must hold at least one stack; found none")
    first = stacks[0].shape[1:]
    for stack in stacks:
        if stack.shape[1:] != first:
            raise FormatError(
                f"all stacks must have one matrix size (m, n); found {first} and {stack.shape[1:]}"
            )
    xp = common_namespace(*stacks)
    if (own := joined(stacks, "layers")) is not None:
        return own
    cores = [lowered(stack) for stack in stacks]
    match in_shared_format(cores):
        case Dense():
            return Dense(xp.concat([as_dense(s).w for s in cores], axis=0))
        case LoRAStack():
            alike = [as_lora(s) for s in cores]
            up = xp.concat([s.up for s in alike], axis=1)
            down = xp.concat([s.down for s in alike], axis=0)
            return LoRAStack(up, down, tuple(r for s in alike for r in s.ranks))
        case Tucker1(side=side):
            alike = [as_tucker1(s, side) for s in cores]
            shared, starts = _side_by_side([s.shared for s in alike], xp=xp)
            size = int(shared.shape[1])
            own = [
                _placed(s.own, (None, (at, size)), xp=xp)
                for s, at in zip(alike, starts, strict=True)
            ]
            return Tucker1(shared, xp.concat(own, axis=0), side)
        case LowRankTucker2():
            return _concat_low_rank([as_low_rank_tucker2(s) for s in cores], xp=xp)
        case Tucker2():
            alike = [as_tucker2(s) for s in cores]
            u, starts = _side_by_side([s.u for s in alike], xp=xp)
            v, ends = _side_by_side([s.v for s in alike], xp=xp)
            sizes = int(u.shape[1]), int(v.shape[1])
            placed = [
                _placed(s.core, ((p, sizes[0]), (q, sizes[1])), xp=xp)
                for s, p, q in zip(alike, starts, ends, strict=True)
            ]
            return Tucker2(u, xp.concat(placed, axis=0), v)
        case never:
            assert_never(never)


def _concat_low_rank(stacks: Sequence[LowRankTucker2], *, xp: Namespace) -> LowRankTucker2:
    u, starts = _side_by_side([s.u for s in stacks], xp=xp)
    v, ends = _side_by_side([s.v for s in stacks], xp=xp)
    r1, r2 = int(u.shape[1]), int(v.shape[1])
    up = [
        zero_blocks(s.up, 0, p, r1 - p - s.shared_ranks[0], xp=xp)
        for s, p in zip(stacks, starts, strict=True)
    ]
    down = [
        zero_blocks(s.down, 1, q, r2 - q - s.shared_ranks[1], xp=xp)
        for s, q in zip(stacks, ends, strict=True)
    ]
    ranks = tuple(k for s in stacks for k in s.ranks)
    return LowRankTucker2(u, xp.concat(up, axis=1), xp.concat(down, axis=0), v, ranks)


def _side_by_side(factors: list[Array], *, xp: Namespace) -> tuple[Array, list[int]]:
    """Factors as columns of one, and where each begins; the same array stands there once."""
    if all(factor is factors[0] for factor in factors):
        return factors[0], [0] * len(factors)
    starts, total = [], 0
    for factor in factors:
        starts.append(total)
        total += int(factor.shape[1])
    return xp.concat(factors, axis=1), starts


def _placed(
    core: Array, places: tuple[tuple[int, int] | None, tuple[int, int] | None], *, xp: Namespace
) -> Array:
    """(L, p, q) with zeros around it: a place is where an axis begins, and its new size."""
    for axis, place in zip((1, 2), places, strict=True):
        if place is not None:
            start, size = place
            core = zero_blocks(core, axis, start, size - start - int(core.shape[axis]), xp=xp)
    return core
