"""Any stack as a small LoRA stack between orthonormal bases, without loss.

A shared factor U = Q R leaves its R in the small stack, so later steps cost as much as the ranks.
"""

from dataclasses import dataclass
from typing import assert_never

from lotr_tn._arrays import Array, Namespace, cast, dtype_name, float64, zeros
from lotr_tn.formats import Dense, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.linalg.factor import qr
from lotr_tn.ops.arrays import common_namespace, first_array
from lotr_tn.ops.conversion import as_lora
from lotr_tn.ops.primitives import lowered


@dataclass(frozen=True)
class Reduction:
    """ΔW_l = left small_l rightᵀ with orthonormal left and right; None stands for the identity."""

    small: LoRAStack
    left: Array | None = None  # (m, k1) float64
    right: Array | None = None  # (n, k2) float64


def reduced(stack: Stack) -> Reduction:
    """The reduction of a stack. LoRA and dense stacks are small stacks themselves."""
    xp = common_namespace(stack)
    stack = lowered(stack)
    match stack:
        case Tucker2():
            if 0 in stack.ranks:
                return Reduction(_zero(stack, xp=xp))
            (left, r_left), (right, r_right) = qr(stack.u, xp=xp), qr(stack.v, xp=xp)
            cores = r_left @ float64(stack.core, xp=xp) @ xp.matrix_transpose(r_right)
            return Reduction(as_lora(Dense(cores)), left, right)
        case LowRankTucker2():
            if 0 in stack.shared_ranks or sum(stack.ranks) == 0:
                return Reduction(_zero(stack, xp=xp))
            (left, r_left), (right, r_right) = qr(stack.u, xp=xp), qr(stack.v, xp=xp)
            up = r_left @ float64(stack.up, xp=xp)
            down = float64(stack.down, xp=xp) @ xp.matrix_transpose(r_right)
            return Reduction(LoRAStack(up, down, stack.ranks), left, right)
        case Tucker1():
            if stack.rank == 0:
                return Reduction(_zero(stack, xp=xp))
            basis, factor = qr(stack.shared, xp=xp)
            small = as_lora(Tucker1(factor, float64(stack.own, xp=xp), stack.side))
            return Reduction(small, None, basis) if stack.side == "in" else Reduction(small, basis)
        case LoRAStack() if sum(stack.ranks) == 0:
            return Reduction(_zero(stack, xp=xp))
        case LoRAStack():
            return Reduction(stack)
        case Dense():
            return Reduction(as_lora(stack))
        case never:
            assert_never(never)


def _zero(stack: Stack, *, xp: Namespace) -> LoRAStack:
    """A zero stack with one rank term, so that no factorisation meets an empty matrix."""
    layers, m, n = stack.shape
    like = first_array(stack)
    up, down = (
        cast(zeros(shape, like, xp=xp), dtype_name(like), xp=xp) for shape in ((m, 1), (1, n))
    )
    return LoRAStack(up, down, (1,) + (0,) * (layers - 1))
