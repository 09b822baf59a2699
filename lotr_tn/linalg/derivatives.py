"""The derivative of the truncated SVD of a product: exact to rounding, or refused.

Where singular vectors have no derivative, differentiating an SVD by rule gives infinities, nan, or
finite numbers that mean nothing. Here `DerivativeError` is raised instead. It is raised in the
backward pass, and only where the gradient that comes in asks for what does not exist. Two singular
values count as equal when they differ by at most 1e-10·z, and one as zero when it is at most that.
Here z is the largest singular value, or the norm of the largest term (column of up times row of
down) where that is more since terms cancel. Of the k = min(m, n, r) values the first `rank` are
kept:

- A kept value that is zero, or equal to a dropped one, is refused, unless the gradients of it and
  of its vectors are zero.
- Two kept values that are equal are refused, unless the gradients of the vectors of both are zero,
  and those of the two values are the same. A sum over all kept values is thus differentiable.
- Dropped values may be equal to each other, or zero. Factors may lack full column rank.

The gradient of a vector is zero here where every entry is exactly zero, as it is for whatever a
loss leaves out. Gradients of values are zero, or the same, to within 1e-8 of the largest of them,
which bounds the relative error of the result.

At two equal kept values a loss of the product U diag(s) Vᵀ alone has a derivative, but is refused
too: the gradients of U, s and V do not determine it. Two losses, each free of the choice among the
vectors of equal values, can have the same gradients here and unequal derivatives.

Accuracy: vectors belonging to a value are determined to about 1e-16·z/gap, with the gap to the
nearest other value or to zero, and so is their derivative. It has 10 digits where the gap is 1e-6
of z; nothing that passes has fewer than about 5.
"""

import functools
from typing import Any

import array_api_compat
import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF, Array, Namespace, dtype_name, float64, namespace_of
from lotr_tn._arrays import to_numpy as host
from lotr_tn.errors import BackendError, DerivativeError, FormatError, RankError
from lotr_tn.linalg.product import svd_of_product

SMALLEST_GAP = 1e-10
"""Singular values that differ by no more than this share of the scale count as equal."""

SAME_GRADIENT = 1e-8
"""Gradients of singular values that differ by no more than this share of the largest are equal."""


def truncated_svd_with_gradient(up: Array, down: Array, rank: int) -> tuple[Array, Array, Array]:
    """Truncated SVD of up @ down with a derivative, for torch: U (m, rank), s and V in float64.

    In each column of U the entry of largest size is positive; the choice is held fixed when
    differentiating, also where entries of opposite sign tie. Second derivatives are refused.

    Cost: O((m + n)·r²) flops forward, O((m + n)·r·k) backward with k = min(m, n, r), and
    O((m + n)·r) memory; nothing of size m·n.
    Source: Townsend (2016), Differentiating the singular value decomposition, in a form that needs
    no full column rank and separates the gaps sⱼ − sᵢ from the sums sⱼ + sᵢ.
    """
    xp = _torch_namespace(up=up, down=down)
    # the casts are outside the function, so that they differentiate themselves
    up, down = float64(up, xp=xp), float64(down, xp=xp)
    return _truncated_svd().apply(up, down, rank, up.new_zeros(()))


def leading_vectors_with_gradient(x: Array, k_matrix: Array, rank: int) -> Array:
    """Leading eigenvectors of x K xᵀ with a derivative, for torch, without the m × m matrix.

    x is (m, p), and K symmetric and positive semidefinite; its gradient is that of the symmetric
    part. The vectors alone are used, so any two equal eigenvalues of which one is kept and has a
    gradient are refused, with z at least the norm of the largest term xᵢ Kᵢⱼ xⱼᵀ. Directions below
    1e-8 of the largest singular value of x K^½ are rounding noise; below 1e-5 their derivative is
    refused.

    Returns (m, rank) float64, orthonormal, by descending eigenvalue; signs as above.
    Cost: O(m·p²) flops and O(m·p) memory, forward and backward; nothing of size m·m.
    """
    xp = _torch_namespace(x=x, k_matrix=k_matrix)
    if x.ndim != 2 or tuple(k_matrix.shape) != (x.shape[1],) * 2:
        raise FormatError(
            f"x must be (m, p) and K (p, p) with one p; found {tuple(x.shape)} and "
            f"{tuple(k_matrix.shape)}"
        )
    noise = max(SMALLEST_GAP, 100 * UNIT_ROUNDOFF[dtype_name(x)])
    x, k_matrix = float64(x, xp=xp), float64(k_matrix, xp=xp)
    _check_symmetric(k_matrix, noise, xp=xp)
    symmetric = (k_matrix + k_matrix.mT) / 2
    down = symmetric @ x.mT
    scale = _largest_square(x, symmetric, xp=xp)
    u, s, v = _truncated_svd().apply(x, down, rank, scale)
    # on the two sides the vectors of a negative eigenvalue differ in sign
    opposite, sizes = host(xp.sum(u * v, axis=0)) < 0.5, host(s)
    if (opposite & (sizes > noise * max(sizes[0], float(scale)))).any():
        raise FormatError(
            "K must be positive semidefinite, but x K xᵀ has a negative eigenvalue among the "
            f"{rank} of largest size; add to the diagonal of K, or lower the rank"
        )
    return u


def _torch_namespace(**arrays: Array) -> Namespace:
    """The namespace of torch, for finite tensors that derivatives are given for."""
    xp = namespace_of(**arrays)
    for name, x in arrays.items():
        if not (array_api_compat.is_torch_array(x) and dtype_name(x) in ("float32", "float64")):
            raise BackendError(
                f"derivatives are given for torch tensors in float32 or float64; found {name}: "
                f"{type(x).__module__}.{type(x).__name__} in {dtype_name(x)}: convert it first"
            )
        if not bool(xp.all(xp.isfinite(x))):
            raise FormatError(f"{name} has entries that are not finite, so it has no SVD")
    return xp


def _check_symmetric(k_matrix: Array, noise: float, *, xp: Namespace) -> None:
    """Refuses a square matrix that differs from its transpose by more than rounding."""
    if 0 in k_matrix.shape:
        return
    k_matrix = k_matrix.detach()
    difference = float(xp.max(xp.abs(k_matrix - k_matrix.mT)))
    largest = float(xp.max(xp.abs(k_matrix)))
    if difference > noise * largest:
        raise FormatError(
            f"K must be symmetric; found entries up to {largest:.3g} that differ from the "
            f"transpose by up to {difference:.3g}: pass (K + Kᵀ) / 2 if that is meant"
        )


def _largest_square(x: Array, k_matrix: Array, *, xp: Namespace) -> Array:
    """The norm (0-d) of the largest term xᵢ Kᵢⱼ xⱼᵀ of x K xᵀ, which lies on the diagonal."""
    # K xᵀ may cancel, and leaves rounding errors of this size times 1e-16
    squares = xp.linalg.vector_norm(x.detach(), axis=0) ** 2
    terms = squares * xp.abs(xp.linalg.diagonal(k_matrix.detach()))
    return xp.max(xp.concat([terms, terms.new_zeros(1)]))


@functools.cache
def _truncated_svd() -> Any:
    """The differentiable function itself, defined on first use since it needs torch."""
    import torch

    class FactoredGradient(torch.autograd.Function):
        """Two factors of the gradient of A = up @ down, which have no derivative themselves.

        `once_differentiable` would leave a second derivative out without a word where the incoming
        gradients are constant, as for a sum of singular values.
        """

        @staticmethod
        def forward(ctx: Any, up: Any, down: Any, *svd_and_gradients: Any) -> tuple[Array, Array]:
            # the factors are arguments only to let a second derivative find its way here
            return _factored_gradient(*svd_and_gradients)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            raise DerivativeError(
                "a truncated SVD has a first derivative here, but no second one: do without "
                "create_graph=True, or detach its gradient"
            )

    class TruncatedSVD(torch.autograd.Function):
        """(up, down, rank, a scale known to the caller) → (U, s, V), all in float64."""

        @staticmethod
        def forward(
            ctx: Any, up: Any, down: Any, rank: int, scale: Any
        ) -> tuple[Array, Array, Array]:
            u, s, v = _svd_with_signs(up, down, rank)
            terms = torch.linalg.vector_norm(up, dim=0) * torch.linalg.vector_norm(down, dim=1)
            scale = torch.maximum(torch.maximum(s[0], terms.max()), scale)
            ctx.save_for_backward(up, down, u, s, v, scale)
            # copies, so that what is saved stays as it is if a caller writes into the result
            return u[:, :rank].clone(), s[:rank].clone(), v[:, :rank].clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            up, down, u, s, v, scale = ctx.saved_tensors
            left, right = FactoredGradient.apply(up, down, u, s, v, scale, *gradients)
            for_up = left @ (right.mT @ down.mT) if ctx.needs_input_grad[0] else None
            for_down = (up.mT @ left) @ right.mT if ctx.needs_input_grad[1] else None
            return for_up, for_down, None, None

    return TruncatedSVD


def _svd_with_signs(up: Array, down: Array, rank: int) -> tuple[Array, Array, Array]:
    """Thin SVD U (m, k), s (k,), V (n, k); in each column of U the largest entry is positive."""
    xp = namespace_of(up=up, down=down)
    u, s, vt = svd_of_product(up, down)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= s.shape[0]:
        raise RankError(
            f"rank must be a whole number from 1 to {s.shape[0]}, the least of the sizes "
            f"{up.shape[0]}, {up.shape[1]} and {down.shape[1]}; found {rank!r}"
        )
    largest = xp.argmax(xp.abs(u), axis=0)
    sign = xp.where(u[largest, xp.arange(u.shape[1], device=u.device)] < 0, -1.0, 1.0)
    return u * sign, s, vt.mT * sign


def _factored_gradient(
    u: Array, s: Array, v: Array, scale: Array, grad_u: Array, grad_s: Array, grad_v: Array
) -> tuple[Array, Array]:
    """Factors L (m, 2·rank) and R (n, 2·rank) of the gradient L Rᵀ of A = U diag(s) Vᵀ.

    With a = Uᵀ grad_u and b = Vᵀ grad_v, (k, rank), the gradient is
    [U (E + O) + (I − U Uᵀ) grad_u / s + Uᵣ diag(grad_s)] Vᵣᵀ
    + Uᵣ [V (E − O) + (I − V Vᵀ) grad_v / s]ᵀ, r for the first rank columns,
    where 2 Eᵢⱼ = (aᵢⱼ + bᵢⱼ) / (sⱼ − sᵢ) and 2 Oᵢⱼ = (aᵢⱼ − bᵢⱼ) / (sⱼ + sᵢ) off the diagonal.
    U (m, k), s and V hold what is dropped, too; rounding errors of s are relative to `scale` ().
    """
    xp = namespace_of(u=u, s=s, v=v)
    near = SMALLEST_GAP * scale
    vectors = xp.any(grad_u != 0, axis=0) | xp.any(grad_v != 0, axis=0)
    _refuse_undefined(host(s), host(vectors), host(grad_s), float(near))
    rank = grad_s.shape[0]
    kept = s[:rank]
    equal = xp.abs(kept[None, :] - s[:, None]) <= near
    zero = kept <= near
    in_u, in_v = u.mT @ grad_u, v.mT @ grad_v
    # what is equal and was not refused lies on the diagonal, or has a numerator of exactly zero
    even = (in_u + in_v) / xp.where(equal, xp.inf, 2 * (kept[None, :] - s[:, None]))
    odd = (in_u - in_v) / xp.where(equal, xp.inf, 2 * (kept[None, :] + s[:, None]))
    divisor = xp.where(zero, xp.inf, kept)
    left = u @ (even + odd) + (grad_u - u @ in_u) / divisor + u[:, :rank] * grad_s
    right = v @ (even - odd) + (grad_v - v @ in_v) / divisor
    return xp.concat([left, u[:, :rank]], axis=1), xp.concat([v[:, :rank], right], axis=1)


def _refuse_undefined(s: np.ndarray, vectors: np.ndarray, grad_s: np.ndarray, near: float) -> None:
    """Raises where a gradient that is not zero meets a derivative that does not exist."""
    # `vectors` (rank,): where either side has a gradient; `near`: the distance of equal values
    rank = grad_s.size
    # written so that nan counts as large
    small = SAME_GRADIENT * np.abs(grad_s).max()
    asked = vectors | ~(np.abs(grad_s) <= small)
    lost = np.flatnonzero((s[:rank] <= near) & asked)
    if lost.size:
        raise DerivativeError(
            f"singular value {lost[0] + 1} ({s[lost[0]]:.6g}), kept at rank {rank}, is zero to "
            f"within {near:.3g}, so neither it nor its vectors have a derivative; choose "
            f"{_lower_rank(lost[0])}, or detach them"
        )
    equal = np.abs(s[None, :rank] - s[:, None]) <= near
    split = np.argwhere(equal[rank:] & asked)
    if split.size:
        _refuse_equal(s, split[0, 1], split[0, 0] + rank, rank, near)
    same = np.abs(grad_s[:, None] - grad_s) <= small
    together = equal[:rank] & ~np.eye(rank, dtype=bool)
    mixed = np.argwhere(together & (vectors[:, None] | vectors | ~same))
    if mixed.size:
        _refuse_equal(s, mixed[0, 0], mixed[0, 1], rank, near)


def _refuse_equal(s: np.ndarray, first: int, second: int, rank: int, near: float) -> None:
    """Raises for two equal singular values, given by their places from 0."""
    fate = "which are both kept" if second < rank else "of which only the first is kept"
    raise DerivativeError(
        f"singular values {first + 1} ({s[first]:.6g}) and {second + 1} ({s[second]:.6g}), {fate} "
        f"at rank {rank}, are equal to within {near:.3g}, so neither they nor their vectors have "
        f"a derivative of their own; choose {_lower_rank(first)}, or detach them"
    )


def _lower_rank(kept: int) -> str:
    """What to choose instead, where only so many singular values have a derivative."""
    return f"a rank of at most {kept}" if kept else "another input"
