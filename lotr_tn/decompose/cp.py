"""CP of a stack of updates: the closest that alternating least squares in core space finds."""

import math

from lotr_tn._arguments import door
from lotr_tn.decompose.cp_gauge import canonical_cp
from lotr_tn.decompose.cp_search import CPSearch, How
from lotr_tn.decompose.gauges import require_count
from lotr_tn.decompose.guarded import guarded
from lotr_tn.decompose.search import asked_dtype
from lotr_tn.errors import OptionError
from lotr_tn.formats import CP, Core, Stack
from lotr_tn.linalg.ranks import RankRule, as_rule
from lotr_tn.ops.arrays import common_namespace
from lotr_tn.ops.checks import refuse_gradient
from lotr_tn.ops.magnitude import LARGEST_FIELD, require_finite, rescaled, times_power
from lotr_tn.ops.primitives import lowered, rule


@door
def cp(
    stack: Stack,
    ranks: RankRule | int,
    *,
    dtype: str | None = None,
    starts: int = 4,
    seed: int = 0,
    tolerance: float = 1e-4,
    max_sweeps: int = 200,
) -> CP:
    """ΔW_l ≈ A diag(w_l) Bᵀ of rank R, by alternating least squares that never forms an update.

    The sweeps run in core space. They start from the largest singular terms of all layers, so a CP
    never loses more than a LoRA cut to as many terms in all; from the leading directions of both
    sides; from the pair of sides that diagonalises two sums of layers, which is the answer where
    the stack is a CP of that rank; and at random. After a few sweeps the closest goes on, each
    sweep followed by a step beyond it where that is closer still. The error never rises.

    Args:
        stack: any stack (L, m, n).
        ranks: R, or a rule: `FixedRank`, `RelativeError`, `Energy`, `Budget`. An error takes the
            smallest rank that was found to meet it, in a few attempts; the least rank of all is as
            hard to know as it is for any tensor.
        dtype: storage dtype of the result; the stack's own where left out.
        starts: how many are tried, in the order above; with more than four the rest at random. A
            CP begins with its own largest terms besides.
        seed: of what is random.
        tolerance: stop when one sweep lowers the error by less than this share of it.
        max_sweeps: the most sweeps made after the first few.

    Returns:
        A CP in canonical gauge: columns of A and B of length 1, their entry of largest size
        positive, sizes and signs in the weights, terms of the largest weights first. Ranks above
        what the layers have in all come out as that, and exact. Its certificate has the measured
        error; `lower`, which no CP of that rank undercuts, by the singular values of all three
        unfoldings; and in `method` a word where the sweeps ended since terms grew that cancel each
        other, as they do where no best CP exists.

    Raises:
        RankError: a rank is negative or a rule is out of range.
        OptionError: starts, seed or max_sweeps is no whole number, or tolerance is negative.
        DerivativeError: torch would record the decomposition.

    Warns:
        PrecisionWarning: the storage dtype is too coarse for the error asked for.

    Cost: the core space of `hosvd`, then for T = Σ r_l terms in K ≤ T directions 8·K·T·R + O(R³)
    flops a sweep and O((K + R)·T) memory. Never anything of size m·n. Each sweep waits for its
    error, on other devices than the CPU too.
    Accuracy: a planted CP comes back to about 1e-8, the resolution of Gram matrices.
    Source: Carroll and Chang (1970); Harshman (1970); for the step beyond Bro (1998).

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import CP
        >>> rng = np.random.default_rng(0)
        >>> planted = CP(*(rng.standard_normal((size, 3)) for size in (30, 6, 20)))
        >>> found = cp(planted + 0.01 * CP(*(rng.standard_normal((s, 9)) for s in (30, 6, 20))), 3)
        >>> found.rank, round(found.certificate.relative_error, 3)
        (3, 0.019)
    """
    require_count("starts", starts, least=1)
    require_count("seed", seed)
    require_count("max_sweeps", max_sweeps)
    if not tolerance >= 0:
        raise OptionError(f"tolerance must be at least 0; found {tolerance!r}")
    dtype = asked_dtype(stack, dtype)
    asked = as_rule(ranks, dtype)
    refuse_gradient("cp", stack)
    require_finite(stack)
    how = How(dtype, starts, seed, tolerance, max_sweeps)
    if isinstance(stack, CP):
        near, exponent = _near_one(canonical_cp(stack))
        return rescaled(CPSearch(near, asked, how).found(), exponent)
    return _of_core(lowered(stack), asked, how)


@rule("round_stack", CP)
def round_cp(stack: CP, ranks: RankRule, *, dtype: str | None = None) -> CP:
    """A CP of lower rank: its largest terms, brought closer by sweeps."""
    return cp(stack, ranks, dtype=dtype)


@guarded
def _of_core(stack: Core, asked: RankRule, how: How) -> CP:
    return CPSearch(stack, asked, how).found()


def _near_one(stack: CP) -> tuple[CP, int]:
    """Canonical terms times a power of two that takes far sizes near 1, and its exponent."""
    xp = common_namespace(stack)
    largest = float(xp.max(xp.abs(stack.weights))) if stack.rank else 0.0
    exponent = math.frexp(largest)[1]
    if abs(exponent) <= LARGEST_FIELD:
        return stack, 0
    return CP(stack.a, times_power(stack.weights, -exponent), stack.b), exponent
