"""LoTR adapters back to LoRA, in the form that every loader reads alike."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF, narrow, suits_float16
from lotr_tn.checkpoints.adapter import (
    LoRAAdapter,
    LoRAGroup,
    LoRAModule,
    LoTRAdapter,
    LoTRGroup,
    Target,
)
from lotr_tn.checkpoints.peft import config_text
from lotr_tn.checkpoints.peft_config import portable_config
from lotr_tn.checkpoints.tensors import RawTensor
from lotr_tn.errors import CheckpointError
from lotr_tn.formats import LoRAStack, LowRankTucker2, Tucker1, Tucker2
from lotr_tn.linalg import smallest_rank, svd_of_product
from lotr_tn.linalg.factor import svd
from lotr_tn.linalg.ranks import tail_energies
from lotr_tn.ops.distance import Frame, frame_of
from lotr_tn.ops.layers import layer_of, left_times_middle, storage_dtype

__all__ = ["Export", "as_dtype", "fits_float16", "no_update", "portable_lora", "to_lora"]

DTYPE_MARGIN = 1 / 100
"""A dtype for the factors is chosen when its unit roundoff is at most this share of the error: what
it adds changes no digit that is shown."""

ORTHOGONAL = 1e-3
"""Largest cosine of columns that count as orthogonal: an SVD would turn them by rounding. Whatever
it is, they are exported without loss; only how far each is from the least rank depends on it."""


@dataclass(frozen=True)
class Export:
    """A LoRA adapter made from a LoTR one.

    Attributes:
        adapter: the LoRA adapter, scale inside.
        ranks: the rank of each module by its path.
        dtype: the storage dtype of its factors.
    """

    adapter: LoRAAdapter
    ranks: Mapping[str, int]
    dtype: str


def to_lora(
    adapter: LoTRAdapter,
    *,
    ranks: Literal["uniform", "minimal"] = "uniform",
    dtype: str = "auto",
) -> Export:
    """Write every U G_l Vᵀ as its own pair of LoRA factors.

    Each core is diagonalised, so a module gets the rank that its update has, at most min(r1, r2)
    and no more than the LoRA it came from. What is cut off is rounding of the stored cores.

    Args:
        adapter: a LoTR adapter.
        ranks: `uniform` pads all modules with zeros to one rank, which every loader takes;
            `minimal` keeps each module's own, which needs a loader that knows rank_pattern.
        dtype: storage dtype of the factors, or `auto`: the one that the original LoRA had where its
            rounding stays invisible beside the certified error, else float32 or float64.

    Returns:
        The LoRA adapter; its alpha equals its rank, and targets are listed in full.

    Raises:
        CheckpointError: the dtype is unknown.
        FormatError: float16 was asked for, and an entry is too large for it.

    Cost: O((m + n)·r²) flops a group and O((m + n)·r_l·r) a layer; memory of the result.
    """
    chosen = _export_dtype(adapter) if dtype == "auto" else dtype
    if chosen not in UNIT_ROUNDOFF:
        raise CheckpointError(f"dtype must be one of {', '.join(UNIT_ROUNDOFF)}; found {chosen!r}")
    modules = [m for group in adapter.groups.values() for m in _modules(group)]
    return portable_lora(
        modules,
        json.loads(adapter.config_text),
        adapter.extras,
        ranks=ranks,
        dtype=chosen,
        may_widen=dtype == "auto",
    )


def portable_lora(
    modules: list[LoRAModule],
    config: Mapping[str, Any],
    extras: Mapping[str, RawTensor],
    *,
    ranks: Literal["uniform", "minimal"] = "uniform",
    dtype: str,
    may_widen: bool = False,
) -> Export:
    """Updates as a LoRA adapter in the form that every loader reads alike.

    Args:
        modules: each with its scale inside, and a full output factor.
        config: of the adapter they come from.
        extras: its other tensors.
        ranks: as for `to_lora`.
        dtype: storage dtype of the factors.
        may_widen: whether float32 is taken where float16 would lose digits.
    """
    if ranks == "uniform":
        rank = _common_rank(modules)
        modules = [_padded(module, rank) for module in modules]
    modules = [_tiled(module) for module in modules]
    if may_widen and dtype == "float16" and not all(map(fits_float16, modules)):
        dtype = "float32"
    by_name = {module.target.name: module.target.rank for module in modules}
    config = portable_config(config, by_name, max(by_name.values()))
    stored = tuple(as_dtype(module, dtype) for module in modules)
    lora = LoRAAdapter(stored, extras, config, config_text(config))
    return Export(lora, by_name, dtype)


def _export_dtype(adapter: LoTRAdapter) -> str:
    errors = [
        group.certificate.relative_error
        for group in adapter.groups.values()
        if group.certificate is not None
    ]
    smallest = min((error for error in errors if error > 0), default=0.0)
    own = str(adapter.origin.get("dtype", "float32"))
    for dtype in (own, "float32"):
        if dtype in UNIT_ROUNDOFF and UNIT_ROUNDOFF[dtype] <= DTYPE_MARGIN * smallest:
            return dtype
    return "float64" if adapter.dtype == "float64" else "float32"


def _modules(group: LoTRGroup | LoRAGroup) -> list[LoRAModule]:
    if isinstance(group, LoRAGroup):
        return [_as_linear(module) for module in group.modules]
    stack = group.stack
    if not isinstance(stack, Tucker2):
        return [_own_factors(target, stack, i) for i, target in enumerate(group.targets)]
    frame = _frame(stack)
    roundoff = UNIT_ROUNDOFF[stack.core.dtype.name]
    return [
        _module(target, stack, index, frame, roundoff) for index, target in enumerate(group.targets)
    ]


def _frame(stack: Tucker2) -> Frame:
    """The frame of U and V; these themselves where their columns are orthonormal already."""
    if not (_is_identity(_gram(stack.u)) and _is_identity(_gram(stack.v))):
        return frame_of(stack.u, stack.v, xp=xp)
    r1, r2 = stack.ranks
    u, v = stack.u.astype(np.float64), stack.v.astype(np.float64)
    return Frame(u, np.eye(r1), v, np.eye(r2))


def _gram(x: np.ndarray) -> np.ndarray:
    """Inner products of columns, right to 1e-6: enough to see whether they are orthogonal."""
    wide = x.astype(np.float32)
    return wide.T @ wide


def _is_identity(gram: np.ndarray) -> bool:
    return bool((np.abs(gram - np.eye(len(gram))) <= ORTHOGONAL).all())


def _as_linear(module: LoRAModule) -> LoRAModule:
    """A module that was kept as it is, with its scale inside and a full output factor."""
    up, down = module.factors()
    return LoRAModule(module.target, up, down)


def _own_factors(
    target: Target, stack: LowRankTucker2 | Tucker1 | LoRAStack, index: int
) -> LoRAModule:
    """One update of any format in its own rank; a LoRA's factors stay as they are."""
    layer = layer_of(stack, index, xp=xp)
    left, right = left_times_middle(layer, xp=xp), layer.right.astype(np.float64)
    if left.shape[1] == 0:
        return no_update(target, left.shape[0], right.shape[0])
    if isinstance(stack, LoRAStack):
        return LoRAModule(_at_rank(target, left.shape[1]), left, right.T)
    roundoff = UNIT_ROUNDOFF[storage_dtype(stack)]
    if (found := _turned_already(target, left, right, roundoff)) is not None:
        return found
    u, s, vt = svd_of_product(left, right.T)
    rank = _rank(s, target, roundoff)
    root = np.sqrt(s[:rank])
    return LoRAModule(_at_rank(target, rank), u[:, :rank] * root, root[:, None] * vt[:rank])


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
    return LoRAModule(_at_rank(target, len(kept)), left[:, kept] * even, (right[:, kept] / even).T)


def no_update(target: Target, m: int, n: int) -> LoRAModule:
    """No update, at rank 1: a LoRA file cannot say rank 0."""
    return LoRAModule(_at_rank(target, 1), np.zeros((m, 1)), np.zeros((1, n)))


def _rank(s: np.ndarray, target: Target, roundoff: float) -> int:
    """How many singular values (k,) of an update are more than rounding, at least 1."""
    tails = tail_energies(s)
    rank = smallest_rank(tails, min(roundoff, UNIT_ROUNDOFF["float32"]) ** 2 * tails[0])
    if rank > target.rank and tails[target.rank] <= (2 * roundoff) ** 2 * tails[0]:
        rank = target.rank  # the rest is rounding: it had the rank of the LoRA it came from
    return max(rank, 1)


def _at_rank(target: Target, rank: int) -> Target:
    return Target(target.name, target.layout, rank)


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
    return LoRAModule(_at_rank(target, rank), up, down)


def _plain_factors(target: Target, stack: Tucker2, index: int, rank: int) -> LoRAModule | None:
    """A module whose core picks `rank` columns of U and V, by those columns, without rounding."""
    core = stack.core[index].astype(np.float64)
    rows, columns = np.flatnonzero(core.any(axis=1)), np.flatnonzero(core.any(axis=0))
    block = core[np.ix_(rows, columns)]
    if not 0 < rows.size == columns.size <= rank or not np.array_equal(block, np.eye(rows.size)):
        return None
    up = stack.u[:, rows].astype(np.float64)
    down = stack.v[:, columns].astype(np.float64).T
    return LoRAModule(Target(target.name, target.layout, rows.size), up, down)


def _common_rank(modules: list[LoRAModule]) -> int:
    """The smallest rank that holds every module and divides by every conv's groups."""
    needed = max(module.target.rank * module.target.layout.groups for module in modules)
    step = math.lcm(*(module.target.layout.groups for module in modules))
    return math.ceil(needed / step) * step


def _padded(module: LoRAModule, rank: int) -> LoRAModule:
    target = module.target
    missing = rank // target.layout.groups - target.rank
    if not missing:
        return module
    up = np.pad(module.up, ((0, 0), (0, missing)))
    down = np.pad(module.down, ((0, missing), (0, 0)))
    return LoRAModule(Target(target.name, target.layout, target.rank + missing), up, down)


def _tiled(module: LoRAModule) -> LoRAModule:
    """For a grouped conv each group of outputs reads its own copy of the input factor."""
    target, groups = module.target, module.target.layout.groups
    if groups == 1:
        return module
    down = np.tile(module.down, (groups, 1))
    return LoRAModule(Target(target.name, target.layout, target.rank * groups), module.up, down)


def fits_float16(module: LoRAModule) -> bool:
    """Whether float16 keeps the precision of both factors."""
    return suits_float16(module.up) and suits_float16(module.down)


def as_dtype(module: LoRAModule, dtype: str) -> LoRAModule:
    """The module with both factors in a storage dtype."""
    up, down = narrow(module.up, dtype, xp=xp), narrow(module.down, dtype, xp=xp)
    return LoRAModule(module.target, up, down)
