"""Products of small factors that may cancel, and the SVD of a product without the product."""

import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import UNIT_ROUNDOFF, Array, Namespace, namespace_of
from lotr_tn.errors import FormatError
from lotr_tn.linalg.factor import qr, svd

ROUNDING = 32 * UNIT_ROUNDOFF["float64"]
"""Share of the sizes of its terms below which a product of float64 factors is rounding."""


def sizes_of_terms(left: Array, right: Array, *, xp: Namespace) -> Array:
    """Σ_j ‖x_j‖‖y_j‖ over the columns of left (…, p, k) and right (…, q, k): what may cancel."""
    if 0 in left.shape or 0 in right.shape:
        return xp.sum(left, axis=(-2, -1)) * 0.0
    sizes = []
    for x in (left, right):
        if isinstance(x, np.ndarray):  # the same in half the time, for small arrays
            scale = np.abs(x).max(axis=(-2, -1), keepdims=True)
            scale[scale == 0] = 1
            sizes.append((scale[..., 0, 0], np.sqrt(np.square(x / scale).sum(axis=-2))))
            continue
        largest = xp.max(xp.abs(x), axis=(-2, -1))
        scale = xp.where(largest == 0, xp.ones_like(largest), largest)
        sizes.append((scale, xp.linalg.vector_norm(x / scale[..., None, None], axis=-2)))
    (a, x), (b, y) = sizes
    return a * (b * xp.sum(x * y, axis=-1))


def product_or_zero(left: Array, right: Array, *, xp: Namespace) -> Array:
    """Left rightᵀ of float64 factors (…, p, k) and (…, q, k); 0 where it is all rounding."""
    made = left @ right.mT
    if 0 in made.shape:
        return made
    largest = xp.max(xp.abs(made), axis=(-2, -1))
    more = largest > ROUNDING * sizes_of_terms(left, right, xp=xp)
    return made * xp.astype(more, made.dtype)[..., None, None]


@door
def svd_of_product(up: Array, down: Array) -> tuple[Array, Array, Array]:
    """Thin SVD of up @ down by QR, QR and an SVD of the small middle.

    Args:
        up: (m, r).
        down: (r, n), of the same library, dtype and device.

    Returns:
        U (m, k), s (k,) descending and Vᵀ (k, n) in float64, with k = min(m, n, r).

    Raises:
        FormatError: the inner sizes differ.
        BackendError: the factors differ in library, dtype or device.

    Cost: O((m + n)·r²) flops, O((m + n)·r) memory; nothing of size m·n.
    Accuracy: singular values to 1e-15 of the largest.
    """
    xp = namespace_of(up=up, down=down)
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
        raise FormatError(
            f"up must be (m, r) and down (r, n) with one r; found {tuple(up.shape)} and "
            f"{tuple(down.shape)}"
        )
    return svds_of_products(up, down, xp=xp)


def svds_of_products(up: Array, down: Array, *, xp: Namespace) -> tuple[Array, Array, Array]:
    """The same of many products at once: of (…, m, r) and (…, r, n)."""
    q_left, r_left = qr(up, xp=xp)
    q_right, r_right = qr(down.mT, xp=xp)
    u, s, vt = svd(product_or_zero(r_left, r_right, xp=xp), xp=xp)
    return q_left @ u, s, vt @ q_right.mT
