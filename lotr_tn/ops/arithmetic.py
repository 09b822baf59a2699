"""Differences of stacks, exact, with ranks added."""

from lotr_tn._arrays import Array, Namespace, cast, dtype_name, identity, namespace_of, zeros
from lotr_tn.formats import Dense, LoRAStack, Stack, Tucker2
from lotr_tn.ops.layers import arrays_of, layer_product, require_same_shape

__all__ = ["subtract"]


def subtract(a: Stack, b: Stack) -> Stack:
    """A − b as a stack, exactly; ranks add.

    Two LoRA stacks give a LoRA stack of ranks r_l + s_l. A Tucker-2 on either side gives a
    Tucker-2 whose factors stand side by side and whose cores are block diagonal; a LoRA stack
    enters it with its whole summed rank. A dense stack on either side gives a dense one.

    Args:
        a: any stack (L, m, n).
        b: any stack of the same shape, library, dtype and device.

    Raises:
        FormatError: the shapes differ.
        BackendError: library, dtype or device differ.

    Cost: a copy of both; L·(r1 + s1)·(r2 + s2) for Tucker-2 cores. For the size of a difference
    `distance` needs no such copy.
    """
    require_same_shape(a, b)
    xp = namespace_of(**{f"a.{k}": v for k, v in arrays_of(a).items()}, **arrays_of(b))
    if isinstance(a, Dense) or isinstance(b, Dense):
        products = [
            layer_product(a, i, xp=xp) - layer_product(b, i, xp=xp) for i in range(a.shape[0])
        ]
        dtype = dtype_name(next(iter(arrays_of(a).values())))
        return Dense(cast(xp.stack(products), dtype, xp=xp))
    if isinstance(a, LoRAStack) and isinstance(b, LoRAStack):
        return _subtract_lora(a, b, xp=xp)
    return _subtract_tucker(as_tucker(a, xp=xp), as_tucker(b, xp=xp), xp=xp)


def _subtract_lora(a: LoRAStack, b: LoRAStack, *, xp: Namespace) -> LoRAStack:
    up, down = [], []
    for ours, theirs in zip(a.slices, b.slices, strict=True):
        up += [a.up[:, ours], -b.up[:, theirs]]
        down += [a.down[ours, :], b.down[theirs, :]]
    ranks = tuple(r + s for r, s in zip(a.ranks, b.ranks, strict=True))
    return LoRAStack(xp.concat(up, axis=1), xp.concat(down, axis=0), ranks)


def as_tucker(stack: LoRAStack | Tucker2, *, xp: Namespace) -> Tucker2:
    """The same updates as Tucker-2: a LoRA stack gets cores with an identity block each."""
    if isinstance(stack, Tucker2):
        return stack
    total = stack.up.shape[1]
    eye = cast(identity(total, stack.up, xp=xp), dtype_name(stack.up), xp=xp)
    empty = xp.zeros_like(eye)
    cores = [
        xp.concat([empty[:, : part.start], eye[:, part], empty[:, part.stop :]], axis=1)
        for part in stack.slices
    ]
    return Tucker2(stack.up, xp.stack(cores), xp.matrix_transpose(stack.down))


def _subtract_tucker(a: Tucker2, b: Tucker2, *, xp: Namespace) -> Tucker2:
    u, v = xp.concat([a.u, b.u], axis=1), xp.concat([a.v, b.v], axis=1)
    return Tucker2(u, _block_diagonal(a.core, -b.core, xp=xp), v)


def _block_diagonal(x: Array, y: Array, *, xp: Namespace) -> Array:
    layers, p, q = x.shape
    _, s, t = y.shape
    above = cast(zeros((layers, p, t), x, xp=xp), dtype_name(x), xp=xp)
    below = cast(zeros((layers, s, q), x, xp=xp), dtype_name(x), xp=xp)
    return xp.concat([xp.concat([x, above], axis=2), xp.concat([below, y], axis=2)], axis=1)
