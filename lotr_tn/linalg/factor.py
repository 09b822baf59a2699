"""Dense factorisations of small or tall matrices, the same on every backend, always in float64."""

import array_api_compat

from lotr_tn._arrays import Array, Namespace, float64


def qr(x: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Householder QR of (m, k): Q (m, min(m, k)) with orthonormal columns, R upper triangular."""
    factors = xp.linalg.qr(float64(x, xp=xp))
    return factors[0], factors[1]


def svd(x: Array, *, xp: Namespace) -> tuple[Array, Array, Array]:
    """Thin SVD: U (m, k), s (k,) descending, Vᵀ (k, n), with k = min(m, n)."""
    factors = xp.linalg.svd(float64(x, xp=xp), full_matrices=False)
    return factors[0], factors[1], factors[2]


def eigh_descending(x: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Eigenvalues, largest first and never below zero, and eigenvectors of a Gram matrix."""
    factors = xp.linalg.eigh(x)
    # a copy, not a view with negative strides: BLAS takes only positive ones
    backwards = xp.arange(x.shape[0] - 1, -1, -1, device=array_api_compat.device(x))
    values = xp.take(factors[0], backwards)
    vectors = xp.take(factors[1], backwards, axis=1)
    return xp.where(values > 0, values, xp.zeros_like(values)), vectors
