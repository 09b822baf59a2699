"""Exact conversions between formats: each core format into one form of all, and out of it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import assert_never

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, Namespace, at_least_float32, cast, dtype_name, identity, narrow
from lotr_tn.errors import OptionError
from lotr_tn.formats import (
    Core,
    Dense,
    Format,
    LoRAStack,
    LowRankTucker2,
    SharedSide,
    Stack,
    Tucker1,
    Tucker2,
)
from lotr_tn.ops.arrays import common_namespace
from lotr_tn.ops.dense import to_dense
from lotr_tn.ops.layers import cores_as_lora, each_core
from lotr_tn.ops.padding import placed
from lotr_tn.ops.primitives import CORE, lowered, primitives_of, registered_formats


@door
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
        to: the format: `LoRAStack`, `Tucker2`, `LowRankTucker2`, `Tucker1`, `Dense`, or one that
            is registered, which is reached from a `LoRAStack` and left through its hub.
        side: for `Tucker1`, which side is to be shared.

    Returns:
        A stack of that format; the stack itself where it has it already.

    Raises:
        OptionError: `to` is not a format, side is unknown, or a registered format cannot hold the
            updates.

    Warns:
        PerformanceWarning: a `Dense` of more than 2²⁸ entries.
    """
    if side not in ("in", "out"):
        raise OptionError(f'side must be "in" or "out"; found {side!r}')
    if type(stack) is to and (not isinstance(stack, Tucker1) or stack.side == side):
        return stack
    if to in registered_formats() and issubclass(to, Format):
        return _as_registered(stack, to)
    if to in _INTO:
        return _INTO[to](stack, side)
    *names, last = (kind.__name__ for kind in (*CORE, *registered_formats()))
    raise OptionError(f"to must be {', '.join(names)} or {last}; found {to!r}")


def shared_format(kinds: Collection[type[Core]]) -> type[Core]:
    """The format that holds stacks of several: their own if equal, else the most general."""
    if len(set(kinds)) == 1:
        return next(iter(kinds))
    return next((kind for kind in (Dense, LowRankTucker2, Tucker2) if kind in kinds), LoRAStack)


def in_shared_format(stacks: Sequence[Core]) -> Core:
    """The first of several stacks, in the format that holds them all."""
    # Tucker-1 stacks that share different sides become LoRA
    sides = {stack.side for stack in stacks if isinstance(stack, Tucker1)}
    kind = shared_format([type(stack) for stack in stacks]) if len(sides) < 2 else LoRAStack
    return stacks[0] if type(stacks[0]) is kind else _INTO[kind](stacks[0], "in")


def _as_registered(stack: Stack, to: type[Format]) -> Format:
    lora = as_lora(stack)
    found = primitives_of(to).of_lora(lora, xp=common_namespace(lora))
    if found is None:
        raise OptionError(
            f"a {to.__name__} cannot hold a {type(stack).__name__} of shape {stack.shape} exactly"
        )
    return found


@dataclass(frozen=True)
class _Whole:
    """What every core format is: ΔW_l = left core_l rightᵀ. A side of None is the identity."""

    left: Array | None  # (m, p)
    cores: Array | LoRAStack  # (L, p, q)
    right: Array | None  # (n, q)

    @property
    def flipped(self) -> "_Whole":
        """Every layer transposed."""
        cores = self.cores
        turned = _turned(cores) if isinstance(cores, LoRAStack) else cores.mT
        return _Whole(self.right, turned, self.left)

    def factored(self, *, xp: Namespace) -> LoRAStack:
        """The cores as up_l down_l; one gets an identity on the side that is given."""
        left, cores, right = self.left, self.cores, self.right
        if isinstance(cores, LoRAStack):
            return cores
        if left is None and right is not None:
            return _with_tiles(cores, _eye(cores.shape[2], cores, xp=xp), xp=xp)
        if right is None and left is not None:
            return _turned(self.flipped.factored(xp=xp))
        return _dense_as_lora(cores, xp=xp)


def _whole(stack: Core) -> _Whole:
    match stack:
        case LoRAStack():
            return _Whole(None, stack, None)
        case Tucker2():
            return _Whole(stack.u, stack.core, stack.v)
        case LowRankTucker2():
            return _Whole(stack.u, cores_as_lora(stack), stack.v)
        case Tucker1(side="in"):
            return _Whole(None, stack.own, stack.shared)
        case Tucker1():
            return _Whole(stack.shared, stack.own.mT, None)
        case Dense():
            return _Whole(None, stack.w, None)
        case never:
            assert_never(never)


def _with_sides(stack: Core, *, xp: Namespace) -> _Whole:
    """The same, in which a dense stack has identities for its sides."""
    whole = _whole(stack)
    if whole.left is None and whole.right is None and not isinstance(whole.cores, LoRAStack):
        left, right = (_eye(size, whole.cores, xp=xp) for size in stack.shape[1:])
        return _Whole(left, whole.cores, right)
    return whole


def as_lora(stack: Stack) -> LoRAStack:
    """A stack as LoRA factors; a dense one gets an identity on its shorter side."""
    stack = lowered(stack)
    if isinstance(stack, LoRAStack):
        return stack
    xp = common_namespace(stack)
    whole = _whole(stack)
    if isinstance(whole.cores, LoRAStack):
        up = _product(whole.left, whole.cores.up, xp=xp)
        down = _product(whole.cores.down, xp.matrix_transpose(whole.right), xp=xp)
        return LoRAStack(up, down, whole.cores.ranks)
    if whole.left is None and whole.right is None:
        return _dense_as_lora(whole.cores, xp=xp)
    p, q = whole.cores.shape[1:]
    turns = whole.right is None or (whole.left is not None and p < q)
    whole = whole.flipped if turns else whole
    own = whole.cores if whole.left is None else _product(whole.left, whole.cores, xp=xp)
    found = _with_tiles(own, xp.matrix_transpose(whole.right), xp=xp)
    return _turned(found) if turns else found


def as_dense(stack: Stack) -> Dense:
    """A stack as plain matrices."""
    return stack if isinstance(stack, Dense) else Dense(to_dense(stack))


def as_tucker2(stack: Stack) -> Tucker2:
    """A stack as Tucker-2; LoRA gets cores of 0 and 1, which select its own columns."""
    stack = lowered(stack)
    if isinstance(stack, Tucker2):
        return stack
    xp = common_namespace(stack)
    whole = _with_sides(stack, xp=xp)
    if whole.left is not None and whole.right is not None:
        if isinstance(stack, LowRankTucker2):
            dtype = dtype_name(stack.u)
            cores = [narrow(core, dtype, xp=xp) for core in each_core(stack, xp=xp)]
            return Tucker2(stack.u, xp.stack(cores), stack.v)
        return Tucker2(whole.left, whole.cores, whole.right)
    left, lora, right = whole.left, whole.factored(xp=xp), whole.right
    total, cores = sum(lora.ranks), []
    for part, rank in zip(lora.slices, lora.ranks, strict=True):
        if left is not None:
            core = lora.up[:, part]
        else:  # its own rows
            core = _eye(rank, lora.up, xp=xp) if right is None else lora.down[part, :]
            core = placed(core, 0, part.start, total, xp=xp)
        cores.append(core if right is not None else placed(core, 1, part.start, total, xp=xp))
    u = lora.up if left is None else left
    v = lora.down.mT if right is None else right
    return Tucker2(u, xp.stack(cores), v)


def as_low_rank_tucker2(stack: Stack) -> LowRankTucker2:
    """A stack as a low-rank Tucker-2, bit for bit: what it has no factor for is an identity."""
    stack = lowered(stack)
    if isinstance(stack, LowRankTucker2):
        return stack
    xp = common_namespace(stack)
    whole = _with_sides(stack, xp=xp)
    left, cores, right = whole.left, whole.factored(xp=xp), whole.right
    eye = _eye(sum(cores.ranks), cores.up, xp=xp) if left is None or right is None else None
    u, up = (cores.up, eye) if left is None else (left, cores.up)
    v, down = (cores.down.mT, eye) if right is None else (right, cores.down)
    return LowRankTucker2(u, up, down, v, cores.ranks)


def as_tucker1(stack: Stack, side: SharedSide) -> Tucker1:
    """A stack as Tucker-1, with one factor shared on the side named."""
    stack = lowered(stack)
    if isinstance(stack, Tucker1):
        if stack.side == side:
            return stack
        stack = as_lora(stack)
    xp = common_namespace(stack)
    whole = _whole(stack) if side == "in" else _whole(stack).flipped
    left, cores, right = whole.left, whole.cores, whole.right
    if not isinstance(cores, LoRAStack):
        own = cores if left is None else _product(left, cores, xp=xp)
        shared = _eye(cores.shape[2], cores, xp=xp) if right is None else right
        return Tucker1(shared, own, side)
    total = int(cores.up.shape[1])
    if right is None:
        parts = [placed(cores.up[:, part], 1, part.start, total, xp=xp) for part in cores.slices]
        return Tucker1(cores.down.mT, xp.stack(parts), side)
    wide, down = (at_least_float32(x, xp=xp) for x in (left, cores.down))
    own, dtype = wide @ at_least_float32(cores.up, xp=xp), dtype_name(right)
    parts = [narrow(own[:, part] @ down[part, :], dtype, xp=xp) for part in cores.slices]
    return Tucker1(right, xp.stack(parts), side)


def _product(x: Array, y: Array, *, xp: Namespace) -> Array:
    """The product x @ y in float32 or float64, rounded once to their dtype."""
    wide = at_least_float32(x, xp=xp) @ at_least_float32(y, xp=xp)
    return narrow(wide, dtype_name(x), xp=xp)


def _eye(size: int, like: Array, *, xp: Namespace) -> Array:
    """The identity in the dtype of an array."""
    return cast(identity(size, like, xp=xp), dtype_name(like), xp=xp)


def _turned(stack: LoRAStack) -> LoRAStack:
    """Every layer transposed."""
    return LoRAStack(stack.down.mT, stack.up.mT, stack.ranks)


def _with_tiles(own: Array, across: Array, *, xp: Namespace) -> LoRAStack:
    """Own factors (L, p, r), each times the same (r, n)."""
    layers, p, r = own.shape
    up = xp.reshape(xp.permute_dims(own, (1, 0, 2)), (p, layers * r))  # layer beside layer
    return LoRAStack(up, xp.concat([across] * layers, axis=0), (r,) * layers)


def _dense_as_lora(w: Array, *, xp: Namespace) -> LoRAStack:
    """Matrices (L, m, n), with an identity on their shorter side."""
    m, n = w.shape[1:]
    eye = _eye(min(m, n), w, xp=xp)
    return _turned(_with_tiles(w.mT, eye, xp=xp)) if m < n else _with_tiles(w, eye, xp=xp)


_INTO: dict[type[Stack], Callable[[Stack, SharedSide], Core]] = {
    LoRAStack: lambda stack, _: as_lora(stack),
    Tucker2: lambda stack, _: as_tucker2(stack),
    LowRankTucker2: lambda stack, _: as_low_rank_tucker2(stack),
    Tucker1: as_tucker1,
    Dense: lambda stack, _: as_dense(stack),
}
"""Into each core format."""
