"""x U G Vᵀ added to a layer's output: the products, and the order that takes the fewest."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["add_product", "folds_left", "folds_right"]


def folds_left(rows: int, m: int, n: int, r1: int, r2: int) -> bool:
    """Whether (x V)(U G)ᵀ takes fewer multiply-adds than ((x V) Gᵀ) Uᵀ.

    Args:
        rows: rows of x.
        m: outputs; U is (m, r1).
        n: inputs, which both orders meet alike; V is (n, r2).
        r1: columns of U.
        r2: columns of V.

    Examples:
        >>> folds_left(8, 768, 768, 16, 16), folds_left(4096, 768, 768, 16, 16)
        (False, True)
    """
    return m * r1 * r2 + rows * r2 * m < rows * r1 * (r2 + m)


def folds_right(rows: int, m: int, n: int, r1: int, r2: int) -> bool:
    """Whether (x (V Gᵀ)) Uᵀ takes fewer than both other orders.

    It does where r1 is well below r2.

    Examples:
        >>> folds_right(4096, 768, 768, 4, 16), folds_right(4096, 768, 768, 16, 4)
        (True, False)
    """
    right = n * r1 * r2 + rows * r1 * (n + m)
    chain = rows * (n * r2 + r1 * r2 + r1 * m)
    left = m * r1 * r2 + rows * r2 * (n + m)
    return right < min(chain, left)


def add_product(result: Tensor, inside: Tensor, u: Tensor) -> Tensor:
    """Add inside (..., r) uᵀ, for u (m, r), to a result (..., m), in the dtype of the result.

    One product that begins with the result writes one tensor of its size, not three.
    """
    if inside.dtype != result.dtype:  # an adapter in a wider dtype than its layer
        return result + functional.linear(inside, u).to(result.dtype)
    rows = result.reshape(-1, result.shape[-1])
    return torch.addmm(rows, inside.reshape(-1, inside.shape[-1]), u.mT).reshape(result.shape)
