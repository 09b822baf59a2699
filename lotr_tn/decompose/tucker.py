"""HOSVD, sequentially truncated HOSVD and HOOI of a stack of updates, in core space."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from lotr_tn._arguments import door
from lotr_tn.decompose.assemble import Storage, assemble, keep_whole
from lotr_tn.decompose.core_space import CoreSpace, core_space
from lotr_tn.decompose.guarded import guarded
from lotr_tn.decompose.search import Fit, PairSearch, asked_dtype, meet_error, resolution
from lotr_tn.decompose.sketch import blocked_space, randomised_space
from lotr_tn.decompose.sweeps import Subspaces, alternate, leading_axes, refit_right
from lotr_tn.decompose.weights import Weights, weighted
from lotr_tn.errors import OptionError
from lotr_tn.formats import Dense, LoRAStack, Stack, Tucker2
from lotr_tn.linalg.ranks import Budget, FixedRank, RankRule, as_rule
from lotr_tn.ops.checks import refuse_gradient
from lotr_tn.ops.conversion import as_lora
from lotr_tn.ops.primitives import lowered

Ranks: TypeAlias = RankRule | int | tuple[int, int]
Pair: TypeAlias = tuple[int, int]
Method: TypeAlias = Literal["auto", "exact", "randomised", "blocked"]

EXACT_UP_TO = 1024  # core spaces up to this size are always taken whole: a second or two

SMALLEST_SKETCH = 16
POWER_ITERATIONS = 2


@door
@guarded
def hosvd(
    stack: Stack,
    ranks: Ranks,
    *,
    dtype: str | None = None,
    weights: Weights = None,
    method: Method = "auto",
    seed: int = 0,
) -> Tucker2:
    """Truncated higher-order SVD: each factor on its own, from the stack's two unfoldings.

    Args:
        stack: any stack (L, m, n).
        ranks: (r1, r2), one number for both, or a rule: `FixedRank`, `RelativeError`, `Energy`,
            `Budget`. An error takes the cheapest pair of ranks, by m·r1 + n·r2 + L·r1·r2, that
            meets it; a budget the pair that loses least. Of ranks above what the matrices have,
            the largest there are come out, as `.ranks` says; rank 0 is the zero update.
        dtype: storage dtype of the result; the stack's own where left out.
        weights: L numbers w_l ≥ 0 to lower Σ w_l ‖ΔW_l − ΔŴ_l‖²; "unit-norm" for 1 / ‖ΔW_l‖², so
            that every layer's relative error counts the same (the JD-Full objective of
            Compress-then-Serve); None for equal weights. A rule's error is then the weighted one.
        method: "exact" reduces the stack to its whole core space. "randomised" finds a subspace
            of 2·max(r1, r2) + 16 directions a side by a seeded range finder with two power
            iterations, "blocked" by one pass over the layers that keeps as many; the rest is
            exact. "auto" takes "randomised" where the core space is larger than 1024 and at
            least four times the subspace, else "exact".
        seed: of the range finder.

    Returns:
        A Tucker2 with orthonormal factors (to the rounding of dtype) and a certificate, whose
        errors are measured by every method. Where a rule leaves nothing to cut off, the factors
        are the stack's own, without any rounding.

    Raises:
        RankError: a rank is negative or a rule is out of range.
        OptionError: weights or method make no sense.
        BackendError: the dtype is not one of the library's.
        DerivativeError: torch would record the decomposition; `round` at fixed ranks can be
            differentiated.

    Warns:
        PrecisionWarning: the storage dtype is too coarse for the error asked for.

    Cost: for R = Σ r_l, 2·(m + n)·R² + O(R³) flops and O(R² + (m + n)·r) float64 memory; with a
    subspace of k directions 20·(m + n)·R·k + O(R·k²) flops and O((m + n + R)·k) memory. Never
    anything of size m·n. Dense input costs as R = L·min(m, n); factors that all layers share are
    first reduced to their ranks.
    Accuracy: at most √2 times the error of the best Tucker-2 of these ranks.
        Where singular values are equal at the cut, which of their directions are kept is up to the
        library that computes, and so is the error, within this bound.
    Source: De Lathauwer, De Moor and Vandewalle (2000), A multilinear SVD; for the range finder
    Halko, Martinsson and Tropp (2011).
    """
    options = _Options(ranks, dtype, weights, method, seed)
    return _decompose(stack, options, "hosvd", leading_axes)


@door
@guarded
def st_hosvd(
    stack: Stack,
    ranks: Ranks,
    *,
    dtype: str | None = None,
    weights: Weights = None,
    method: Method = "auto",
    seed: int = 0,
) -> Tucker2:
    """Sequentially truncated HOSVD: U first, then V for the stack as projected on U.

    Arguments, result, cost and errors as for `hosvd`, whose error it never exceeds.

    Source: Vannieuwenhoven, Vandebril and Meerbergen (2012).
    """
    options = _Options(ranks, dtype, weights, method, seed)
    return _decompose(stack, options, "st-hosvd", _fit_st_hosvd)


@door
@guarded
def hooi(
    stack: Stack,
    ranks: Ranks,
    *,
    dtype: str | None = None,
    weights: Weights = None,
    method: Method = "auto",
    seed: int = 0,
    tolerance: float = 1e-3,
    max_sweeps: int = 50,
) -> Tucker2:
    """Higher-order orthogonal iteration from the ST-HOSVD, whose error it never exceeds.

    Args:
        stack: any stack (L, m, n).
        ranks: as for `hosvd`. For an error, what the sweeps gain is used to lower the ranks
            further.
        dtype: storage dtype of the result; the stack's own where left out.
        weights: as for `hosvd`.
        method: as for `hosvd`.
        seed: as for `hosvd`.
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
        start = _fit_st_hosvd(space, pair)
        if 0 in pair:
            return start
        return alternate(space, start, tolerance=tolerance, max_sweeps=max_sweeps)

    options = _Options(ranks, dtype, weights, method, seed)
    return _decompose(stack, options, "hooi", fit)


def _fit_st_hosvd(space: CoreSpace, pair: Pair) -> Subspaces:
    return refit_right(space, leading_axes(space, pair).left, pair[1])


@dataclass(frozen=True)
class _Options:
    """What all three decompositions can be asked for."""

    ranks: Ranks
    dtype: str | None
    weights: Weights
    method: Method
    seed: int


def _decompose(stack: Stack, options: _Options, name: str, fit: Fit) -> Tucker2:
    dtype = asked_dtype(stack, options.dtype)
    rule = as_rule(options.ranks, dtype)
    refuse_gradient(name, stack)
    stack = lowered(stack)
    if isinstance(stack, Dense):
        stack = as_lora(stack)
    weighed, weights = weighted(stack, options.weights)
    spaces = _spaces(weighed, rule, options)
    lower = name == "hooi"
    if isinstance(rule, FixedRank | Budget):
        space, found_by = next(spaces)
        chosen = PairSearch(space, stack.shape, fit, lower).asked(rule)
        return assemble(stack, space, chosen, Storage(dtype, f"{found_by}{name}", weights))
    for space, found_by in spaces:
        search = PairSearch(space, stack.shape, fit, lower)
        total = float(space.norm) ** 2
        if search.missed_energy <= rule.epsilon**2 * total / 10:  # else ranks would be wasted
            how = Storage(dtype, f"{found_by}{name}", weights)
            return _meet_error(stack, search, rule, how, total)
    raise AssertionError("the whole core space misses nothing")


def _spaces(stack: Stack, rule: RankRule, options: _Options) -> Iterator[tuple[CoreSpace, str]]:
    """Core spaces to try, with a word for how they were found; the last one holds everything."""
    if options.method not in ("auto", "exact", "randomised", "blocked"):
        raise OptionError(
            f"method must be auto, exact, randomised or blocked; found {options.method!r}"
        )
    if options.method != "exact" and isinstance(stack, LoRAStack):
        whole = min(stack.up.shape[1], max(stack.shape[1:]))
        for size in _sketch_sizes(rule, whole, options.method):
            if options.method == "blocked":
                yield blocked_space(stack, size), "blocked "
            else:
                found = randomised_space(
                    stack, size, power_iterations=POWER_ITERATIONS, seed=options.seed
                )
                yield found, "randomised "
    yield core_space(stack), ""


def _sketch_sizes(rule: RankRule, whole: int, method: Method) -> list[int]:
    """Sizes of subspaces to try before the whole core space, smallest first."""
    if isinstance(rule, FixedRank):
        sizes = [2 * max(rule.pair) + SMALLEST_SKETCH]
    else:
        sizes = [max(SMALLEST_SKETCH, whole // share) for share in (8, 4)]
    if method == "auto":
        return [size for size in sizes if whole > EXACT_UP_TO and 4 * size <= whole]
    return [min(size, whole) for size in sizes] if isinstance(rule, FixedRank) else [*sizes, whole]


def _meet_error(
    stack: Stack, search: PairSearch, rule: RankRule, how: Storage, total: float
) -> Tucker2:
    lost = search.lost()

    def attempt(budget: float) -> Tucker2:
        subspaces = search.within(lost, budget)
        ranks = subspaces.left.shape[1], subspaces.right.shape[1]
        if isinstance(stack, LoRAStack) and ranks == (stack.up.shape[1],) * 2:
            return keep_whole(stack, search.space, how)
        return assemble(stack, search.space, subspaces, how)

    floor = resolution(search.space.wide) ** 2 * total
    return meet_error(attempt, rule, total, floor, how.dtype)
