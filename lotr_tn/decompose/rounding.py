"""Rounding: ranks brought down within a format, and one set of factors for equal stacks."""

from typing import TypeAlias, TypeVar, assert_never, overload

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, Namespace, cast, float64, narrow, to_numpy
from lotr_tn.decompose.core_space import core_space
from lotr_tn.decompose.guarded import guarded_in_its_format
from lotr_tn.decompose.low_rank_rounding import canonical_low_rank_tucker2, round_low_rank_tucker2
from lotr_tn.decompose.search import asked_dtype, resolution
from lotr_tn.decompose.truncation import differentiable_rule, truncate, without_null_terms
from lotr_tn.decompose.tucker import hosvd
from lotr_tn.decompose.tucker1 import tucker1
from lotr_tn.errors import RankError
from lotr_tn.formats import Core, Dense, Format, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.linalg.derivatives import leading_vectors_with_gradient
from lotr_tn.linalg.ranks import RankRule, as_rule
from lotr_tn.ops.arrays import common_namespace, differentiable, storage_dtype
from lotr_tn.ops.checks import refuse_gradient
from lotr_tn.ops.conversion import as_lora
from lotr_tn.ops.primitives import by_rule_or_hub

CoreKind = TypeVar("CoreKind", bound=Core)  # a core format that a function keeps

Ranks: TypeAlias = RankRule | int | tuple[int, int]


@door
@guarded_in_its_format
def round_stack(stack: Stack, ranks: Ranks, *, dtype: str | None = None) -> Stack:
    """The stack at lower ranks, in its own format where that has ranks, with the measured error.

    What comes out, and how close it is:

    - `LoRAStack`: each layer's leading singular values. Ranks are chosen for all layers together,
      by one threshold over all singular values, so no other ranks of the same number of
      parameters lose less. A fixed rank holds for every layer.
    - `Tucker2`: the truncated HOSVD, at most √2 times the best; `hooi` comes closer. A rank of a
      side as large as it is leaves that side whole, so `(r1, stack.ranks[1])` cuts U alone.
    - `LowRankTucker2`: each core's leading singular values, by one threshold over all cores: every
      term costs r1 + r2, so among stacks with these U and V none of as many terms loses less. A
      fixed rank is the most that any layer keeps. U and V come out orthonormal; with a rule that
      names no rank, without the directions that the kept terms do not use. A budget pays for the
      others only.
    - `Tucker1`: the best of its rank, sharing the same side.
    - `Dense`: a `LoRAStack`, as rounding makes it low-rank.
    - A registered format: what its rule `round_stack` gives; without one, what its hub comes out
      as.

    Args:
        stack: any stack (L, m, n), such as a sum, whose ranks have added.
        ranks: one rank, a pair for Tucker-2, or a rule: `RelativeError`, `Energy`, `Budget`.
        dtype: storage dtype of the result; the stack's own where left out.

    Returns:
        A stack with a `certificate`: measured errors, and bounds. Layers of a LoRA that lose
        nothing keep their own factors, bit for bit.

    Raises:
        RankError: a rank is negative or a rule is out of range.
        DerivativeError: torch records the factors, and the ranks are not fixed; or, in its
            backward pass, singular values are equal or zero so that no derivative exists. With a
            derivative there is no certificate, and a `LowRankTucker2` keeps its U and V.

    Warns:
        PrecisionWarning: the storage dtype is too coarse for the error asked for.

    Cost: O((m + n)·Σ r_l²) flops for LoRA; 4·(m·r1² + n·r2²) and O(L·r³) for Tucker-2, or O(K·r²)
    with low-rank cores; no more memory than the factors a few times, and never m·n.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import LoRAStack, RelativeError, round
        >>> rng = np.random.default_rng(0)
        >>> a = LoRAStack(rng.standard_normal((30, 6)), rng.standard_normal((6, 20)), (2, 3, 1))
        >>> twice = a + a  # ranks add: (4, 6, 2)
        >>> round(twice, RelativeError(1e-12)).ranks
        (2, 3, 1)
    """
    dtype = asked_dtype(stack, dtype)
    rule = as_rule(ranks, dtype)
    if isinstance(stack, Format):
        return by_rule_or_hub(round_stack, stack, rule, dtype=dtype)
    match stack:
        case Tucker2():
            if differentiable(stack):
                return _round_tucker2_with_gradient(stack, rule, dtype)
            return hosvd(stack, rule, dtype=dtype)
        case Tucker1():
            if differentiable(stack):
                return _round_tucker1_with_gradient(stack, rule, dtype)
            return tucker1(stack, rule, stack.side, dtype=dtype)
        case LowRankTucker2():
            return round_low_rank_tucker2(stack, rule, dtype)
        case LoRAStack() | Dense():
            return truncate(as_lora(stack), rule, dtype)
        case never:
            assert_never(never)


@overload
@door
def canonicalize(stack: CoreKind) -> CoreKind: ...
@overload
@door
def canonicalize(stack: Format) -> Stack: ...
@door
@guarded_in_its_format
def canonicalize(stack: Stack) -> Stack:
    """The same stack in the one set of factors that belongs to it.

    Shared factors become orthonormal, their columns the singular vectors of the stack's unfoldings,
    largest first. Layers of a LoRA, and low-rank cores, get their singular vectors, times the roots
    of the singular values on both sides. In each column of U (of V, where V alone is shared) the
    entry of largest size is positive; directions that hold only rounding are dropped. Equal stacks
    come out with
    equal factors, up to rounding, where their singular values differ from each other; for equal
    singular values the columns are any orthonormal basis of their common space.

    Args:
        stack: any stack; a dense one has no factors and stays as it is.

    Returns:
        A stack of the same format and dtype, with a certificate of the rounding it cost. Of a
        registered format, what its rule `canonicalize` gives; without one, its hub's canonical
        factors, in the hub.

    Raises:
        DerivativeError: torch records the factors.

    Cost: 4·(m·r1² + n·r2²) flops and O(L·r1·r2·min(r1, r2)); for LoRA O((m + n)·Σ r_l²).
    Source: De Lathauwer, De Moor and Vandewalle (2000), the all-orthogonal core.
    """
    refuse_gradient("canonicalize", stack)
    if isinstance(stack, Format):
        return by_rule_or_hub(canonicalize, stack)
    match stack:
        case LoRAStack():
            return without_null_terms(stack)
        case Tucker1():
            kept = _numerical_ranks(stack)
            return tucker1(stack, kept[stack.side == "in"], stack.side)
        case Tucker2():
            return hosvd(stack, _numerical_ranks(stack))
        case LowRankTucker2():
            return canonical_low_rank_tucker2(stack)
        case Dense():
            return stack
        case never:
            assert_never(never)


def _numerical_ranks(stack: Stack) -> tuple[int, int]:
    """How many directions of each side hold more than rounding."""
    space = core_space(stack)
    floor = float(space.norm) * resolution(wide=storage_dtype(stack) == "float64")
    left, right = (to_numpy(side.sigma) for side in (space.left, space.right))
    return int((left > floor).sum()), int((right > floor).sum())


def _round_tucker2_with_gradient(stack: Tucker2, rule: RankRule, dtype: str) -> Tucker2:
    """The truncated HOSVD by eigenvectors of both unfoldings' Gram matrices, differentiable."""
    xp = common_namespace(stack)
    u, core, v = (float64(x, xp=xp) for x in (stack.u, stack.core, stack.v))
    r1, r2 = differentiable_rule(rule).pair
    across = xp.matrix_transpose(core)
    left_gram = xp.sum(core @ (v.mT @ v) @ across, axis=0)
    right_gram = xp.sum(across @ (u.mT @ u) @ core, axis=0)
    left = _leading(u, left_gram, r1, xp=xp)
    right = _leading(v, right_gram, r2, xp=xp)
    small = (left.mT @ u) @ core @ (v.mT @ right)
    return Tucker2(*(narrow(x, dtype, xp=xp) for x in (left, small, right)))


def _round_tucker1_with_gradient(stack: Tucker1, rule: RankRule, dtype: str) -> Tucker1:
    xp = common_namespace(stack)
    shared, own = float64(stack.shared, xp=xp), float64(stack.own, xp=xp)
    gram = xp.sum(xp.matrix_transpose(own) @ own, axis=0)
    kept = _leading(shared, gram, differentiable_rule(rule).r1, xp=xp)
    parts = narrow(own @ (shared.mT @ kept), dtype, xp=xp)
    return Tucker1(cast(kept, dtype, xp=xp), parts, stack.side)


def _leading(factor: Array, gram: Array, rank: int, *, xp: Namespace) -> Array:
    """The leading eigenvectors of factor gram factorᵀ, at most as many as it has columns."""
    rank = min(rank, *factor.shape)
    if rank == 0:
        raise RankError("round at rank 0 has no derivative to speak of; detach the factors")
    return leading_vectors_with_gradient(factor, gram, rank)
