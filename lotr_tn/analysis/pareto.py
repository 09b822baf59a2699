"""Points that no other point beats in cost and in loss."""

import numpy as np

from lotr_tn.linalg.ranks import TIE


def pareto_front(cost: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Indices of the points that no other point beats in cost and loss, cheapest first.

    Of equal points the first is kept. What is lower by rounding alone is equal, in cost as in loss.

    Cost: O(P log P).

    Examples:
        >>> pareto_front(np.array([3, 1, 2, 2]), np.array([0.1, 0.5, 0.6, 0.2])).tolist()
        [1, 3, 0]
        >>> pareto_front(np.array([1, 1]), np.array([0.5, 0.5 - 1e-16])).tolist()
        [0]
        >>> pareto_front(np.array([0.5, 0.5 - 1e-16]), np.array([1, 1])).tolist()
        [0]
    """
    if not len(cost):
        return np.zeros(0, dtype=np.int64)
    order = np.argsort(cost, kind="stable")
    rising, losses = cost[order], loss[order]
    new = np.ones(len(cost), dtype=bool)  # where a cost is no longer the same
    new[1:] = rising[1:] - rising[:-1] > TIE * np.abs(rising[1:])
    begins = np.flatnonzero(new)
    least = np.minimum.reduceat(losses, begins)
    # of equal cost and loss the first as they were given
    behind = losses > (least * (1 + TIE))[np.cumsum(new) - 1]
    first = np.minimum.reduceat(np.where(behind, len(cost), order), begins)
    before = np.full(len(least), np.inf)
    np.minimum.accumulate(least[:-1], out=before[1:])
    return first[loss[first] < before * (1 - TIE)]


def lower_hull(cost: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Indices of the corners of the lower convex hull of a front, cheapest first.

    Source: Andrew (1979), the monotone chain.

    Examples:
        >>> lower_hull(np.array([0, 1, 2, 3]), np.array([9.0, 8.0, 1.0, 0.0])).tolist()
        [0, 2, 3]
    """
    kept: list[int] = []
    costs, losses = cost.tolist(), loss.tolist()
    for index in range(len(costs)):
        while len(kept) >= 2 and not _turns_left(costs, losses, kept[-2], kept[-1], index):
            kept.pop()
        kept.append(index)
    return np.array(kept, dtype=np.int64)


def _turns_left(cost: list[float], loss: list[float], a: int, b: int, c: int) -> bool:
    """Whether the slope from b to c is flatter than the one from a to b."""
    return (loss[b] - loss[a]) * (cost[c] - cost[b]) < (loss[c] - loss[b]) * (cost[b] - cost[a])
