"""The one way to write the terms of a CP, and how much of a stack speaks for its structure."""

import math

import array_api_compat
import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import UNIT_ROUNDOFF, Array, Namespace, dtype_name, float64, narrow, to_numpy
from lotr_tn.errors import FormatError, RankError
from lotr_tn.formats import CP, Certificate, Stack
from lotr_tn.linalg.bases import signs
from lotr_tn.linalg.factor import pinv
from lotr_tn.ops.apply import taken
from lotr_tn.ops.arrays import common_namespace
from lotr_tn.ops.checks import require_same_shape
from lotr_tn.ops.conversion import as_lora
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.moving import astype
from lotr_tn.ops.norms import layer_norms, root_sum_squares
from lotr_tn.ops.primitives import rule

ONLY_ROUNDING = 4 * UNIT_ROUNDOFF["float64"]
"""Share of all sizes together below which a term is rounding."""


def unit_columns(x: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Columns of length 1, and what their lengths were; columns of zeros stay."""
    largest = xp.max(xp.abs(x), axis=0) if 0 not in x.shape else xp.sum(x, axis=0)
    one = xp.ones_like(largest)
    scale = xp.where(largest > 0, largest, one)
    lengths = xp.sqrt(xp.sum((x / scale) ** 2, axis=0))
    return x / scale / xp.where(lengths > 0, lengths, one), scale * lengths


def canonical_terms(a: Array, w: Array, b: Array, *, xp: Namespace) -> tuple[Array, Array, Array]:
    """A and B with unit columns whose entry of largest size is positive; the largest terms first.

    Sizes and signs are in the weights. Terms that are nothing but rounding are left out.
    """
    (a, long_a), (b, long_b) = (unit_columns(float64(x, xp=xp), xp=xp) for x in (a, b))
    sign_a, sign_b = signs(a, xp=xp), signs(b, xp=xp)
    w = float64(w, xp=xp) * (long_a * sign_a) * (long_b * sign_b)
    sizes = to_numpy(unit_columns(w, xp=xp)[1])
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > ONLY_ROUNDING * sizes.sum()]
    chosen = xp.asarray(order, device=array_api_compat.device(a))
    return tuple(xp.take(x, chosen, axis=1) for x in (a * sign_a, w, b * sign_b))


def canonical_cp(stack: CP) -> CP:
    """A CP in canonical gauge, in float64."""
    xp = common_namespace(stack)
    a, w, b = canonical_terms(stack.a, stack.weights, stack.b, xp=xp)
    if not math.isfinite(float(xp.sum(w))):
        raise FormatError("the updates are beyond the range of float64; scale the factors down")
    return CP(a, w, b)


@rule("canonicalize", CP)
def _canonicalize(stack: CP) -> CP:
    """The terms in canonical gauge, and what rounding them to the dtype cost."""
    xp, dtype = common_namespace(stack), dtype_name(stack.a)
    wide = canonical_cp(stack)
    a, w, b = (narrow(x, dtype, xp=xp) for x in (wide.a, wide.weights, wide.b))
    distances = layer_distances(*(astype(s, "float64") for s in (stack, CP(a, w, b))))
    lost = root_sum_squares(distances)
    known = Certificate(distances, layer_norms(stack), 0 * lost, lost, "canonical terms", 0)
    return CP(a, w, b, known)


@door
def core_consistency(stack: Stack, found: CP) -> float:
    """How well the terms of a CP stand alone, in percent: 100 where no two of them interact.

    Of all cores G (R, R, R) the best for these three factors is compared with the diagonal one that
    a CP has: 100·(1 − Σ (G − I)² / R). Near 100 the stack has the structure of a CP; below about
    50, or negative, rank R asks for more terms than the stack has of that structure.

    Args:
        stack: any stack (L, m, n).
        found: a CP of it, of rank R ≤ L.

    Raises:
        FormatError: the shapes differ.
        RankError: R is 0, or above L, where G is not determined.
        BackendError: library, dtype or device differ.

    Cost: O((m + n)·R·T + R³·T) for T rank terms of the stack as a LoRA.
    Source: Bro and Kiers (2003), A new efficient method for determining the number of components
    in PARAFAC models.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> planted = CP(*(rng.standard_normal((size, 3)) for size in (30, 6, 20)))
        >>> round(core_consistency(planted, planted), 6)
        100.0
    """
    require_same_shape(stack, found)
    rank, layers = found.rank, stack.shape[0]
    if not 0 < rank <= layers:
        raise RankError(
            f"core consistency is told of 1 to L = {layers} terms, one weight each; found a CP of "
            f"rank {rank}"
        )
    xp = common_namespace(stack, found)
    terms = canonical_cp(found)
    if terms.rank < rank:
        raise RankError(f"{rank - terms.rank} of the CP's {rank} terms are zero: leave them out")
    unit, sizes = unit_columns(terms.weights, xp=xp)  # scaled, so that the diagonal is 1
    to_a, to_w, to_b = (pinv(x, xp=xp) for x in (terms.a * sizes, unit, terms.b))
    lora = as_lora(stack)
    p, q = to_a @ float64(lora.up, xp=xp), to_b @ float64(lora.down, xp=xp).mT
    owner = np.repeat(np.arange(layers), lora.ranks)
    of_each = taken(to_w.mT, owner, xp=xp)  # (T, R)
    eye, squares = xp.eye(rank, dtype=xp.float64, device=array_api_compat.device(p)), 0.0
    for term in range(rank):
        core = (p * of_each[:, term]) @ q.mT
        squares += float(xp.sum((core - eye[:, term, None] * eye[None, term, :]) ** 2))
    return 100 * (1 - squares / rank)
