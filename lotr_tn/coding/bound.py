"""The rate of Gaussian directions: what coding is measured against."""

from collections.abc import Sequence

import numpy as np

ROUNDS = 50
"""Of bisection and of fixed points: more than any float64 needs."""


def gaussian_bits(
    values: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], lost: float
) -> float:
    """The fewest bits at a squared error, if the vectors of every direction were Gaussian.

    A direction of singular value σ takes (m/2) log2(σ² / m d) + (n/2) log2(σ² / n d) bits at an
    error of (m + n) d, or is dropped at an error of σ²; between the two, on the line that touches
    the curve. One slope for all directions is best.

    Args:
        values: singular values of some updates, for each size.
        sizes: (m, n) of these.
        lost: the squared error of all.

    Source: Cover and Thomas (2006), theorem 10.3.3. It is the rate of a model: vectors that are not
    Gaussian may take less.
    """
    squares = np.concatenate([np.ravel(one) ** 2 for one in values])
    m, n = (np.repeat([pair[at] for pair in sizes], [one.size for one in values]) for at in (0, 1))
    kept = squares > 0
    squares, m, n = squares[kept], m[kept].astype(float), n[kept].astype(float)
    size = m + n
    entropy = np.log(size) - (m * np.log(m) + n * np.log(n)) / size
    touches = np.full(squares.shape, 0.4)  # D / σ² where the line from (σ², 0) touches the curve
    for _ in range(ROUNDS):
        touches = 1 / (1 + entropy - np.log(touches))

    def at(level: float) -> tuple[float, float]:
        error = size * level
        active = error <= touches * squares
        bits = size / 2 * (entropy - np.log(np.minimum(error / squares, 1))) / np.log(2)
        return float(np.where(active, error, squares).sum()), float(bits[active].sum())

    low, high = 1e-30 * squares.sum(), squares.sum()
    for _ in range(ROUNDS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if at(middle)[0] <= lost else (low, middle)
    return at(low)[1]
