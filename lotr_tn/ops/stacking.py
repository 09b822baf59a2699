"""Stacks cut into layers, and put together from them."""

from collections.abc import Sequence
from typing import assert_never

from lotr_tn._arguments import door
from lotr_tn._arrays import Namespace
from lotr_tn.errors import FormatError
from lotr_tn.formats import Core, Dense, Format, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.ops.arrays import Kind, common_namespace, with_arrays
from lotr_tn.ops.conversion import (
    as_dense,
    as_lora,
    as_low_rank_tucker2,
    as_tucker1,
    as_tucker2,
    in_shared_format,
)
from lotr_tn.ops.padding import on_common_sides, placed, side_by_side
from lotr_tn.ops.primitives import (
    by_rule_or_hub,
    joined,
    layered_field,
    lowered,
    measured_in_hub,
)


@door
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
    if len(layers) == 0:
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


@door
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
            return _concat_lora([as_lora(s) for s in cores], xp=xp)
        case Tucker1(side=side):
            alike = [as_tucker1(s, side) for s in cores]
            shared, starts = side_by_side([s.shared for s in alike], xp=xp)
            pairs = zip(alike, starts, strict=True)
            own = [placed(s.own, 2, at, int(shared.shape[1]), xp=xp) for s, at in pairs]
            return Tucker1(shared, xp.concat(own, axis=0), side)
        case LowRankTucker2():
            alike = [as_low_rank_tucker2(s) for s in cores]
            u, within, v = on_common_sides(alike, xp=xp)
            one = _concat_lora(within, xp=xp)
            return LowRankTucker2(u, one.up, one.down, v, one.ranks)
        case Tucker2():
            alike = [as_tucker2(s) for s in cores]
            u, starts = side_by_side([s.u for s in alike], xp=xp)
            v, ends = side_by_side([s.v for s in alike], xp=xp)
            r1, r2 = int(u.shape[1]), int(v.shape[1])
            wide = [
                placed(placed(s.core, 1, p, r1, xp=xp), 2, q, r2, xp=xp)
                for s, p, q in zip(alike, starts, ends, strict=True)
            ]
            return Tucker2(u, xp.concat(wide, axis=0), v)
        case never:
            assert_never(never)


def layer_in_hub(stack: Stack, index: int) -> tuple[Core, int]:
    """A core format that holds a layer, and where: of a registered format that layer alone."""
    if isinstance(stack, Format):
        return measured_in_hub([take_layers(stack, [index])])[0], 0
    return stack, index


def _concat_lora(stacks: Sequence[LoRAStack], *, xp: Namespace) -> LoRAStack:
    up = xp.concat([s.up for s in stacks], axis=1)
    down = xp.concat([s.down for s in stacks], axis=0)
    return LoRAStack(up, down, tuple(r for s in stacks for r in s.ranks))
