"""Merging: several updates of one module as one, on factors and cores."""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, assert_never

import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import UNIT_ROUNDOFF, Array, Namespace, cast, float64, narrow, to_numpy
from lotr_tn.decompose.core_merging import in_common_basis, merge_cores
from lotr_tn.decompose.gauges import require_count
from lotr_tn.decompose.guarded import guarded_in_its_format
from lotr_tn.decompose.search import asked_dtype
from lotr_tn.errors import FormatError, OptionError, not_among
from lotr_tn.formats import Dense, Format, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.linalg import smallest_rank, svd_of_product
from lotr_tn.linalg.bases import signs
from lotr_tn.linalg.ranks import tail_energies
from lotr_tn.ops.arrays import arrays_of, common_namespace, storage_dtype, with_arrays
from lotr_tn.ops.checks import refuse_gradient
from lotr_tn.ops.inner import inner
from lotr_tn.ops.norms import layer_norms, root_sum_squares
from lotr_tn.ops.primitives import layered_field, lowered
from lotr_tn.ops.stacking import take_layers

MergeMethod: TypeAlias = Literal["linear", "ties", "dare", "dare-ties", "slerp"]
"""How updates are merged."""

MERGE_METHODS = ("linear", "ties", "dare", "dare-ties", "slerp")

ROUNDING = 8 * UNIT_ROUNDOFF["float64"]
"""Share of the sizes of factors that the float64 arithmetic on them may lose."""

PARALLEL = 1e-6  # angle below which a great circle is a straight line, to 1e-13

LARGEST_WEIGHT = 1e30
"""With it the factors of what is merged still fit float32."""

OPPOSITE = 1e-4
"""Angle to the opposite direction below which no way is shortest; there 8 digits are left."""


@door
@guarded_in_its_format
def merge(
    stack: Stack,
    weights: Sequence[float],
    *,
    method: MergeMethod = "linear",
    density: float = 1.0,
    seed: int = 0,
    dtype: str | None = None,
) -> Stack:
    """L updates of one module as one update.

    Layer l of the stack is the update ΔW_l that adapter l makes to the module. Every method is a
    function of the weighted updates w_l ΔW_l alone, whatever their factors.

    - "linear": Σ w_l ΔW_l, exactly. No products of one adapter's factors with another's come in.
    - "slerp": for two updates, c_1 ΔW_1 + c_2 ΔW_2 with t = w_2 / (w_1 + w_2), θ the angle between
      both updates, c_1 = sin((1 − t) θ) / sin θ and c_2 = sin(t θ) / sin θ; 1 − t and t where they
      are parallel or one is zero.
    - "ties": on the cores C_l of w_l ΔW_l = U C_l Vᵀ, in the orthonormal HOSVD basis of all w_l
      ΔW_l together. Each core keeps its ⌊density · size⌋ entries of largest magnitude, at least
      one; each place takes the sign of the sum of what is kept there, and the mean of the entries
      that have this sign. TIES then multiplies by λ: here the weights do, all of them λ. Where the
      entries cancel, no sign is elected, and the place is 0.
    - "dare": each entry of each core is kept with probability `density` and divided by it, or
      dropped; then the sum. Its mean over seeds is "linear".
    - "dare-ties": the same draw, then signs and means as for "ties".

    Args:
        stack: any stack (L, m, n).
        weights: L numbers of any sign; for "slerp" two of at least 0.
        method: as above.
        density: the share of entries that "ties" and "dare" keep, above 0 and at most 1.
        seed: of the draw; the same seed draws the same on every library and device.
        dtype: storage dtype of the result; the stack's own where left out.

    Returns:
        A stack (1, m, n). For "linear" and "slerp" it has the stack's format: shared factors are
        returned as they are, with one new core, and a `LoRAStack` or `LowRankTucker2` comes out in
        the rank that the sum has, which may be 0; a registered format that is linear in no one
        field comes out in its hub. For the others it is a `Tucker2` in the HOSVD basis.

    Raises:
        OptionError: the method, the density, the seed or the weights make no sense; a weight is
            above 1e30 in size.
        FormatError: "slerp" of two opposite updates; or an entry too large for float16.
        DerivativeError: torch would record the merging.

    Cost: L·r1·r2 flops for the sum of Tucker-2 cores, O((m + n)·R²) for LoRA with R = Σ r_l; for
    the others O((m + n)·R²) and L·K1·K2 numbers, with K1, K2 ≤ R for the ranks of the basis.
    Accuracy: computed in float64 and rounded once. The HOSVD basis is unique where the singular
    values of the unfoldings differ; entries that hold only rounding count as zero.
    Source: Yadav et al. (2023), TIES-Merging; Yu et al. (2024), DARE; Shoemake (1985), slerp;
    Panariello et al. (2025), arXiv 2509.17786, merging in a common core space.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import LoRAStack, merge
        >>> rng = np.random.default_rng(0)
        >>> two = LoRAStack(rng.standard_normal((9, 5)), rng.standard_normal((5, 7)), (2, 3))
        >>> merge(two, (1, -0.5)).ranks, merge(two, (1, 1), method="ties", density=0.2).ranks
        ((5,), (5, 5))
    """
    weights = require_weights(weights, stack.shape[0])
    require_merging(method, density, seed)
    refuse_gradient("merge", stack)
    dtype = asked_dtype(stack, dtype)
    if method == "slerp":
        weights = _slerp_weights(stack, weights)
    kept = [layer for layer, weight in enumerate(weights) if weight != 0] or [0]
    stack, weights = take_layers(stack, kept), tuple(weights[layer] for layer in kept)
    if method in ("linear", "slerp"):
        return _sum(stack, weights, dtype)
    xp = common_namespace(stack)
    found, noise = in_common_basis(stack, weights, storage_dtype(stack) == "float64", xp=xp)
    core = merge_cores(found.core, noise, method, density, [seed], xp=xp)
    u, core, v = (narrow(x, dtype, xp=xp) for x in (found.u, xp.expand_dims(core, axis=0), found.v))
    return Tucker2(u, core, v)


def merged_core(
    small: LoRAStack,
    weights: Sequence[float],
    *,
    method: MergeMethod,
    density: float,
    entropy: Sequence[int],
    wide: bool,
) -> Array:
    """The one core (k1, k2) float64 of L updates that are small already, in orthonormal bases."""
    # `entropy` seeds the draw; `wide` (stored in float64) decides what counts as rounding
    xp = common_namespace(small)
    if method in ("linear", "slerp"):
        parts = zip(small.slices, weights, strict=True)
        return xp.concat([small.up[:, part] * w for part, w in parts], axis=1) @ small.down
    found, noise = in_common_basis(small, weights, wide, xp=xp)
    core = merge_cores(found.core, noise, method, density, entropy, xp=xp)
    return found.u @ core @ xp.matrix_transpose(found.v)


def exact_rank(s: np.ndarray, noise: float, dtype: str) -> int:
    """How many singular values (k,) of a sum are more than rounding."""
    # float64 leaves the size `noise`, of terms that cancel; narrower results 6e-8 of their norm
    if not s.size or s[0] == 0:
        return 0
    _, exponent = math.frexp(s[0])  # so that squares of very large or small updates are numbers
    tails = tail_energies(np.ldexp(s, -exponent))
    share = min(UNIT_ROUNDOFF[dtype], UNIT_ROUNDOFF["float32"])
    lost = min(float(np.ldexp(noise, -exponent)), float(s.size))
    return smallest_rank(tails, max(lost**2, share**2 * float(tails[0])))


def slerp_coefficients(
    weights: Sequence[float], norms: tuple[float, float], product: float
) -> tuple[float, float]:
    """What spherical interpolation multiplies two updates with.

    Args:
        weights: two of at least 0, not both 0; t is the share of the second.
        norms: ‖a‖ and ‖b‖.
        product: ⟨a, b⟩.

    Raises:
        OptionError: other weights.
        FormatError: the updates point in opposite directions.

    Source: Shoemake (1985), Animating rotation with quaternion curves.

    Examples:
        >>> [round(c, 6) for c in slerp_coefficients((1, 1), (2.0, 3.0), 0.0)]
        [0.707107, 0.707107]
    """
    require_slerp(weights)
    size = max(weights)  # so that the sum does not overflow
    t = weights[1] / size / (weights[0] / size + weights[1] / size)
    if 0 in norms:
        return 1 - t, t
    angle = math.acos(max(-1.0, min(1.0, product / norms[0] / norms[1])))
    if angle < PARALLEL:
        return 1 - t, t
    if math.pi - angle < OPPOSITE:
        raise FormatError(
            "slerp has no shortest way between updates of opposite directions, and these are "
            f"{math.pi - angle:.1g} rad from it; use method linear"
        )
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def require_slerp(weights: Sequence[float]) -> None:
    """Refuse weights that lie on no way from one update to another."""
    if len(weights) != 2:
        raise OptionError(
            f"slerp goes from one update to another, so it takes two; found {len(weights)}: use "
            "method linear for more"
        )
    if min(weights) < 0 or max(weights) == 0:
        raise OptionError(
            f"slerp takes two weights of at least 0, of which one is above 0; found "
            f"{weights[0]:g} and {weights[1]:g}: use method linear for differences"
        )


def require_merging(method: str, density: float, seed: int) -> None:
    """Refuse an unknown method, a density outside (0, 1], or a seed that is none."""
    if method not in MERGE_METHODS:
        raise OptionError(not_among("method", method, [*MERGE_METHODS]))
    if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
        raise OptionError(f"density must be above 0 and at most 1; found {density!r}")
    require_count("seed", seed)


def require_weights(weights: Sequence[float], layers: int) -> tuple[float, ...]:
    """The weights as floats, where they are L finite numbers, none of them huge."""
    try:
        found = tuple(float(weight) for weight in weights)
    except (TypeError, ValueError):
        found = ()
    if len(found) != layers or not all(map(math.isfinite, found)):
        shown = str(list(weights)) if isinstance(weights, Sequence) else repr(weights)
        raise OptionError(
            f"weights must be finite numbers, one for each of {layers} updates; found {shown}"
        )
    if max(map(abs, found)) > LARGEST_WEIGHT:
        raise OptionError(
            f"weights must be at most {LARGEST_WEIGHT:g} in size; found {max(found, key=abs):g}"
        )
    return found


def _slerp_weights(stack: Stack, weights: tuple[float, ...]) -> tuple[float, ...]:
    require_slerp(weights)
    norms = to_numpy(layer_norms(stack))
    product = float(inner(take_layers(stack, [0]), take_layers(stack, [1])))
    return slerp_coefficients(weights, (float(norms[0]), float(norms[1])), product)


def _sum(stack: Stack, weights: tuple[float, ...], dtype: str) -> Stack:
    """Σ w_l ΔW_l in the stack's format."""
    xp = common_namespace(stack)
    if isinstance(stack, Format):
        if (name := layered_field("take_layers", stack)) is None:
            return _sum(lowered(stack), weights, dtype)
        arrays = {key: cast(x, dtype, xp=xp) for key, x in arrays_of(stack).items()}
        arrays[name] = _total(getattr(stack, name), weights, dtype, xp=xp)
        return with_arrays(stack, **arrays)
    match stack:
        case Tucker2():
            u, v = cast(stack.u, dtype, xp=xp), cast(stack.v, dtype, xp=xp)
            return Tucker2(u, _total(stack.core, weights, dtype, xp=xp), v)
        case Tucker1():
            own = _total(stack.own, weights, dtype, xp=xp)
            return Tucker1(cast(stack.shared, dtype, xp=xp), own, stack.side)
        case Dense():
            return Dense(_total(stack.w, weights, dtype, xp=xp))
        case LowRankTucker2():
            # what is small between factors of any lengths may be large outside: only what
            # float64 itself rounds is cut off
            up, down = _sum_of_products(stack, weights, "float64", xp=xp)
            u, up, down, v = (narrow(x, dtype, xp=xp) for x in (stack.u, up, down, stack.v))
            return LowRankTucker2(u, up, down, v, (int(up.shape[1]),))
        case LoRAStack():
            up, down = _sum_of_products(stack, weights, dtype, xp=xp)
            up, down = narrow(up, dtype, xp=xp), narrow(down, dtype, xp=xp)
            return LoRAStack(up, down, (int(up.shape[1]),))
        case never:
            assert_never(never)


def _total(x: Array, weights: Sequence[float], dtype: str, *, xp: Namespace) -> Array:
    """Σ w_l x_l of (L, …) as (1, …), one layer at a time."""
    total = float64(x[0, ...], xp=xp) * weights[0]
    for index, weight in enumerate(weights[1:], 1):
        total = total + float64(x[index, ...], xp=xp) * weight
    return narrow(xp.expand_dims(total, axis=0), dtype, xp=xp)


def _sum_of_products(
    stack: LoRAStack | LowRankTucker2, weights: Sequence[float], dtype: str, *, xp: Namespace
) -> tuple[Array, Array]:
    """Σ w_l up_l down_l as float64 factors (m, k) and (k, n) of equal norm and least rank k."""
    up, down = float64(stack.up, xp=xp), float64(stack.down, xp=xp)
    if 0 in up.shape or 0 in down.shape:
        return up[:, :0], down[:0, :]
    ups, noise = [], 0.0
    for part, weight in zip(stack.slices, weights, strict=True):
        ups.append(up[:, part] * weight)
        sizes = root_sum_squares(ups[-1]) * root_sum_squares(down[part, :])
        noise += ROUNDING * float(sizes)
    u, s, vt = svd_of_product(xp.concat(ups, axis=1), down)
    rank = exact_rank(to_numpy(s), noise, dtype)
    u, root, vt = u[:, :rank], xp.sqrt(s[:rank]), vt[:rank, :]
    sign = signs(u, xp=xp)
    return u * (sign * root)[None, :], (sign * root)[:, None] * vt
