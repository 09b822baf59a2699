"""The sizes at which a form can hold a stack, and what it loses there."""

from dataclasses import dataclass

import numpy as np

from lotr_tn.analysis.pareto import pareto_front


@dataclass(frozen=True, eq=False)
class Curve:
    """What a form loses at each size, before anything is made.

    Settings are rank terms kept for `truncated`, the rank for one shared side, (r1, r2) for `lotr`,
    and (r1, r2, terms) with low-rank cores.
    """

    format: str
    parameters: np.ndarray  # (P,) numbers stored, increasing
    lost: np.ndarray  # (P,) squared Frobenius norm of what is lost, decreasing
    settings: np.ndarray  # (P, k) what gives each point


def front_of(format: str, parameters: np.ndarray, lost: np.ndarray, settings: np.ndarray) -> Curve:
    """The curve of the points that no other undercuts in both numbers and loss."""
    kept = pareto_front(parameters, lost)
    return Curve(format, parameters[kept], lost[kept], settings[kept])


def best_point(curve: Curve, lost: float) -> int | None:
    """The cheapest point of a curve that loses at most so much; None where none does."""
    within = np.flatnonzero(curve.lost <= lost)
    return int(within[0]) if within.size else None
