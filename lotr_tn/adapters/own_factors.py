"""The LoRA factors of every update of a group, each in its own rank, scale inside."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.adapters.adapter import Compressed, LoRAGroup, LoRAModule, LoTRGroup, Target
from lotr_tn.formats import LoRAStack, Tucker2
from lotr_tn.linalg import smallest_rank, svd_of_product
from lotr_tn.linalg.factor import svd
from lotr_tn.linalg.ranks import tail_energies
from lotr_tn.ops.arrays import storage_dtype
from lotr_tn.ops.frame import Frame, frame_of
from lotr_tn.ops.layers import layer_of, two_factors
from lotr_tn.ops.primitives import measured_in_hub

ORTHOGONAL = 1e-3
"""Largest cosine of columns that count as orthogonal: an SVD would turn them by rounding. Whatever
it is, they are exported without loss; only how far each is from the least rank depends on it."""


def own_factors(group: LoTRGroup | LoRAGroup) -> list[LoRAModule]:
    """Each module of a group with LoRA factors of its own, in the rank that its update has."""
    if isinstance(group, LoRAGroup):
        return [LoRAModule(module.target, *module.factors()) for module in group.modules]
    each = RULES.get(type(group.stack), _of_layers)
    return each(group.targets, group.stack)


def _of_tucker(targets: Sequence[Target], stack: Tucker2) -> list[LoRAModule]:
    """Every update by the SVD of its core, between orthonormal bases that are found once."""
    frame, roundoff = _frame(stack), UNIT_ROUNDOFF[stack.core.dtype.name]
    return [_module(target, stack, i, frame, roundoff) for i, target in enumerate(targets)]


def _frame(stack: Tucker2) -> Frame:
    """The frame of U and V; these themselves where their columns are orthonormal already."""
    # inner products of columns are right to 1e-6: enough to see whether they are orthogonal
    narrow = [x.astype(np.float32) for x in (stack.u, stack.v)]
    with np.errstate(over="ignore", invalid="ignore"):  # far from orthonormal, in any case
        orthonormal = all(_is_identity(x.T @ x) for x in narrow)
    if not orthonormal:
        return frame_of(stack.u, stack.v, xp=xp)
    u, v = stack.u.astype(np.float64), stack.v.astype(np.float64)
    return Frame(u, np.eye(stack.ranks[0]), v, np.eye(stack.ranks[1]))


def _is_identity(gram: np.ndarray) -> bool:
    return bool((np.abs(gram - np.eye(len(gram))) <= ORTHOGONAL).all())


def _of_lora(targets: Sequence[Target], stack: LoRAStack) -> list[LoRAModule]:
    """A LoRA's factors stay as they are."""
    return [
        LoRAModule(replace(target, rank=left.shape[1]), left, right.T)
        if left.shape[1]
        else no_update(target, left.shape[0], right.shape[0])
        for target, (left, right) in zip(targets, _factors(stack), strict=True)
    ]


def _of_layers(targets: Sequence[Target], stack: Compressed) -> list[LoRAModule]:
    """Every update of any format by the SVD of its factors."""
    roundoff = UNIT_ROUNDOFF[storage_dtype(stack)]
    pairs = zip(targets, _factors(stack), strict=True)
    return [_of_factors(target, left, right, roundoff) for target, (left, right) in pairs]


def _factors(stack: Compressed) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(m, k) and (n, k) of each layer, in float64."""
    (held,) = measured_in_hub([stack])  # once, and not for each layer
    for index in range(held.shape[0]):
        yield two_factors(layer_of(held, index, xp=xp), xp=xp)


def _of_factors(target: Target, left: np.ndarray, right: np.ndarray, roundoff: float) -> LoRAModule:
    if left.shape[1] == 0:
        return no_update(target, left.shape[0], right.shape[0])
    if (found := _turned_already(target, left, right, roundoff)) is not None:
        return found
    u, s, vt = svd_of_product(left, right.T)
    rank = _rank(s, target, roundoff)
    root = np.sqrt(s[:rank])
    return LoRAModule(replace(target, rank=rank), u[:, :rank] * root, root[:, None] * vt[:rank])


def _turned_already(
    target: Target, left: np.ndarray, right: np.ndarray, roundoff: float
) -> LoRAModule | None:
    """A module whose factors (m, k) and (n, k) have orthogonal columns, as their SVD's would be."""
    grams = left.T @ left, right.T @ right
    squares = [np.diagonal(gram) for gram in grams]
    if any((square <= 0).any() for square in squares):
        return None
    lengths = [np.sqrt(square) for square in squares]
    if not all(_is_identity(g / np.outer(x, x)) for g, x in zip(grams, lengths, strict=True)):
        return None
    order = np.argsort(-lengths[0] * lengths[1], kind="stable")
    s = (lengths[0] * lengths[1])[order]
    kept = order[: _rank(s, target, roundoff)]
    even = np.sqrt(lengths[1] / lengths[0])[kept]
    return LoRAModule(
        replace(target, rank=len(kept)), left[:, kept] * even, (right[:, kept] / even).T
    )


def no_update(target: Target, m: int, n: int) -> LoRAModule:
    """No update, at rank 1: a LoRA file cannot say rank 0."""
    return LoRAModule(replace(target, rank=1), np.zeros((m, 1)), np.zeros((1, n)))


def _rank(s: np.ndarray, target: Target, roundoff: float) -> int:
    """How many singular values (k,) of an update are more than rounding, at least 1."""
    tails = tail_energies(s)
    rank = smallest_rank(tails, min(roundoff, UNIT_ROUNDOFF["float32"]) ** 2 * tails[0])
    if rank > target.rank and tails[target.rank] <= (2 * roundoff) ** 2 * tails[0]:
        rank = target.rank  # the rest is rounding: it had the rank of the LoRA it came from
    return max(rank, 1)


def _module(
    target: Target, stack: Tucker2, index: int, frame: Frame, roundoff: float
) -> LoRAModule:
    """One update in its own rank, both factors of equal norm."""
    core = frame.core(stack.core[index], xp=xp)
    if 0 in core.shape:
        return no_update(target, *stack.shape[1:])
    u, s, vt = svd(core, xp=xp)
    rank = _rank(s, target, roundoff)
    if (plain := _plain_factors(target, stack, index, rank)) is not None:
        return plain
    root = np.sqrt(s[:rank])
    up = frame.left @ (u[:, :rank] * root)
    down = (root[:, None] * vt[:rank]) @ frame.right.T
    return LoRAModule(replace(target, rank=rank), up, down)


def _plain_factors(target: Target, stack: Tucker2, index: int, rank: int) -> LoRAModule | None:
    """A module whose core picks `rank` columns of U and V, by those columns, without rounding."""
    core = stack.core[index].astype(np.float64)
    rows, columns = np.flatnonzero(core.any(axis=1)), np.flatnonzero(core.any(axis=0))
    block = core[np.ix_(rows, columns)]
    if not 0 < rows.size == columns.size <= rank or not np.array_equal(block, np.eye(rows.size)):
        return None
    up = stack.u[:, rows].astype(np.float64)
    down = stack.v[:, columns].astype(np.float64).T
    return LoRAModule(replace(target, rank=rows.size), up, down)


RULES: dict[type, Callable[[Sequence[Target], Any], list[LoRAModule]]] = {
    Tucker2: _of_tucker,
    LoRAStack: _of_lora,
}
"""Formats whose factors are found faster, or kept; those of any other come layer by layer."""
