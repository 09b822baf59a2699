"""Gauges: how the size of an update is shared out between its factors.

U G Vᵀ = (U A)(A⁻¹ G B⁻ᵀ)(V B)ᵀ for all invertible A and B. These factors are equal for whoever
applies them, but a gradient step on one is measured by the sizes of the others.
"""

import math
from typing import Any, Literal, TypeAlias, TypeVar, assert_never, overload

import array_api_compat.numpy as numpy_namespace
import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import (
    UNIT_ROUNDOFF,
    Array,
    Namespace,
    dtype_name,
    float64,
    from_numpy,
    narrow,
    require_dtype,
)
from lotr_tn.decompose.assemble import fix_signs
from lotr_tn.errors import FormatError, OptionError, RankError
from lotr_tn.formats import Dense, Format, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.linalg import svd_of_product
from lotr_tn.linalg.bases import signs
from lotr_tn.linalg.factor import qr, svd
from lotr_tn.linalg.ranks import FixedRank, RankRule
from lotr_tn.ops.arrays import common_namespace
from lotr_tn.ops.checks import refuse_gradient
from lotr_tn.ops.norms import root_sum_squares
from lotr_tn.ops.padding import zero_blocks
from lotr_tn.ops.primitives import by_rule_or_hub

Gauge: TypeAlias = Literal["orthonormal", "balanced", "equalised"]  # gauges of a given update

RandomGauge: TypeAlias = Literal["orthonormal", "balanced", "equalised", "normal"]
"""Gauges of random factors around a core of zeros."""

GAUGES = ("orthonormal", "balanced", "equalised")

Kind = TypeVar("Kind", LoRAStack, Tucker2)


@overload
@door
def regauge(stack: Kind, gauge: Gauge) -> Kind: ...
@overload
@door
def regauge(stack: Stack, gauge: Gauge) -> Stack: ...
@door
def regauge(stack: Stack, gauge: Gauge) -> Stack:
    """The same updates in another gauge.

    - "orthonormal": the columns of U and V (of each layer's `up`) are orthonormal, and the core
      (`down`) carries all sizes.
    - "balanced": each column also carries the root of its singular value: U √σ and V √τ around
      the core G[p, q] / √(σ_p τ_q), with the singular values σ and τ of the stack's two
      unfoldings; U √s and √s Vᵀ for each layer of a LoRA.
    - "equalised": the orthonormal factors times one number each, so that u, core and v (each
      layer's `up` and `down`) have one Frobenius norm.

    Columns are singular vectors, largest first, and in each the entry of largest size is positive.
    A direction without size, whose singular value is rounding, stays a direction that training can
    use: its column is as long as the shortest one that has a size (1 where none has), and the
    zeros are in the core (`down`). A zero update has no norm to share out, so "equalised" leaves
    it orthonormal.

    Args:
        stack: a `Tucker2` or a `LoRAStack`, of any ranks; or a registered format with a rule
            `regauge`, or whose hub is one of these, in which it then comes out.
        gauge: "orthonormal", "balanced" or "equalised".

    Returns:
        A stack of the same format and dtype, without certificate. Ranks stay, but for those above
        what the matrices have: r1 ≤ m and r2 ≤ n come out, and at most min(m, n) for each LoRA.

    Raises:
        OptionError: an unknown gauge.
        FormatError: the stack is a `Dense`, a `Tucker1` or a `LowRankTucker2`, or an entry does not
            fit float16.
        DerivativeError: torch would record the change.

    Cost: 4·(m·r1² + n·r2²) flops and O(L·r1·r2·(r1 + r2)) for Tucker-2, O((m + n)·r_l²) a layer
    for LoRA; a few float64 copies of the factors.
    Accuracy: computed in float64, and each array rounded once to its dtype.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import LoRAStack
        >>> regauge(LoRAStack(np.full((2, 1), 8.0), np.ones((1, 2)), (1,)), "equalised")
        LoRAStack(up=[[2.82842712], [2.82842712]], down=[[2.82842712, 2.82842712]], ranks=(1,))
    """
    require_gauge(gauge, GAUGES)
    if isinstance(stack, Format):
        return by_rule_or_hub(regauge, stack, gauge)
    refuse_gradient("regauge", stack)
    xp = common_namespace(stack)
    match stack:
        case LoRAStack():
            return _lora(stack, gauge, xp=xp)
        case Tucker2():
            return stack if 0 in stack.ranks else _tucker2(stack, gauge, xp=xp)
        case LowRankTucker2() | Tucker1() | Dense():
            found = type(stack).__name__
            raise FormatError(f"regauge takes a Tucker2 or a LoRAStack; found {found}: convert it")
        case never:
            assert_never(never)


def _tucker2(stack: Tucker2, gauge: Gauge, *, xp: Namespace) -> Tucker2:
    dtype = dtype_name(stack.u)
    (q_left, r_left), (q_right, r_right) = qr(stack.u, xp=xp), qr(stack.v, xp=xp)
    core = r_left @ float64(stack.core, xp=xp) @ xp.matrix_transpose(r_right)
    (left, sigma), (right, tau) = _axes(core, xp=xp), _axes(xp.matrix_transpose(core), xp=xp)
    u, v = fix_signs(q_left @ left, xp=xp), fix_signs(q_right @ right, xp=xp)
    left, right = xp.matrix_transpose(q_left) @ u, xp.matrix_transpose(q_right) @ v
    core = xp.matrix_transpose(left) @ core @ right  # of the columns with their final signs
    if gauge == "balanced":
        a, b = (xp.sqrt(_lengths(s, dtype, xp=xp)) for s in (sigma, tau))
        u, core, v = u * a[None, :], core / (a[:, None] * b[None, :]), v * b[None, :]
    elif gauge == "equalised":
        norm = _norm_or_one(core, xp=xp)
        r1, r2 = core.shape[1:]
        given = xp.any(core != 0)
        each = xp.where(given, (norm * math.sqrt(r1 * r2)) ** (1 / 3), xp.ones_like(norm))
        u, v = (x * xp.where(given, each / math.sqrt(x.shape[1]), each) for x in (u, v))
        core = core * (each / norm)
    return Tucker2(*(narrow(x, dtype, xp=xp) for x in (u, core, v)))


def _axes(core: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Left singular vectors (k, k) and values (k,) of the cores (L, k, j) side by side."""
    layers, k, j = core.shape
    beside = xp.reshape(xp.permute_dims(core, (1, 0, 2)), (k, layers * j))
    if layers * j < k:  # so that there are k vectors, orthonormal beyond the values' number too
        beside = zero_blocks(beside, 1, 0, k - layers * j, xp=xp)
    u, s, _ = svd(beside, xp=xp)
    return u, s


def _lora(stack: LoRAStack, gauge: Gauge, *, xp: Namespace) -> LoRAStack:
    dtype = dtype_name(stack.up)
    ups, downs = [stack.up[:, :0]], [stack.down[:0, :]]
    ranks = []
    for part in stack.slices:
        up, down = stack.up[:, part], stack.down[part, :]
        if part.stop > part.start:
            up, down = _lora_layer(up, down, gauge, dtype, xp=xp)
        ups.append(narrow(up, dtype, xp=xp))
        downs.append(narrow(down, dtype, xp=xp))
        ranks.append(int(down.shape[0]))
    return LoRAStack(xp.concat(ups, axis=1), xp.concat(downs, axis=0), tuple(ranks))


def _lora_layer(
    up: Array, down: Array, gauge: Gauge, dtype: str, *, xp: Namespace
) -> tuple[Array, Array]:
    vectors, s, vt = svd_of_product(up, down)
    sign = signs(vectors, xp=xp)
    u, vt = vectors * sign[None, :], sign[:, None] * vt
    if gauge == "balanced":
        root = xp.sqrt(_lengths(s, dtype, xp=xp))
        return u * root[None, :], (s / root)[:, None] * vt
    down = s[:, None] * vt
    if gauge == "equalised":
        norm = _norm_or_one(s, xp=xp)
        share = xp.where(xp.any(s != 0), norm / math.sqrt(s.shape[0]), norm) ** 0.5
        return u * share, down / share
    return u, down


def _lengths(s: Array, dtype: str, *, xp: Namespace) -> Array:
    """Singular values (k,), with the smallest that is not rounding in place of those that are."""
    floor = max(4 * UNIT_ROUNDOFF[dtype], 64 * UNIT_ROUNDOFF["float64"])
    kept = s > floor * s[0]
    smallest = xp.min(xp.where(kept, s, s[0]))
    smallest = xp.where(smallest > 0, smallest, xp.ones_like(smallest))
    return xp.where(kept, s, smallest)


def widened(stack: Kind, rule: RankRule) -> Kind:
    """The stack with columns of zeros up to the ranks that a rule names, else as it is."""
    # a gauge makes directions of them
    if not isinstance(rule, FixedRank):
        return stack
    return _widened_lora(stack, rule) if isinstance(stack, LoRAStack) else _widened(stack, rule)


def _widened(stack: Tucker2, rule: FixedRank) -> Tucker2:
    xp = common_namespace(stack)
    down, across = (r - has for r, has in zip(rule.pair, stack.ranks, strict=True))
    core = zero_blocks(zero_blocks(stack.core, 1, 0, down, xp=xp), 2, 0, across, xp=xp)
    u, v = zero_blocks(stack.u, 1, 0, down, xp=xp), zero_blocks(stack.v, 1, 0, across, xp=xp)
    return Tucker2(u, core, v)


def _widened_lora(stack: LoRAStack, rule: FixedRank) -> LoRAStack:
    xp = common_namespace(stack)
    ups, downs = [], []
    for part, rank in zip(stack.slices, stack.ranks, strict=True):
        ups.append(zero_blocks(stack.up[:, part], 1, 0, rule.r1 - rank, xp=xp))
        downs.append(zero_blocks(stack.down[part, :], 0, 0, rule.r1 - rank, xp=xp))
    ranks = (rule.r1,) * len(stack.ranks)
    return LoRAStack(xp.concat(ups, axis=1), xp.concat(downs, axis=0), ranks)


def _norm_or_one(x: Array, *, xp: Namespace) -> Array:
    norm = root_sum_squares(x)
    return xp.where(norm > 0, norm, xp.ones_like(norm))


@door
def random_factors(
    shape: tuple[int, int, int],
    ranks: tuple[int, int],
    *,
    gauge: RandomGauge = "balanced",
    seed: int = 0,
    dtype: str = "float32",
    backend: Literal["numpy", "torch"] = "numpy",
    device: str | None = None,
) -> Tucker2:
    """Random U and V around a core of zeros: an update of exactly zero, ready to be trained.

    While the core is zero, so is the gradient of U and V. A first step of size η therefore goes to
    the cores alone: G_l = −η Uᵀ D_l V, for the gradient D_l (m, n) of the loss by ΔW_l, and

        ΔW_l = −η U Uᵀ D_l V Vᵀ.

    How large that is beside the step −η D_l of full fine-tuning is the gauge's `first_step_gain`:

    - "orthonormal": orthonormal columns; √(r1 r2 / (m n)), the share of D in random subspaces.
    - "balanced": those times (m / r1)^¼ in U and (n / r2)^¼ in V; 1. Each side alone keeps the
      mean square of what passes it.
    - "equalised": those times numbers that give U and V one Frobenius norm, (m n r1 r2)^⅛; 1.
    - "normal": entries N(0, 1); √(r1 (r1 + m + 1) r2 (r2 + n + 1)), a little above √(m n r1 r2), so
      a learning rate that suits one size or rank does not suit another.

    Args:
        shape: (L, m, n).
        ranks: (r1, r2), from 1 to m and from 1 to n.
        gauge: as above.
        seed: the same seed gives the same numbers in every library.
        dtype: storage dtype.
        backend: "numpy" or "torch".
        device: where the arrays shall be, for torch.

    Raises:
        OptionError: the gauge is unknown, or the shape or the seed makes no sense.
        RankError: a rank is out of its range.
        BackendError: no such dtype, backend or device.

    Cost: 4·(m·r1² + n·r2²) flops, on the host.
    Source: the entries N(0, 1) are those of the LoTR authors' code, Bershatsky et al. (2024).

    Examples:
        >>> stack = random_factors((12, 40, 30), (4, 3))
        >>> stack.shape, stack.ranks, float(abs(stack.core).max())
        ((12, 40, 30), (4, 3), 0.0)
    """
    require_gauge(gauge, (*GAUGES, "normal"))
    (layers, m, n), (r1, r2) = _sizes(shape, ranks)
    require_dtype(dtype)
    require_count("seed", seed)
    rng = np.random.default_rng(seed)
    u, v = rng.standard_normal((m, r1)), rng.standard_normal((n, r2))
    if gauge != "normal":
        a, b = _column_lengths(m, n, r1, r2, gauge)
        u, v = a * _orthonormal(u), b * _orthonormal(v)
    arrays = (narrow(x, dtype, xp=numpy_namespace) for x in (u, np.zeros((layers, r1, r2)), v))
    return Tucker2(*(from_numpy(x, backend=backend, device=device) for x in arrays))


@door
def first_step_gain(
    shape: tuple[int, int, int], ranks: tuple[int, int], gauge: RandomGauge = "balanced"
) -> float:
    """(E‖ΔW_l‖² / ‖η D_l‖²)^½ after the first step on the cores of `random_factors`.

    The mean is over the factors, and the same for every gradient D that does not depend on them.
    U and V are independent, and E (U Uᵀ)² and E (V Vᵀ)² are multiples α I and β I of the identity
    since no direction is special. So with ΔW = −η U Uᵀ D V Vᵀ

        E‖ΔW‖² = η² E tr(Dᵀ (U Uᵀ)² D (V Vᵀ)²) = η² α β ‖D‖².

    For columns a·q_i, orthonormal but for a, (U Uᵀ)² = a⁴ Σ q_i q_iᵀ has trace a⁴ r1 on m
    directions: α = a⁴ r1 / m. For entries N(0, 1), tr (U Uᵀ)² = Σ_ij (u_iᵀ u_j)² has r1 terms with
    i = j and mean m (m + 2), and r1 (r1 − 1) others with mean m: α = r1 (r1 + m + 1). The same
    holds for β.

    A scale s that training puts before U G Vᵀ multiplies the gain by s²: it meets the gradient on
    its way back, and the core on its way forth.

    Args:
        shape: (L, m, n); L does not matter.
        ranks: (r1, r2).
        gauge: as for `random_factors`.

    Raises:
        OptionError: the gauge is unknown, or the shape makes no sense.
        RankError: a rank is out of its range.

    Examples:
        >>> for gauge in ("orthonormal", "balanced", "equalised", "normal"):
        ...     print(f"{first_step_gain((24, 768, 768), (8, 8), gauge):.4g}")
        0.01042
        1
        1
        6216
    """
    require_gauge(gauge, (*GAUGES, "normal"))
    (_, m, n), (r1, r2) = _sizes(shape, ranks)
    if gauge == "normal":
        return math.sqrt(r1 * (r1 + m + 1) * r2 * (r2 + n + 1))
    a, b = _column_lengths(m, n, r1, r2, gauge)
    return (a * b) ** 2 * math.sqrt(r1 * r2 / (m * n))


def _column_lengths(m: int, n: int, r1: int, r2: int, gauge: RandomGauge) -> tuple[float, float]:
    """The length of the columns of U and of V."""
    if gauge == "orthonormal":
        return 1.0, 1.0
    if gauge == "balanced":
        return (m / r1) ** 0.25, (n / r2) ** 0.25
    norm = (float(m) * n * r1 * r2) ** 0.125  # so that a b = (m n / (r1 r2))^¼
    return norm / math.sqrt(r1), norm / math.sqrt(r2)


def _orthonormal(x: np.ndarray) -> np.ndarray:
    """The Q of QR with a positive diagonal in R, which is unique, so the same for every LAPACK."""
    q, r = qr(x, xp=numpy_namespace)
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


def require_gauge(gauge: str, known: tuple[str, ...]) -> None:
    """Refuse a gauge that is not among those known."""
    if gauge not in known:
        raise OptionError(f"gauge must be {', '.join(known[:-1])} or {known[-1]}; found {gauge!r}")


def require_count(name: str, value: Any, least: int = 0) -> None:
    """Refuse an option that is not a whole number from `least` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name} must be a whole number of at least {least}; found {value!r}")


def require_ranks(ranks: tuple[int, int], m: int, n: int) -> None:
    """Refuse a pair of ranks outside 1 … m and 1 … n."""
    for name, rank, (axis, most) in zip(("r1", "r2"), ranks, (("m", m), ("n", n)), strict=True):
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
            raise RankError(f"{name} must lie in 1 … {axis} = {most}; found {rank!r}")


def _sizes(
    shape: tuple[int, int, int], ranks: tuple[int, int]
) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Shape and ranks, checked."""
    for name, value, count in (("shape", shape, 3), ("ranks", ranks, 2)):
        if not isinstance(value, tuple | list) or len(value) != count:
            wanted = "(L, m, n)" if count == 3 else "(r1, r2)"
            kind = OptionError if count == 3 else RankError
            raise kind(f"{name} must be {wanted}; found {value!r}")
    for name, size in zip("Lmn", shape, strict=True):
        require_count(name, size, least=1)
    require_ranks((ranks[0], ranks[1]), shape[1], shape[2])
    return (shape[0], shape[1], shape[2]), (ranks[0], ranks[1])
