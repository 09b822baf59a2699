"""HOSVD, sequentially truncated HOSVD and HOOI of a stack of updates, in core space."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF, Namespace, dtype_name, namespace_of, to_numpy
from lotr_tn.decompose.assemble import assemble, keep_whole
from lotr_tn.decompose.core_space import CoreSpace, as_lora, core_space
from lotr_tn.decompose.sweeps import Subspaces, alternate, leading_axes, refit_right
from lotr_tn.errors import PrecisionWarning, RankError
from lotr_tn.formats import Dense, LoRAStack, Tucker2
from lotr_tn.linalg.bases import GRAM_RESOLUTION
from lotr_tn.linalg.ranks import FixedRank, RankRule, as_rule, cheapest_pair
from lotr_tn.linalg.surface import lost_energy_surface

__all__ = ["hooi", "hosvd", "st_hosvd"]

Ranks: TypeAlias = RankRule | int | tuple[int, int]
Pair: TypeAlias = tuple[int, int]
Fit: TypeAlias = Callable[[CoreSpace, Pair], Subspaces]

LOWERING_ATTEMPTS = 4


def hosvd(stack: LoRAStack | Dense, ranks: Ranks, *, dtype: str | None = None) -> Tucker2:
    """Truncated higher-order SVD: each factor on its own, from the stack's two unfoldings.

    Args:
        stack: a LoRA or dense stack (L, m, n).
        ranks: (r1, r2), one number for both, or a rule: `FixedRank`, `RelativeError`, `Energy`.
            A rule takes the cheapest pair of ranks, by m·r1 + n·r2 + L·r1·r2, that meets it.
        dtype: storage dtype of the result; the stack's own where left out.

    Returns:
        A Tucker2 with orthonormal factors (to the rounding of dtype) and a certificate. Where a
        rule leaves nothing to cut off, the factors are the stack's own, without any rounding.

    Raises:
        RankError: a rank is negative or a rule is out of range.
        BackendError: the dtype is not one of the library's.

    Warns:
        PrecisionWarning: the storage dtype is too coarse for the error asked for.

    Cost: for R = Σ r_l, 2·(m + n)·R² + O(R³) flops and O(R² + (m + n)·r) float64 memory; never
    anything of size m·n. Dense input costs as R = L·min(m, n).
    Accuracy: at most √2 times the error of the best Tucker-2 of these ranks.
    Source: De Lathauwer, De Moor and Vandewalle (2000), A multilinear SVD.
    """
    return _decompose(stack, ranks, dtype, "hosvd", _fit_hosvd)


def st_hosvd(stack: LoRAStack | Dense, ranks: Ranks, *, dtype: str | None = None) -> Tucker2:
    """Sequentially truncated HOSVD: U first, then V for the stack as projected on U.

    Arguments, result, cost and errors as for `hosvd`, whose error it never exceeds.

    Source: Vannieuwenhoven, Vandebril and Meerbergen (2012).
    """
    return _decompose(stack, ranks, dtype, "st-hosvd", _fit_st_hosvd)


def hooi(
    stack: LoRAStack | Dense,
    ranks: Ranks,
    *,
    dtype: str | None = None,
    tolerance: float = 1e-3,
    max_sweeps: int = 50,
) -> Tucker2:
    """Higher-order orthogonal iteration from the ST-HOSVD, whose error it never exceeds.

    Args:
        stack: a LoRA or dense stack (L, m, n).
        ranks: as for `hosvd`. For a rule, what the sweeps gain is used to lower the ranks further.
        dtype: storage dtype of the result; the stack's own where left out.
        tolerance: stop when one sweep lowers the error by less than this share of it. With 0,
            exactly `max_sweeps` sweeps are made and nothing waits for the device.
        max_sweeps: the most sweeps made.

    Returns, raises and warns as `hosvd`.

    Cost: that of `hosvd`, and two eigenproblems (float64 input: SVDs) of size R a sweep.
    Source: De Lathauwer, De Moor and Vandewalle (2000), On the best rank-(R1, …, RN)
    approximation.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import LoRAStack, RelativeError
        >>> rng = np.random.default_rng(0)
        >>> u, v = rng.standard_normal((30, 2)), rng.standard_normal((20, 3))
        >>> up = np.concatenate([u @ rng.standard_normal((2, 2)) for _ in range(5)], axis=1)
        >>> down = np.concatenate([rng.standard_normal((2, 3)) @ v.T for _ in range(5)], axis=0)
        >>> hooi(LoRAStack(up, down, (2,) * 5), RelativeError(1e-10)).ranks
        (2, 3)
    """

    def fit(space: CoreSpace, pair: Pair) -> Subspaces:
        xp = namespace_of(x=space.layer_norms)
        start = _fit_st_hosvd(space, pair)
        if 0 in pair:
            return start
        return alternate(space, start, tolerance=tolerance, max_sweeps=max_sweeps, xp=xp)

    return _decompose(stack, ranks, dtype, "hooi", fit, lower_ranks=True)


def _fit_hosvd(space: CoreSpace, pair: Pair) -> Subspaces:
    return leading_axes(space, pair, xp=namespace_of(x=space.layer_norms))


def _fit_st_hosvd(space: CoreSpace, pair: Pair) -> Subspaces:
    xp = namespace_of(x=space.layer_norms)
    return refit_right(space, leading_axes(space, pair, xp=xp).left, pair[1], xp=xp)


def _decompose(
    stack: LoRAStack | Dense,
    ranks: Ranks,
    dtype: str | None,
    method: str,
    fit: Fit,
    *,
    lower_ranks: bool = False,
) -> Tucker2:
    rule = as_rule(ranks)
    lora = as_lora(stack)
    dtype = dtype_name(lora.up) if dtype is None else dtype
    if dtype not in UNIT_ROUNDOFF:
        raise RankError(f"dtype must be one of {', '.join(UNIT_ROUNDOFF)}; found {dtype!r}")
    xp = namespace_of(up=lora.up, down=lora.down)
    space = core_space(lora)
    if isinstance(rule, FixedRank):
        subspaces = fit(space, _clamp(rule.pair, space))
        return assemble(lora, space, subspaces, dtype=dtype, method=method, xp=xp)
    search = _Search(space, _surface(space, xp=xp), lora.shape, fit, lower_ranks)
    return _meet_error(lora, search, rule.epsilon, dtype, method, xp=xp)


def _clamp(pair: Pair, space: CoreSpace) -> Pair:
    """No rank above the dimension of its side of core space."""
    return min(pair[0], space.left.sigma.shape[0]), min(pair[1], space.right.sigma.shape[0])


def _surface(space: CoreSpace, *, xp: Namespace) -> np.ndarray:
    """Squared error of every truncation of the HOSVD basis, on the host."""
    left, right = space.left.coordinates, space.right.coordinates
    energies = xp.zeros_like(left[:, :1] @ xp.matrix_transpose(right[:, :1]))
    for part in space.slices:
        energies = energies + (left[:, part] @ xp.matrix_transpose(right[:, part])) ** 2
    return to_numpy(lost_energy_surface(energies, xp=xp))


@dataclass(frozen=True)
class _Search:
    """The search for the cheapest ranks within a budget of lost energy."""

    space: CoreSpace
    lost: np.ndarray  # (K1 + 1, K2 + 1)
    shape: tuple[int, int, int]
    fit: Fit
    lower_ranks: bool

    def within(self, budget: float) -> Subspaces:
        """Fitted subspaces of the cheapest pair of ranks that loses at most `budget`."""
        pair = cheapest_pair(self.lost, max(budget, float(self.lost.min())), self.shape)
        best = self.fit(self.space, pair)
        share = 1.0
        for _ in range(LOWERING_ATTEMPTS if self.lower_ranks else 0):
            gain = max(0.0, float(self.lost[pair]) - _squared(best))
            cheaper = cheapest_pair(
                self.lost, max(budget, float(self.lost.min())) + share * gain, self.shape
            )
            if self._count(cheaper) >= self._count(pair):
                break
            attempt = self.fit(self.space, cheaper)
            if _squared(attempt) <= budget:
                pair, best = cheaper, attempt
            else:
                share /= 2
        return best

    def _count(self, pair: Pair) -> int:
        layers, m, n = self.shape
        return m * pair[0] + n * pair[1] + layers * pair[0] * pair[1]


def _squared(subspaces: Subspaces) -> float:
    return 0.0 if subspaces.error is None else float(subspaces.error) ** 2


def _meet_error(
    stack: LoRAStack, search: _Search, epsilon: float, dtype: str, method: str, *, xp: Namespace
) -> Tucker2:
    """The cheapest Tucker-2 whose error, as stored, is at most ε.

    Rounding to the storage dtype takes part of the error. How much is seen only afterwards, so
    the budget is cut by the measured excess, and the search repeated.
    """
    total = float(search.space.norm) ** 2
    allowed = epsilon**2 * total
    resolution = UNIT_ROUNDOFF["float64"] if search.space.wide else GRAM_RESOLUTION / 2
    floor = (8 * resolution) ** 2 * total  # below it lies only rounding of the input
    budget = max(allowed - UNIT_ROUNDOFF[dtype] ** 2 * total, 0.0)
    while True:
        subspaces = search.within(max(budget, floor))
        if subspaces.left.shape[1] == subspaces.right.shape[1] == stack.up.shape[1]:
            result = keep_whole(stack, search.space, dtype=dtype, method=method, xp=xp)
        else:
            result = assemble(stack, search.space, subspaces, dtype=dtype, method=method, xp=xp)
        lost = 0.0 if result.certificate is None else result.certificate.distance**2
        excess = lost - allowed
        if excess <= 0 or epsilon == 0:
            return result
        if budget <= floor:
            break
        budget = min(budget - 1.01 * excess, budget / 2)
    warnings.warn(
        f"storing in {dtype} leaves a relative error of {(lost / total) ** 0.5:.2g}, above the "
        f"{epsilon:.2g} asked for; a wider dtype would meet it",
        PrecisionWarning,
        stacklevel=4,
    )
    return result
