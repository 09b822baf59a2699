"""Tucker-2 that keeps what the activations see: an error measured through the inputs.

Inputs x have second moments C = E[x xᵀ], and E‖(ΔW − ΔŴ) x‖² = ‖(ΔW − ΔŴ) C^{1/2}‖². Any factor
with C = F Fᵀ gives the same as C^{1/2}, such as the activations of a sample themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lotr_tn._arguments import door
from lotr_tn._arrays import (
    UNIT_ROUNDOFF,
    Array,
    Namespace,
    cast,
    float64,
    namespace_of,
    narrow,
    to_numpy,
)
from lotr_tn.decompose.assemble import beyond, fix_signs
from lotr_tn.decompose.core_space import core_space
from lotr_tn.decompose.guarded import guarded
from lotr_tn.decompose.search import asked_dtype
from lotr_tn.decompose.tucker import hooi
from lotr_tn.decompose.weights import Weights, layer_weighting
from lotr_tn.errors import FormatError, OptionError, RankError
from lotr_tn.formats import Certificate, LoRAStack, Stack, Tucker2
from lotr_tn.linalg.factor import pinv, qr, svd, triangle_of
from lotr_tn.linalg.ranks import FixedRank, RankRule, as_rule
from lotr_tn.ops.arrays import common_namespace
from lotr_tn.ops.checks import refuse_gradient
from lotr_tn.ops.conversion import as_lora
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.moving import astype
from lotr_tn.ops.norms import layer_norms, root_sum_squares
from lotr_tn.ops.padding import zero_blocks

Metric: TypeAlias = Array | Sequence[Array]
"""A diagonal (n,) or a factor (n, k) for all layers; or a sequence of L of them."""

INNER_STEPS = 12  # conjugate gradient steps for V in a sweep; each lowers the error


@door
@guarded
def hooi_in_metric(
    stack: Stack,
    ranks: RankRule | int | tuple[int, int],
    metric: Metric,
    *,
    weights: Weights = None,
    dtype: str | None = None,
    tolerance: float = 1e-4,
    max_sweeps: int = 50,
) -> Tucker2:
    """The Tucker-2 that lowers Σ w_l ‖(ΔW_l − U G_l Vᵀ) C_l^{1/2}‖², by alternation.

    It begins with the factors of `hooi`, whose error in the metric it never exceeds. In each sweep
    U and the cores are the best for V, and then V is improved for U and the cores; with C_l that
    differ from layer to layer there is no closed form. Every half-sweep can only lower the error.

    Args:
        stack: any stack (L, m, n).
        ranks: (r1, r2), or one number for both; fixed, as an error is not known beforehand.
        metric: C for all layers, as a diagonal (n,) of numbers ≥ 0 or as a factor F (n, k) with
            C = F Fᵀ; or a sequence of L such arrays. In the stack's library and on its device.
        weights: as for `hosvd`.
        dtype: storage dtype of the result; the stack's own where left out.
        tolerance: stop when one sweep lowers the error by less than this share of it.
        max_sweeps: the most sweeps made.

    Returns:
        A Tucker2 whose certificate is **in the metric**: distances and norms are
        ‖(ΔW_l − ΔŴ_l) C_l^{1/2}‖ and ‖ΔW_l C_l^{1/2}‖, `lower` is the tail of the unfolding along
        the outputs, and `upper` the error it began with. `distance` gives the plain error.

    Raises:
        RankError: the ranks are not fixed, or out of range.
        FormatError: a metric does not fit the stack.
        OptionError: a diagonal has negative or infinite entries.
        DerivativeError: torch would record the decomposition.

    Cost: for factors of k columns 4·L·n·k·r2 flops an inner step (2·L·n·r2 for diagonals) and
    2·L·n·r2² beside, 12 inner steps a sweep; memory of the factors in float64.
    """
    rule = as_rule(ranks)
    if not isinstance(rule, FixedRank):
        raise RankError(f"ranks must be fixed in a metric, as (r1, r2); found {rule!r}")
    refuse_gradient("hooi_in_metric", stack)
    dtype = asked_dtype(stack, dtype)
    xp = common_namespace(stack)
    lora = as_lora(astype(stack, "float64"))
    factors = _factors(stack, metric, xp=xp)
    shares = None if weights is None else layer_weighting(stack, weights)
    weighed = factors
    if shares is not None:
        weighed = [f * float(w) ** 0.5 for f, w in zip(factors, shares, strict=True)]
    start = hooi(lora, rule, weights=weights)
    if 0 in start.ranks:
        u, v, sweeps = start.u, start.v, 0
    else:
        u, v, errors = alternate_in_metric(
            lora, weighed, start.v, start.ranks[0], tolerance, max_sweeps, xp=xp
        )
        sweeps = len(errors) - 1
    u, v = (cast(fix_signs(x, xp=xp), dtype, xp=xp) for x in (u, v))
    weight = None if shares is None else xp.asarray(shares, device=lora.up.device)
    return _certified(lora, u, v, (factors, weighed), (dtype, sweeps, weight), start, xp=xp)


@door
def metric_distances(a: Stack, b: Stack, metric: Metric) -> Array:
    """‖(a_l − b_l) C_l^{1/2}‖ of each layer: (L,) float64.

    Args:
        a: any stack (L, m, n).
        b: any stack of the same shape, library, dtype and device.
        metric: as for `hooi_in_metric`.

    Raises:
        FormatError: shapes differ, or the metric does not fit.

    Cost: that of `distance`, and the products of the input factors with F.
    """
    xp = common_namespace(a, b)
    factors = _factors(a, metric, xp=xp)
    return layer_distances(in_metric(a, factors, xp=xp), in_metric(b, factors, xp=xp))


def in_metric(stack: Stack, factors: Sequence[Array], *, xp: Namespace) -> LoRAStack:
    """The stack with layer l times F_l, (L, m, k), in float64; each F_l a diagonal or (n, k_l)."""
    lora = as_lora(astype(stack, "float64"))
    down = [
        xp.matrix_transpose(_seen(f, xp.matrix_transpose(lora.down[part, :]), xp=xp))
        for part, f in zip(lora.slices, factors, strict=True)
    ]
    widest = max(int(part.shape[1]) for part in down)  # zero columns change no norm
    padded = [zero_blocks(part, 1, 0, widest - int(part.shape[1]), xp=xp) for part in down]
    return LoRAStack(lora.up, xp.concat(padded, axis=0), lora.ranks)


def _seen(factor: Array, y: Array, *, xp: Namespace) -> Array:
    """Fᵀ y for y (n, r)."""
    return factor[:, None] * y if factor.ndim == 1 else xp.matrix_transpose(factor) @ y


def _back(factor: Array, z: Array) -> Array:
    """F z for z (k, r)."""
    return factor[:, None] * z if factor.ndim == 1 else factor @ z


def _factors(stack: Stack, metric: Metric, *, xp: Namespace) -> list[Array]:
    """One float64 factor a layer: the root of a diagonal, or F (n, k)."""
    layers, _, n = stack.shape
    shared = hasattr(metric, "ndim")
    given = [metric] * layers if shared else list(metric)
    if len(given) != layers:
        raise FormatError(
            f"metric must be one array or one for each of {layers} layers; found {len(given)}"
        )
    checked: dict[int, Array] = {}
    for index, one in enumerate(given):
        if id(one) not in checked:
            checked[id(one)] = _factor(one, "" if shared else f" of layer {index}", n, xp=xp)
    return [checked[id(one)] for one in given]


def _factor(metric: Array, where: str, n: int, *, xp: Namespace) -> Array:
    if metric.ndim not in (1, 2) or metric.shape[0] != n:
        raise FormatError(
            f"the metric{where} must be a diagonal ({n},) or a factor ({n}, k); found shape "
            f"{tuple(metric.shape)}"
        )
    namespace_of(metric=metric)
    wide = float64(metric, xp=xp)
    values = to_numpy(wide)
    finite = bool(abs(values).max(initial=0.0) < float("inf"))
    if not finite or (metric.ndim == 1 and values.min(initial=0.0) < 0):
        raise OptionError(f"the metric{where} must be finite, and a diagonal at least 0")
    return xp.sqrt(wide) if metric.ndim == 1 else wide


@dataclass(frozen=True)
class _Problem:
    """A_l = x_l p_lᵀ, the layers as their inputs see them, and F_l."""

    x: tuple[Array, ...]  # (K, r_l): outputs in an orthonormal basis
    p: tuple[Array, ...]  # (k, r_l)
    factors: Sequence[Array]


def alternate_in_metric(
    stack: LoRAStack,
    factors: Sequence[Array],
    v: Array,
    r1: int,
    tolerance: float,
    max_sweeps: int,
    *,
    xp: Namespace,
) -> tuple[Array, Array, list[float]]:
    """U (m, r1) orthonormal, V (n, r2), and the squared errors, first and after each sweep."""
    # they are ‖A‖² minus what is kept: good for comparing sweeps, not for reporting
    basis, coordinates = qr(stack.up, xp=xp)
    problem = _Problem(
        tuple(coordinates[:, part] for part in stack.slices),
        tuple(
            _seen(f, xp.matrix_transpose(stack.down[part, :]), xp=xp)
            for part, f in zip(stack.slices, factors, strict=True)
        ),
        factors,
    )
    triangles = [triangle_of(p, xp=xp) for p in problem.p]
    total = sum(
        float(xp.sum((x @ xp.matrix_transpose(t)) ** 2))
        for x, t in zip(problem.x, triangles, strict=True)
    )
    left, cores, kept = _best_left(problem, v, r1, xp=xp)
    errors = [max(total - kept, 0.0)]
    for _ in range(max_sweeps):
        candidate = qr(_improved_right(problem, left, cores, v, xp=xp), xp=xp)[0]
        after = _best_left(problem, candidate, r1, xp=xp)
        if after[2] < kept:  # rounding, at the very end
            break
        v, (left, cores, kept) = candidate, after
        errors.append(max(total - kept, 0.0))
        if errors[-2] - errors[-1] <= tolerance * errors[-2]:
            break
    return basis @ left, v, errors


def _best_left(
    problem: _Problem, v: Array, r1: int, *, xp: Namespace
) -> tuple[Array, list[Array], float]:
    """For a given V: the best U in the basis (K, r1), the best cores, and the squared norm kept."""
    projected, inverses = [], []
    for x, p, f in zip(problem.x, problem.p, problem.factors, strict=True):
        q, s, wt = svd(_seen(f, v, xp=xp), xp=xp)
        kept = s > 1e-12 * xp.max(s)
        safe = xp.where(kept, s, xp.ones_like(s))
        # inputs that a layer does not see leave directions of V undetermined: they get no core
        inverses.append((xp.where(kept, 1 / safe, xp.zeros_like(s)))[:, None] * wt)
        projected.append(x @ (xp.matrix_transpose(p) @ (q * xp.astype(kept, q.dtype)[None, :])))
    u, s, _ = svd(xp.concat(projected, axis=1), xp=xp)
    u = u[:, :r1]
    cores = [
        (xp.matrix_transpose(u) @ a) @ inverse
        for a, inverse in zip(projected, inverses, strict=True)
    ]
    return u, cores, float(xp.sum(s[:r1] ** 2))


def _improved_right(
    problem: _Problem, u: Array, cores: Sequence[Array], v: Array, *, xp: Namespace
) -> Array:
    """V after some conjugate gradient steps on Σ ‖Uᵀ A_l − G_l Vᵀ F_l‖², from V as it is."""
    # preconditioned by Σ G_lᵀ G_l, so that the sizes of the directions do not matter
    grams = [xp.matrix_transpose(g) @ g for g in cores]

    def normal(z: Array) -> Array:
        total = xp.zeros_like(z)
        for f, gram in zip(problem.factors, grams, strict=True):
            total = total + _back(f, _seen(f, z, xp=xp)) @ gram
        return total

    wanted = xp.zeros_like(v)
    for x, p, f, g in zip(problem.x, problem.p, problem.factors, cores, strict=True):
        wanted = wanted + _back(f, p @ (xp.matrix_transpose(x) @ (u @ g)))
    conditioner = pinv(sum(grams[1:], grams[0]), xp=xp)
    residual = wanted - normal(v)
    direction = scaled = residual @ conditioner
    size = xp.sum(residual * scaled)
    for _ in range(INNER_STEPS):
        if float(size) <= 0:
            break
        image = normal(direction)
        step = size / xp.sum(direction * image)
        v, residual = v + step * direction, residual - step * image
        scaled = residual @ conditioner
        size, before = xp.sum(residual * scaled), size
        direction = scaled + (size / before) * direction
    return v


def _certified(
    stack: LoRAStack,
    u: Array,
    v: Array,
    metrics: tuple[Sequence[Array], Sequence[Array]],
    how: tuple[str, int, Array | None],
    start: Tucker2,
    *,
    xp: Namespace,
) -> Tucker2:
    """The best cores for the factors as stored, and errors in the metric of what is stored."""
    factors, weighed = metrics
    dtype, sweeps, weights = how
    left, right = float64(u, xp=xp), float64(v, xp=xp)
    to_u = pinv(left, xp=xp)
    cores, distances, norms = [], [], []
    for index, (part, f) in enumerate(zip(stack.slices, factors, strict=True)):
        seen = _seen(f, right, xp=xp)
        y = _seen(f, xp.matrix_transpose(stack.down[part, :]), xp=xp)
        inside = (to_u @ stack.up[:, part]) @ xp.matrix_transpose(pinv(seen, xp=xp) @ y)
        cores.append(narrow(inside, dtype, xp=xp))
        truth = LoRAStack(stack.up[:, part], xp.matrix_transpose(y), (stack.ranks[index],))
        stored = Tucker2(left, xp.stack([float64(cores[-1], xp=xp)]), seen)
        distances.append(layer_distances(truth, stored)[0])
        norms.append(layer_norms(truth)[0])
    lower, upper = _bounds(stack, start, weighed, dtype, xp=xp)
    certificate = Certificate(
        xp.stack(distances), xp.stack(norms), lower, upper, "hooi in metric", sweeps, weights
    )
    return Tucker2(u, xp.stack(cores), v, certificate)


def _bounds(
    stack: LoRAStack, start: Tucker2, weighed: Sequence[Array], dtype: str, *, xp: Namespace
) -> tuple[Array, Array]:
    """The tail of the unfolding along the outputs, and the error to begin with."""
    seen = in_metric(stack, weighed, xp=xp)
    space = core_space(seen)
    tail = root_sum_squares(space.left.sigma[start.ranks[0] :])
    noise = space.norm * (4 * UNIT_ROUNDOFF["float64"] * space.left.sigma.shape[0] ** 0.5)
    begun = root_sum_squares(layer_distances(seen, in_metric(start, weighed, xp=xp)))
    rounding = UNIT_ROUNDOFF[dtype] * (1 + sum(rank**0.5 for rank in start.ranks))
    below = beyond(tail, noise)
    return below, begun + (rounding + 2.0**-44) * space.norm
