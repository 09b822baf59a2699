"""Orthonormal bases of tall matrices, by Householder QR or by the Gram matrix.

The Gram matrix in float64 resolves singular values down to √ε₆₄ ≈ 1.5e-8 of the largest. Entries
stored in 32 bits or fewer are uncertain by 6e-8 or more, so for them this loses nothing, and it is
a few times faster. Float64 input takes Householder QR. The dtype alone decides, never a value.
"""

from lotr_tn._arrays import Array, Namespace, float64, is_wide
from lotr_tn.linalg.factor import eigh_descending, qr, triangle_of
from lotr_tn.linalg.gram import cross_gram

GRAM_RESOLUTION = 2.0**-26
"""√ε₆₄: singular values below this share of the largest are rounding noise on the Gram route."""


TINY = 2.0**-1000
"""Less than any length counts for: 0 / TINY is 0, and x + TINY is x."""


def inverse_or_zero(s: Array, *, xp: Namespace) -> Array:
    """1/s where s is above the Gram route's resolution, else 0, for s (k,) descending."""
    if s.shape[0] == 0:
        return s
    noise = s <= 4 * GRAM_RESOLUTION * s[0]  # NaN is not, and stays NaN
    return xp.where(noise, xp.zeros_like(s), 1 / xp.where(noise, xp.ones_like(s), s))


def root_of_gram(gram: Array, *, xp: Namespace) -> Array:
    """T (…, k, k) with Tᵀ T equal to positive semidefinite Gram matrices, each column to 1e-8."""
    # columns may be of sizes far apart, where what they are multiplied by is the other way round:
    # among columns of norm 1 none is lost in the rounding of another
    sizes = xp.sqrt(xp.linalg.diagonal(gram))
    inverse = 1 / (sizes + TINY)
    alike = gram * inverse[..., None] * inverse[..., None, :]
    values, vectors = eigh_descending(alike, xp=xp)
    return xp.sqrt(values)[..., None] * vectors.mT * sizes[..., None, :]


def triangular_factor(x: Array, *, xp: Namespace) -> Array:
    """A small T (k', k) with Tᵀ T = xᵀ x: it has the norms and inner products of x (m, k).

    On the Householder route T is R, on the Gram route a square root of the Gram matrix.

    Cost: 2·m·k² flops; O(k²) memory beside the input.
    """
    if is_wide(x):
        return triangle_of(x, xp=xp)
    return root_of_gram(cross_gram(x, x, xp=xp), xp=xp)


def orthonormal_basis(x: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Q (m, k') float64 and T (k', k) with x = Q T and QᵀQ = I, for x (m, k), also with k > m.

    On the Gram route directions of x below 6e-8 of the largest come out as zero columns of Q.

    Cost: 4·m·k² flops; O(m·k) memory.
    Source: Householder QR, or the Gram route of Stathopoulos and Wu (2002), SVQB.
    """
    if is_wide(x) or x.shape[1] > x.shape[0]:
        return qr(x, xp=xp)
    values, vectors = eigh_descending(cross_gram(x, x, xp=xp), xp=xp)
    inverse = inverse_or_zero(xp.sqrt(values), xp=xp)
    q = float64(x, xp=xp) @ (vectors * inverse[None, :])
    return q, (values * inverse)[:, None] * vectors.mT


def polar_factor(x: Array, *, xp: Namespace) -> Array:
    """The orthonormal columns nearest to x (m, k) float64, whose columns are nearly so already."""
    # Null directions of x stay zero, and no column changes its place or sign.
    # Source: Higham (1986), Computing the polar decomposition.
    values, vectors = eigh_descending(x.mT @ x, xp=xp)
    inverse = inverse_or_zero(xp.sqrt(values), xp=xp)
    return x @ (vectors * inverse[None, :] @ vectors.mT)


def signs(u: Array, *, xp: Namespace) -> Array:
    """For each column of (…, m, k) 1, or -1 where its entry of largest size is negative."""
    if 0 in u.shape:
        return xp.sum(u, axis=-2) + 1
    one = xp.ones_like(u[..., 0, :])
    return xp.where(-xp.min(u, axis=-2) > xp.max(u, axis=-2), -one, one)
