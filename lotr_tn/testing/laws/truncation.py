"""Laws of functions that cut a stack down to fewer ranks: decompositions and rounding.

Each takes a function of a stack and ranks (see `Decomposition`), a stack and ranks.
"""

from typing import Any

import numpy as np

from lotr_tn._arrays import to_numpy
from lotr_tn.formats import Stack
from lotr_tn.linalg import RelativeError
from lotr_tn.ops import convert, take_layers
from lotr_tn.ops.arrays import arrays_of, storage_dtype, with_arrays
from lotr_tn.testing.entries import GAP
from lotr_tn.testing.formats import laws_of
from lotr_tn.testing.laws.gauge import change_gauge, gauge_sizes, is_lost, random_gauge
from lotr_tn.testing.laws.outcome import (
    Decomposition,
    Ranks,
    cuts,
    loss,
    run,
    tail,
    tails,
    unfolded,
)
from lotr_tn.testing.laws.truth import (
    dense_updates,
    expect,
    expect_close,
    expect_same,
    expect_same_arrays,
    magnitude,
    norm_of,
    rounding,
    wide,
)

PLAIN_REPORTS = {"float64": (1e-10, 1e-12), "float32": (1e-4, 4e-7)}
"""What a reported number may be off without a certificate: relative to it, and at least."""


def result_fits_the_stack(decompose: Decomposition, stack: Stack, ranks: Ranks) -> None:
    """The result has the stack's shape (L, m, n) and dtype, and finite entries."""
    result = run(decompose, stack, ranks).stack
    expect_same("the shape (L, m, n)", result.shape, stack.shape)
    expect_same("the dtype", storage_dtype(result), storage_dtype(stack))
    for name, x in arrays_of(result).items():
        expect(bool(np.isfinite(wide(x)).all()), f"{name} holds entries that are not finite")


def rank_is_kept(decompose: Decomposition, stack: Stack, ranks: Ranks) -> None:
    """No rank of the result is larger than asked for."""
    result = run(decompose, stack, ranks).stack
    for cut in cuts(result, ranks):
        at_most = f"{cut.name} may be {cut.asked} at most; found {cut.found}"
        expect(cut.found <= cut.asked, at_most)


def reported_error_is_true(decompose: Decomposition, stack: Stack, ranks: Ranks) -> None:
    """The error that is reported, whole and per layer, is that of the dense difference."""
    outcome = run(decompose, stack, ranks)
    expect(outcome.error is not None, "a decomposition must certify its error")
    assert outcome.error is not None
    lost = loss(outcome.stack, stack)
    relative, least = PLAIN_REPORTS.get(storage_dtype(stack), (0.1, rounding(stack)))
    if outcome.certificate is not None:
        relative, least = 1e-9, 1e-12
        truth, found = dense_updates(stack), dense_updates(outcome.stack)
        for layer, reported in enumerate(to_numpy(outcome.certificate.distances)):
            wanted = norm_of(truth[layer] - found[layer])
            slack = 1e-9 * wanted + 1e-12 * magnitude(stack)
            expect_close(reported, wanted, slack, f"the distance of layer {layer}")
    if lost.is_defined:
        slack = relative * lost.relative + least * max(1.0, lost.slack / rounding(stack))
        expect_close(outcome.error, lost.relative, slack, "the relative error")


def small_errors_are_seen(decompose: Decomposition, stack: Stack, ranks: Ranks) -> None:
    """A relative error of 1e-6 … 1e-4 is reported to a tenth, in float32 too.

    It catches √(‖T‖² − ‖G‖²), which in float32 is 0, nan, or 2e-4 and more. Draw the stack and
    ranks from `strategies.nearly_low_rank`.
    """
    outcome = run(decompose, stack, ranks)
    expect(outcome.error is not None, "a decomposition must report its error")
    assert outcome.error is not None
    wanted = loss(outcome.stack, stack).relative
    least = PLAIN_REPORTS.get(storage_dtype(stack), (0.1, rounding(stack)))[1]
    expect_close(outcome.error, wanted, 0.1 * wanted + least, "the small relative error")


def bounds_bracket_the_error(decompose: Decomposition, stack: Stack, ranks: Ranks) -> None:
    """The certificate's lower bound is at most, and the upper bound at least, the true error."""
    outcome = run(decompose, stack, ranks)
    expect(outcome.certificate is not None, "a decomposition must certify its error")
    assert outcome.certificate is not None
    lost = loss(outcome.stack, stack)
    if not lost.is_defined:
        return
    lower, upper = outcome.certificate.lower_bound, outcome.certificate.upper_bound
    error, noise = lost.relative, 1e-15 * max(1.0, lost.slack / rounding(stack))
    expect(lower <= error + noise, f"the lower bound {lower} is above the error {error}")
    expect(upper >= error - noise, f"the upper bound {upper} is below the error {error}")
    best = _largest_tail(dense_updates(stack), outcome.stack) / lost.norm if lost.norm else 0.0
    slack = 0.01 * best + 1e-6 * max(1.0, lost.slack / rounding(stack))
    expect(lower >= best - slack, f"the lower bound {lower} is below the mode tail {best}")


def _largest_tail(truth: np.ndarray, result: Stack) -> float:
    """No result of these ranks is closer than the larger tail of the modes that it cuts."""
    tails_of: dict[bool, list[float]] = {True: [], False: []}
    for cut in cuts(result, 0):
        tails_of[isinstance(cut.of, int)].append(tail(unfolded(truth, cut), cut.found))
    return max(float(np.linalg.norm(tails_of[True])), *tails_of[False], 0.0)


def error_is_nearly_the_best(decompose: Decomposition, stack: Stack, ranks: Ranks) -> None:
    """The error is at most that of cutting off singular values.

    For Tucker-2 that is √(tail₁² + tail₂²) over both unfoldings, at most √2 times the best error;
    for Tucker-1, and layer by layer for LoRA and for low-rank cores, it is the best error.
    """
    result = run(decompose, stack, ranks).stack
    bound = tails(dense_updates(stack), ranks, result)
    slack = rounding(stack) * magnitude(stack)
    distance = loss(result, stack).distance
    expect(
        distance <= bound * (1 + 1e-9) + slack,
        f"the distance {distance:.6g} is above {bound:.6g}, which cutting singular values reaches",
    )


def error_rule_is_met(decompose: Decomposition, stack: Stack, epsilon: float) -> None:
    """Asked for `RelativeError(epsilon)`, the result loses no more, but for rounding."""
    result = run(decompose, stack, RelativeError(epsilon)).stack
    lost = loss(result, stack)
    allowed = epsilon * lost.norm * (1 + 1e-9) + rounding(stack) * magnitude(stack)
    expect(
        lost.distance <= allowed, f"asked for an error of {epsilon}, it loses {lost.relative:.6g}"
    )


def factors_are_orthonormal(decompose: Decomposition, stack: Stack, ranks: Ranks) -> None:
    """Columns of U and of V are orthonormal, to the rounding of the storage dtype.

    Columns beyond the stack's own rank may be zero.
    """
    result = run(decompose, stack, ranks).stack
    names = laws_of(type(result)).factors
    expect(bool(names), "only a Tucker-2 has orthonormal factors on both sides")
    for name in names:
        factor = wide(getattr(result, name))
        gram = factor.T @ factor
        off = np.abs(gram - np.diag(np.diag(gram) > 0.5)).max(initial=0.0)
        expect(off <= 10 * rounding(stack), f"{name}ᵀ{name} is off orthonormal by {off:.2g}")


def larger_ranks_never_lose_more(decompose: Decomposition, stack: Stack, ranks: Ranks) -> None:
    """One more rank, on either side, does not raise the error (beyond rounding)."""
    if isinstance(ranks, int):
        larger: list[Ranks] = [ranks + 1]
    else:
        larger = [(ranks[0] + 1, ranks[1]), (ranks[0], ranks[1] + 1)]
    base = loss(run(decompose, stack, ranks).stack, stack).distance
    for more in larger:
        distance = loss(run(decompose, stack, more).stack, stack).distance
        expect(
            distance <= base + rounding(stack) * magnitude(stack),
            f"ranks {more} lose {distance:.6g}, and ranks {ranks} lose {base:.6g}",
        )


def exact_at_full_rank(decompose: Decomposition, stack: Stack, ranks: Ranks | None = None) -> None:
    """With all ranks, (m, n) where they are left out, the updates come back, but for rounding."""
    result = run(decompose, stack, stack.shape[1:] if ranks is None else ranks).stack
    lost = loss(result, stack)
    allowed = rounding(stack) * magnitude(stack)
    expect(lost.distance <= allowed, f"full ranks still lose {lost.relative:.3g} of the stack")


def twice_is_once(decompose: Decomposition, stack: Stack, ranks: Ranks) -> None:
    """The result, decomposed again at the same ranks, stays as it is."""
    once = run(decompose, stack, ranks).stack
    back = convert(once, type(stack), side=getattr(stack, "side", "in"))
    again = run(decompose, back, ranks).stack
    off = loss(again, once).distance
    allowed = 10 * rounding(stack) * magnitude(stack)
    expect(off <= allowed, f"a second time changes the result by {off:.2g}")


def repeating_gives_the_same(decompose: Decomposition, stack: Stack, ranks: Ranks) -> None:
    """The same input gives the same factors, bit for bit: no unseeded random numbers."""
    one, two = (run(decompose, stack, ranks).stack for _ in range(2))
    expect_same_arrays(one, arrays_of(two), "differs when the same stack is decomposed again")


def input_is_left_alone(decompose: Decomposition, stack: Stack, ranks: Ranks) -> None:
    """The stack that was given has the same entries afterwards."""
    before = {name: to_numpy(x).copy() for name, x in arrays_of(stack).items()}
    run(decompose, stack, ranks)
    expect_same_arrays(stack, before, "of the stack that was given has changed")


def gauge_invariance(decompose: Decomposition, stack: Stack, ranks: Ranks, seed: int = 0) -> None:
    """Other factors of the same updates, such as (up Q, Q⁻¹ down), lose the same.

    The law says nothing where singular values are tied at the cut, since then which direction is
    kept is left to rounding.
    """
    if is_lost(stack) or _tied(stack, ranks):
        return
    other = change_gauge(stack, random_gauge(gauge_sizes(stack), seed))
    first, second = run(decompose, stack, ranks), run(decompose, other, ranks)
    one, two = loss(first.stack, stack), loss(second.stack, other)
    slack = 1e-6 * one.relative + 100 * one.slack
    what = "by other factors of the same updates"
    expect_close(two.relative, one.relative, slack, f"the error, {what},")
    if first.error is not None and second.error is not None:
        expect_close(second.error, first.error, slack, f"the reported error, {what},")


def scaling_scales_the_result(decompose: Decomposition, stack: Stack, ranks: Ranks) -> None:
    """A stack twice as large gives a result twice as large."""
    scaled = {name: x * 2.0 for name, x in list(arrays_of(stack).items())[-1:]}
    twice = with_arrays(stack, **scaled)
    results = (run(decompose, x, ranks).stack for x in (stack, twice))
    one, two = (dense_updates(result) for result in results)
    off = norm_of(two - 2 * one)
    allowed = 1e3 * rounding(stack) * magnitude(stack)
    expect(off <= allowed, f"twice the stack is off twice the result by {off:.2g}")


def layers_may_be_reordered(decompose: Decomposition, stack: Stack, ranks: Ranks) -> None:
    """Layers in reverse order lose the same, each layer its own.

    As `gauge_invariance`, the law says nothing where singular values are tied at the cut.
    """
    if is_lost(stack) or _tied(stack, ranks):
        return
    order = list(range(stack.shape[0]))[::-1]
    forth = _layer_distances(decompose, stack, ranks)
    back = _layer_distances(decompose, take_layers(stack, order), ranks)[::-1]
    slack = (1e-6 + rounding(stack)) * magnitude(stack)
    for layer, (one, two) in enumerate(zip(forth, back, strict=True)):
        expect_close(two, float(one), slack, f"backwards, the distance of layer {layer}")


def _layer_distances(decompose: Decomposition, stack: Stack, ranks: Ranks) -> np.ndarray:
    difference = dense_updates(stack) - dense_updates(run(decompose, stack, ranks).stack)
    return np.linalg.norm(difference, axis=(1, 2))


def _tied(stack: Stack, ranks: Any) -> bool:
    """Whether an unfolding, or a layer, has equal singular values on both sides of the cut."""
    truth = dense_updates(stack)
    _, m, n = truth.shape
    outputs, inputs = truth.transpose(1, 0, 2).reshape(m, -1), truth.reshape(-1, n)
    if isinstance(ranks, int):
        cut = [(outputs, ranks), (inputs, ranks), *((matrix, ranks) for matrix in truth)]
    else:
        cut = [(outputs, ranks[0]), (inputs, ranks[1])]
    return any(_tied_at(np.linalg.svd(x, compute_uv=False), rank) for x, rank in cut)


def _tied_at(values: np.ndarray, rank: int) -> bool:
    if not 0 < rank < len(values):
        return False
    inside, outside = values[rank - 1], values[rank]
    return bool(inside > 1e-9 * values[0] and inside - outside <= GAP * values[0])
