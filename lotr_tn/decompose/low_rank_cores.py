"""Tucker-2 with low-rank cores: shared factors first, then every core cut to its own rank."""

import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF, Array, Namespace, float64, narrow, to_numpy
from lotr_tn.decompose.assemble import signs
from lotr_tn.decompose.search import asked_dtype
from lotr_tn.decompose.truncation import limited_order
from lotr_tn.decompose.tucker import hosvd
from lotr_tn.errors import RankError
from lotr_tn.formats import Certificate, LoRAStack, LowRankTucker2, Stack, Tucker2
from lotr_tn.linalg.factor import svd
from lotr_tn.linalg.ranks import FixedRank, RankLimits
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.layers import common_namespace
from lotr_tn.ops.moving import astype
from lotr_tn.ops.norms import root_sum_squares

__all__ = ["low_rank_tucker2"]


def low_rank_tucker2(
    stack: Stack,
    ranks: tuple[int, int],
    terms: int,
    *,
    limits: RankLimits | None = None,
    dtype: str | None = None,
) -> LowRankTucker2:
    """Shared factors by the truncated HOSVD, and cores that keep the largest singular values.

    One threshold over the cores of all layers chooses their ranks, since every term costs r1 + r2
    wherever it is.

    Args:
        stack: any stack (L, m, n).
        ranks: (r1, r2), or the largest that the stack has.
        terms: how many rank terms all cores keep together, or as many as they have.
        limits: on the rank of each core.
        dtype: storage dtype of the result; the stack's own where left out.

    Returns:
        A LowRankTucker2 with a certificate: measured distances; no Tucker-2 of ranks (r1, r2) is
        closer than its lower bound.

    Raises:
        RankError: a rank or `terms` is negative.
        DerivativeError: torch would record the decomposition.

    Cost: that of `hosvd` at these ranks, and O(L·r1·r2·min(r1, r2)) flops.
    Accuracy: the squared error is that of the HOSVD and the cores' singular values cut off, added.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import LoRAStack
        >>> rng = np.random.default_rng(0)
        >>> stack = LoRAStack(rng.standard_normal((9, 6)), rng.standard_normal((6, 7)), (2, 3, 1))
        >>> found = low_rank_tucker2(stack, (5, 5), terms=4)
        >>> found.shared_ranks, sum(found.ranks), round(found.certificate.relative_error, 3)
        ((5, 5), 4, 0.313)
    """
    if terms < 0:
        raise RankError(f"terms must be at least 0; found {terms}")
    whole = hosvd(stack, FixedRank(*ranks), dtype=asked_dtype(stack, dtype))
    most = stack.ranks if isinstance(stack, LoRAStack) else (min(stack.shape[1:]),) * stack.shape[0]
    return _cut_cores(stack, whole, most, terms, limits or RankLimits())


def _cut_cores(
    stack: Stack, whole: Tucker2, most: tuple[int, ...], terms: int, limits: RankLimits
) -> LowRankTucker2:
    """The cores cut to `terms` rank terms, none to more than its layer had (`most`)."""
    xp = common_namespace(whole)
    cores = [svd(float64(whole.core[i, ...], xp=xp), xp=xp) for i in range(whole.shape[0])]
    values = [to_numpy(s)[:rank] for (_, s, _), rank in zip(cores, most, strict=True)]
    order = limited_order(values, limits)
    kept = order.ranks(min(terms, len(order.layers)))
    ups, downs = [], []
    for (u, s, vt), rank in zip(cores, kept, strict=True):
        root = xp.sqrt(s[:rank]) * signs(u[:, :rank], xp=xp)
        ups.append(u[:, :rank] * root[None, :])
        downs.append(root[:, None] * vt[:rank, :])
    dtype = asked_dtype(whole, None)
    up, down = (
        narrow(xp.concat(parts, axis=axis), dtype, xp=xp) for parts, axis in ((ups, 1), (downs, 0))
    )
    result = LowRankTucker2(whole.u, up, down, whole.v, kept)
    lost = [s[rank:] for (_, s, _), rank in zip(cores, kept, strict=True)]
    certificate = _certified(stack, whole, result, root_sum_squares(xp.concat(lost)), dtype, xp=xp)
    return LowRankTucker2(whole.u, up, down, whole.v, kept, certificate)


def _certified(
    stack: Stack,
    whole: Tucker2,
    result: LowRankTucker2,
    tail: Array,
    dtype: str,
    *,
    xp: Namespace,
) -> Certificate:
    """Measured distances; the Tucker-2's own bounds, the upper one with the cores' tail beside."""
    before = whole.certificate
    assert before is not None
    distances = layer_distances(*(astype(s, "float64") for s in (stack, result)))
    rounding = (2.5 * UNIT_ROUNDOFF[dtype] + 2.0**-48) * max(1, *result.ranks) ** 0.5
    upper = root_sum_squares(xp.stack([before.upper, tail])) + rounding * float(
        np.linalg.norm(before.layer_norms)
    )
    method = f"{before.method}, low-rank cores"
    return Certificate(distances, before.norms, before.lower, upper, method, 0)
