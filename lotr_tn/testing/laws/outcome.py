"""What a decomposition returns: a stack or bare factors, with or without an error of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from lotr_tn.errors import LotrError
from lotr_tn.formats import Certificate, Stack, Tucker2
from lotr_tn.testing.formats import Cut, known_formats, laws_of
from lotr_tn.testing.laws.truth import dense_updates, magnitude, norm_of, rounding

Ranks: TypeAlias = int | tuple[int, int]
"""One rank, or a pair (r1, r2) for Tucker-2."""

Decomposition: TypeAlias = Callable[[Any, Any], Any]
"""A function of a stack and ranks, such as `lotr_tn.hosvd` or `lotr_tn.round`.

It returns a stack, or the factors (u, core, v) of a Tucker-2. After them it may return the relative
error that it reports: `stack, error` or `(u, core, v), error` or `u, core, v, error`. A stack's
certificate is such a report too.
"""


@dataclass(frozen=True)
class Outcome:
    """The result of a decomposition, whatever it looks like."""

    stack: Stack
    error: float | None  # the relative error it reports
    certificate: Certificate | None


def run(decompose: Decomposition, stack: Stack, ranks: Any) -> Outcome:
    """The outcome of a decomposition, which must return what a `Decomposition` may."""
    result = decompose(stack, ranks)
    error = None
    if isinstance(result, tuple) and len(result) in (2, 4):
        *first, error = result
        result = first[0] if len(first) == 1 else tuple(first)
        error = float(error)
    if isinstance(result, tuple) and len(result) == 3:
        try:
            result = Tucker2(*result)
        except LotrError as unfit:
            raise AssertionError(f"the factors (u, core, v) do not fit together: {unfit}") from None
    found = _as_stack(result)
    certificate = getattr(found, "certificate", None)
    if error is None and certificate is not None:
        error = certificate.relative_error
    return Outcome(found, error, certificate)


def _as_stack(result: Any) -> Stack:
    if type(result) not in known_formats():
        raise AssertionError(
            "a decomposition must return a stack or factors (u, core, v), and after it the "
            f"relative error if it reports one; found {type(result).__name__}"
        )
    return result


@dataclass(frozen=True)
class Loss:
    """What a result loses, by the dense matrices."""

    distance: float
    norm: float
    slack: float  # the share of `norm` that rounding explains

    @property
    def relative(self) -> float:
        """‖T − T̂‖ / ‖T‖; 0 for a zero stack kept as zero."""
        if self.norm > 0:
            return self.distance / self.norm
        return 0.0 if self.distance == 0 else float("inf")

    @property
    def is_defined(self) -> bool:
        """Whether ‖T‖ is more than rounding, or exactly zero, so that relative errors mean it."""
        return self.slack < 1


def loss(result: Stack, stack: Stack) -> Loss:
    """What the result loses of the stack."""
    truth = dense_updates(stack)
    size, terms = norm_of(truth), magnitude(stack)
    share = 0.0 if terms == 0 else rounding(stack) * terms / size if size > 0 else np.inf
    return Loss(norm_of(truth - dense_updates(result)), size, share)


def cuts(result: Stack, ranks: Ranks) -> list[Cut]:
    """The ranks of a result beside those asked for; its format's laws must know some."""
    named = laws_of(type(result)).cuts
    if named is None:
        raise AssertionError(
            f"the laws know no ranks of a {type(result).__name__}: its FormatLaws have no cuts"
        )
    return named(result, (ranks, ranks) if isinstance(ranks, int) else ranks)


def tails(truth: np.ndarray, ranks: Ranks, result: Stack) -> float:
    """The distance that the best truncation by leading singular directions keeps to."""
    # for Tucker-2 the root of the sum of both squared mode tails, at most √2 times the best
    found = cuts(result, ranks)
    return float(np.linalg.norm([tail(unfolded(truth, cut), cut.asked) for cut in found]))


def unfolded(truth: np.ndarray, cut: Cut) -> np.ndarray:
    """The matrix whose singular values a rank cuts off."""
    _, m, n = truth.shape
    if cut.of == "out":
        return truth.transpose(1, 0, 2).reshape(m, -1)
    return truth.reshape(-1, n) if cut.of == "in" else truth[cut.of]


def tail(matrix: np.ndarray, rank: int) -> float:
    """The root of the sum of squares of all singular values but the first `rank`."""
    return float(np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:]))
