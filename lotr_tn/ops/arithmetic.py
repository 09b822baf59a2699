"""Sums, differences and multiples of stacks, exact, with ranks added."""

from collections.abc import Sequence
from typing import assert_never

import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, Namespace, at_least_float32, dtype_name, narrow
from lotr_tn.errors import FormatError
from lotr_tn.formats import Dense, Format, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.ops.arrays import Kind, common_namespace, with_arrays
from lotr_tn.ops.checks import require_same_shape
from lotr_tn.ops.conversion import (
    as_dense,
    as_lora,
    as_low_rank_tucker2,
    as_tucker1,
    as_tucker2,
    in_shared_format,
)
from lotr_tn.ops.padding import block_diagonal, on_common_sides
from lotr_tn.ops.primitives import by_rule_or_hub, joined, layered_field, lowered, primitives_of


@door
def add(a: Stack, b: Stack) -> Stack:
    """A + b as a stack, exactly; ranks add.

    Two stacks of one format give that format: LoRA of ranks r_l + s_l, Tucker-1 and Tucker-2 with
    factors side by side (factors that are the same arrays stay one, and then the cores are
    added). In mixtures a dense stack makes the result dense, else a low-rank Tucker-2 makes it
    one, which holds every other format as it is; else a Tucker-2 makes it Tucker-2 (where a LoRA
    enters with its summed rank), else it is a LoRA. A registered format stays where both have it
    and it can hold their sum; else each enters as what it is in its hub.

    Args:
        a: any stack (L, m, n).
        b: any stack of the same shape, library, dtype and device.

    Raises:
        FormatError: the shapes differ.
        BackendError: library, dtype or device differ.

    Cost: a copy of both; L·(r1 + s1)·(r2 + s2) for Tucker-2 cores, and (K + J)·(r1 + s1 + r2 + s2)
    for low-rank ones of ranks that sum to K and J. `round` brings ranks back.
    """
    require_same_shape(a, b)
    xp = common_namespace(a, b)
    if (own := joined((a, b), "sum")) is not None:
        return own
    first, second = lowered(a), lowered(b)
    match in_shared_format((first, second)):
        case Dense() as one:
            return Dense(one.w + as_dense(second).w)
        case LoRAStack() as one:
            return _add_lora(one, as_lora(second), xp=xp)
        case Tucker1() as one:
            two = as_tucker1(second, one.side)
            if one.shared is two.shared:
                return Tucker1(one.shared, one.own + two.own, one.side)
            shared = xp.concat([one.shared, two.shared], axis=1)
            return Tucker1(shared, xp.concat([one.own, two.own], axis=2), one.side)
        case LowRankTucker2() as one:
            u, cores, v = on_common_sides((one, as_low_rank_tucker2(second)), xp=xp)
            both = _add_lora(*cores, xp=xp)
            return LowRankTucker2(u, both.up, both.down, v, both.ranks)
        case Tucker2() as one:
            return _add_tucker2(one, as_tucker2(second), xp=xp)
        case never:
            assert_never(never)


@door
def subtract(a: Stack, b: Stack) -> Stack:
    """A − b as a stack, exactly; ranks add.

    Formats, arguments, errors and cost as for `add`. For the size of a difference `distance`
    needs no such copy.
    """
    return add(a, scale(b, -1.0))


@door
def scale(stack: Kind, factor: float | Sequence[float] | Array) -> Kind:
    """The stack times a number, or each layer times a number of its own.

    Args:
        stack: any stack (L, m, n).
        factor: a number, or L of them: a sequence, or an array (L,) of the stack's library.

    Returns:
        A stack of the same format and dtype; the factor goes into `up`, `core` or `own`, rounded
        once.

    Raises:
        FormatError: not one factor, and not L; or a result too large for float16.

    Cost: a copy of the arrays that carry the factor.
    """
    xp = common_namespace(stack)
    factors = _factors(stack, factor, xp=xp)
    if isinstance(stack, Format):
        if (name := layered_field("scale", stack)) is None:
            return by_rule_or_hub(scale, stack, factor)
        return with_arrays(stack, **{name: _scaled(getattr(stack, name), factors, xp=xp)})
    match stack:
        case LoRAStack() | LowRankTucker2():
            wide = at_least_float32(stack.up, xp=xp)
            with np.errstate(over="ignore", invalid="ignore"):
                parts = [wide[:, part] * f for part, f in zip(stack.slices, factors, strict=True)]
            up = narrow(xp.concat(parts, axis=1), dtype_name(stack.up), xp=xp)
            return with_arrays(stack, up=up)
        case Tucker2():
            return with_arrays(stack, core=_scaled(stack.core, factors, xp=xp))
        case Tucker1():
            return with_arrays(stack, own=_scaled(stack.own, factors, xp=xp))
        case Dense():
            return with_arrays(stack, w=_scaled(stack.w, factors, xp=xp))
        case never:
            assert_never(never)


@door
def transpose(stack: Kind) -> Kind:
    """Every layer transposed: ΔW_lᵀ, of shape (L, n, m).

    Cost: none but views.
    """
    xp = common_namespace(stack)
    if isinstance(stack, Format):
        return primitives_of(type(stack)).transpose(stack, xp=xp)
    match stack:
        case LoRAStack():
            return with_arrays(stack, up=stack.down.mT, down=stack.up.mT)
        case Tucker2():
            return with_arrays(stack, u=stack.v, core=stack.core.mT, v=stack.u)
        case LowRankTucker2():
            up, down = stack.down.mT, stack.up.mT
            return with_arrays(stack, u=stack.v, up=up, down=down, v=stack.u)
        case Tucker1():
            return with_arrays(stack, side="out" if stack.side == "in" else "in")
        case Dense():
            return with_arrays(stack, w=stack.w.mT)
        case never:
            assert_never(never)


def _factors(stack: Stack, factor: float | Sequence[float] | Array, *, xp: Namespace) -> list:
    """One factor a layer; entries of arrays stay arrays, so that derivatives flow."""
    layers = stack.shape[0]
    if getattr(factor, "ndim", None) == 0 or isinstance(factor, float | int):
        return [factor] * layers
    found = len(factor)  # pyright: ignore[reportArgumentType]
    if found != layers or getattr(factor, "ndim", 1) != 1:
        raise FormatError(
            f"factor must be one number or one for each of {layers} layers; found {found}"
        )
    return [factor[index] for index in range(layers)]  # pyright: ignore[reportIndexIssue]


def _scaled(x: Array, factors: list, *, xp: Namespace) -> Array:
    wide = at_least_float32(x, xp=xp)
    with np.errstate(over="ignore", invalid="ignore"):
        parts = [wide[index, ...] * factor for index, factor in enumerate(factors)]
    return narrow(xp.stack(parts), dtype_name(x), xp=xp)


def _add_lora(a: LoRAStack, b: LoRAStack, *, xp: Namespace) -> LoRAStack:
    up, down = [], []
    for ours, theirs in zip(a.slices, b.slices, strict=True):
        up += [a.up[:, ours], b.up[:, theirs]]
        down += [a.down[ours, :], b.down[theirs, :]]
    ranks = tuple(r + s for r, s in zip(a.ranks, b.ranks, strict=True))
    return LoRAStack(xp.concat(up, axis=1), xp.concat(down, axis=0), ranks)


def _add_tucker2(a: Tucker2, b: Tucker2, *, xp: Namespace) -> Tucker2:
    if a.u is b.u and a.v is b.v:
        return Tucker2(a.u, a.core + b.core, a.v)
    if a.u is b.u:
        return Tucker2(a.u, xp.concat([a.core, b.core], axis=2), xp.concat([a.v, b.v], axis=1))
    if a.v is b.v:
        return Tucker2(xp.concat([a.u, b.u], axis=1), xp.concat([a.core, b.core], axis=1), a.v)
    u, v = xp.concat([a.u, b.u], axis=1), xp.concat([a.v, b.v], axis=1)
    return Tucker2(u, block_diagonal(a.core, b.core, xp=xp), v)
