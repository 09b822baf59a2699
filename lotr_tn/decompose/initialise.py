"""Factors to train from, as close to updates as their ranks allow, and what is left.

W = (W − U G Vᵀ) + U G Vᵀ: a model that keeps the rest computes what it did before.
"""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, final

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, namespace_of, narrow
from lotr_tn.decompose.assemble import with_best_cores
from lotr_tn.decompose.gauges import GAUGES, Gauge, regauge, require_gauge, require_ranks, widened
from lotr_tn.decompose.rounding import round_stack
from lotr_tn.decompose.tucker import hooi, hosvd
from lotr_tn.errors import OptionError, RankError
from lotr_tn.formats import Certificate, LoRAStack, Stack, Tucker2
from lotr_tn.linalg.ranks import Budget, FixedRank, RankRule, as_rule
from lotr_tn.ops.arithmetic import subtract
from lotr_tn.ops.arrays import storage_dtype
from lotr_tn.ops.checks import refuse_gradient
from lotr_tn.ops.conversion import as_lora
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.moving import astype
from lotr_tn.ops.norms import root_sum_squares

Method: TypeAlias = Literal["svd", "hosvd", "hooi"]


@final
@dataclass(frozen=True, eq=False)
class Initialisation:
    """Factors of a stack of updates, and what they leave of it.

    Attributes:
        factors: what to train, a `Tucker2` or a `LoRAStack`, with a certificate.
        residual: the stack minus the factors, exactly, as a stack: what stays frozen.
        relative_error: ‖residual‖ / ‖stack‖, measured.
    """

    factors: Tucker2 | LoRAStack
    residual: Stack
    relative_error: float


@door
def initial_factors(
    stack: Stack,
    ranks: RankRule | int | tuple[int, int],
    *,
    method: Method = "hooi",
    gauge: Gauge = "balanced",
) -> Initialisation:
    """Factors that begin as close to a stack of updates as their ranks allow.

    Args:
        stack: any stack (L, m, n), such as the LoRAs of a model that was tuned before.
        ranks: one rank, (r1, r2), or a rule. What is asked for by number comes out with exactly
            those ranks: where the updates have fewer directions, others are added that carry
            nothing yet and can be trained.
        method: "hooi" or "hosvd" for a `Tucker2`, whose factors all layers share; "svd" for a
            `LoRAStack`, each layer with its own best factors.
        gauge: how the factors share out the size of the updates: see `regauge`.

    Returns:
        Factors in the stack's dtype, and the residual: `subtract(stack, factors)`, whose ranks
        are the sums. The two together are the stack.

    Raises:
        OptionError: an unknown method or gauge.
        RankError: a rank below 1 or above what the matrices have; two ranks for "svd".
        DerivativeError: torch would record the decomposition.

    Warns:
        PrecisionWarning: the dtype is too coarse for the error asked for.

    Cost: that of `hooi`, `hosvd` or `round`, and of `regauge`.
    Accuracy: cores are the best ones for U and V as they are stored. An error asked for by a rule
    is met before the change of gauge, which rounds once more.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> up, down = rng.standard_normal((30, 8)), rng.standard_normal((8, 20))
        >>> start = initial_factors(LoRAStack(up, down, (2,) * 4), (5, 6))
        >>> start.factors.ranks, start.residual.ranks, f"{start.relative_error:.2f}"
        ((5, 6), (13, 14), '0.39')
    """
    if method not in ("svd", "hosvd", "hooi"):
        raise OptionError(f"method must be svd, hosvd or hooi; found {method!r}")
    require_gauge(gauge, GAUGES)
    refuse_gradient("initial_factors", stack)
    rule = as_rule(ranks, storage_dtype(stack))
    if isinstance(rule, FixedRank):
        _check_ranks(rule, stack.shape, method)
    # a rule that names an error has to see the rounding of the dtype
    working = "float64" if isinstance(rule, FixedRank | Budget) else storage_dtype(stack)
    if method == "svd":
        cut = round_stack(as_lora(stack), rule, dtype=working)
        assert isinstance(cut, LoRAStack)
        factors = _stored_lora(stack, cut, rule, gauge)
    else:
        found = (hosvd if method == "hosvd" else hooi)(stack, rule, dtype=working)
        factors = _stored_tucker2(stack, found, rule, gauge)
    return Initialisation(factors, subtract(stack, factors), certificate_of(factors).relative_error)


def certificate_of(found: Tucker2 | LoRAStack) -> Certificate:
    """The certificate that every decomposition gives."""
    assert found.certificate is not None
    return found.certificate


def _check_ranks(rule: FixedRank, shape: tuple[int, int, int], method: Method) -> None:
    _, m, n = shape
    if method != "svd":
        require_ranks(rule.pair, m, n)
    elif rule.pair[0] != rule.pair[1]:
        raise RankError(f'method "svd" takes one rank for all layers; found the pair {rule.pair}')
    elif not 1 <= rule.r1 <= min(m, n):
        raise RankError(f"a rank must lie in 1 … min(m, n) = {min(m, n)}; found {rule.r1}")


def _stored_tucker2(stack: Stack, found: Tucker2, rule: RankRule, gauge: Gauge) -> Tucker2:
    """What was found, in its gauge and the stack's dtype, measured against the stack."""
    made = regauge(widened(found, rule), gauge)
    u, v = (narrow(x, storage_dtype(stack), xp=namespace_of(x=x)) for x in (made.u, made.v))
    own = certificate_of(found)
    return with_best_cores(stack, u, v, lambda distances: _measured(own, distances))


def _stored_lora(stack: Stack, found: LoRAStack, rule: RankRule, gauge: Gauge) -> LoRAStack:
    """The same with each layer's own factors."""
    made = astype(regauge(widened(found, rule), gauge), storage_dtype(stack))
    distances = layer_distances(*(astype(s, "float64") for s in (stack, made)))
    return replace(made, certificate=_measured(certificate_of(found), distances))


def _measured(certificate: Certificate, distances: Array) -> Certificate:
    """A certificate with distances measured again after a change of gauge, which rounds."""
    xp, distance = namespace_of(x=distances), root_sum_squares(distances)
    lower = xp.min(xp.stack([certificate.lower, distance]))
    upper = xp.max(xp.stack([certificate.upper, distance]))
    return replace(certificate, distances=distances, lower=lower, upper=upper)
