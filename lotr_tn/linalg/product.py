"""SVD of a product of two factors, without the product."""

from lotr_tn._arrays import Array, namespace_of
from lotr_tn.errors import FormatError
from lotr_tn.linalg.factor import qr, svd


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
    q_left, r_left = qr(up, xp=xp)
    q_right, r_right = qr(down.mT, xp=xp)
    u, s, vt = svd(r_left @ r_right.mT, xp=xp)
    return q_left @ u, s, vt @ q_right.mT
