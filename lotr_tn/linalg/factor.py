"""The one door to dense factorisations: the same on every backend, always in float64, and guarded.

LAPACK may take for ever on a matrix with NaN or infinity, or answer with finite numbers. Here such
a matrix is refused before, and what does not converge after. On devices other than the CPU nothing
is waited for: there NaN comes out where it went in, or the factorisation is refused.
"""

from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np

from lotr_tn._arrays import Array, Namespace, float64, is_finite, on_host
from lotr_tn.errors import FormatError

NOT_FINITE = (
    "a matrix to be factorised holds NaN or infinity: look for them in the input, or for numbers "
    "whose products are too large for float64"
)


def qr(x: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Householder QR of (m, k): Q (m, min(m, k)) with orthonormal columns, R upper triangular."""
    factors = _guarded(xp.linalg.qr, float64(x, xp=xp))
    return factors[0], factors[1]


def triangle_of(x: Array, *, xp: Namespace) -> Array:
    """R alone of the same of (…, m, k): NumPy does half the work where Q is not asked for."""
    if isinstance(x, np.ndarray):
        return _guarded(lambda found: np.linalg.qr(found, mode="r"), float64(x, xp=xp))
    return qr(x, xp=xp)[1]


def svd(x: Array, *, xp: Namespace) -> tuple[Array, Array, Array]:
    """Thin SVD: U (m, k), s (k,) descending, Vᵀ (k, n), with k = min(m, n)."""
    factors = _guarded(lambda found: xp.linalg.svd(found, full_matrices=False), float64(x, xp=xp))
    return factors[0], factors[1], factors[2]


def singular_values(x: Array, *, xp: Namespace) -> Array:
    """The singular values (…, k), descending, of (…, m, n), with k = min(m, n)."""
    return _guarded(xp.linalg.svdvals, float64(x, xp=xp))


def eigh(x: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Eigenvalues, smallest first, and eigenvectors of symmetric matrices (…, k, k)."""
    factors = _guarded(xp.linalg.eigh, x)
    return factors[0], factors[1]


def eigenvalues(x: Array, *, xp: Namespace) -> Array:
    """The eigenvalues alone (…, k), smallest first."""
    return _guarded(xp.linalg.eigvalsh, x)


def eigh_descending(x: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Eigenvalues, largest first and never below zero, and eigenvectors of Gram matrices."""
    values, vectors = eigh(x, xp=xp)
    # a copy, not a view with negative strides: BLAS takes only positive ones
    backwards = xp.arange(x.shape[-1] - 1, -1, -1, device=array_api_compat.device(x))
    values = xp.take(values, backwards, axis=-1)
    vectors = xp.take(vectors, backwards, axis=-1)
    return xp.where(values < 0, xp.zeros_like(values), values), vectors


def eig(x: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Values and vectors of a square matrix that need not be symmetric; complex ones in pairs."""
    return _guarded(xp.linalg.eig, x)


def pinv(x: Array, *, xp: Namespace) -> Array:
    """The Moore-Penrose inverse (n, m) of (m, n)."""
    with np.errstate(all="ignore"):  # of products; what NumPy leaves to LAPACK warns of nothing
        return _guarded(xp.linalg.pinv, x)


def inverse(x: Array, *, xp: Namespace) -> Array:
    """The inverse of a square matrix that has one."""
    return _guarded(xp.linalg.inv, x)


def solve(x: Array, y: Array, *, xp: Namespace) -> Array:
    """X⁻¹ y for a square x (k, k) that has an inverse, and y (k, c)."""
    if 0 in y.shape:
        return y
    require_finite(y)
    return _guarded(lambda found: xp.linalg.solve(found, y), x)


def cholesky(x: Array, *, xp: Namespace) -> Array | None:
    """Lower triangles of Gram matrices (…, k, k); None where one is not positive definite."""
    require_finite(x)
    try:
        return xp.linalg.cholesky(x)
    except Exception as error:
        if _is_linear_algebra(error):
            return None
        raise


def require_finite(x: Array) -> None:
    """Refuse a matrix on the CPU with NaN or infinity."""
    if on_host(x) and not is_finite(x):
        raise FormatError(NOT_FINITE)


def _guarded(factorise: Callable[[Array], Any], x: Array) -> Any:
    require_finite(x)
    try:
        return factorise(x)
    except Exception as error:
        if _is_linear_algebra(error):
            raise FormatError(f"a matrix could not be factorised ({error})") from None
        raise


def _is_linear_algebra(error: Exception) -> bool:
    """Whether LAPACK gave up; torch's error is known by its name, so that torch is not loaded."""
    return isinstance(error, np.linalg.LinAlgError) or type(error).__name__ == "_LinAlgError"
