"""Laws that every decomposition and every operation must obey.

Each law is a function that raises `AssertionError` where the law is broken, checked against plain
dense matrices in float64. They work on stacks of any backend.

Examples:
    >>> import numpy as np
    >>> from lotr_tn import LoRAStack, hosvd
    >>> from lotr_tn.testing import laws
    >>> rng = np.random.default_rng(0)
    >>> up, down = rng.standard_normal((7, 6)), rng.standard_normal((6, 5))
    >>> laws.reported_error_is_true(hosvd, LoRAStack(up, down, (1, 2, 3)), (2, 3))
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from lotr_tn._arrays import Array, dtype_name, namespace_of, to_numpy
from lotr_tn.formats import Dense, LoRAStack, Stack, Tucker2
from lotr_tn.ops.layers import arrays_of

__all__ = [
    "apply_is_the_matrix_product",
    "bounds_bracket_the_error",
    "dense_updates",
    "difference_is_exact",
    "distance_is_the_norm_of_the_difference",
    "exact_at_full_rank",
    "factors_are_orthonormal",
    "gauge_invariance",
    "inner_is_the_sum_of_products",
    "larger_ranks_never_lose_more",
    "layers_may_be_reordered",
    "norm_is_the_root_of_squares",
    "reported_error_is_true",
    "scaling_scales_the_result",
]

Decomposition: TypeAlias = Callable[[LoRAStack, tuple[int, int]], Tucker2]
"""A function of a stack and a pair of ranks, such as `lotr_tn.hosvd`."""


def dense_updates(stack: Stack) -> np.ndarray:
    """The updates as (L, m, n) float64 matrices, by a plain loop over entries' definitions."""
    arrays = {name: to_numpy(x).astype(np.float64) for name, x in arrays_of(stack).items()}
    match stack:
        case Dense():
            return arrays["w"]
        case Tucker2():
            return np.stack([arrays["u"] @ core @ arrays["v"].T for core in arrays["core"]])
        case LoRAStack():
            layers, start = [], 0
            for rank in stack.ranks:
                part = slice(start, start + rank)
                layers.append(arrays["up"][:, part] @ arrays["down"][part, :])
                start += rank
            return np.stack(layers)


def _tolerance(stack: Stack) -> float:
    """Rounding to expect, relative to the norm, for the stack's storage dtype."""
    roundoff = {"float64": 1e-13, "float32": 2e-6, "float16": 2e-2, "bfloat16": 2e-1}
    return roundoff[dtype_name(next(iter(arrays_of(stack).values())))]


def _close(found: Array | float, wanted: float, scale: float, what: str) -> None:
    found = float(found)
    assert abs(found - wanted) <= scale, f"{what} is {wanted:.17g}; found {found:.17g}"


def reported_error_is_true(
    decompose: Decomposition, stack: LoRAStack, ranks: tuple[int, int]
) -> None:
    """The certificate's errors, whole and per layer, are those of the dense difference."""
    result = decompose(stack, ranks)
    assert result.certificate is not None, "a decomposition must certify its error"
    truth, found = dense_updates(stack), dense_updates(result)
    size = float(np.linalg.norm(truth))
    for layer, reported in enumerate(to_numpy(result.certificate.distances)):
        wanted = float(np.linalg.norm(truth[layer] - found[layer]))
        _close(reported, wanted, 1e-9 * wanted + 1e-12 * size, f"the distance of layer {layer}")
    wanted = float(np.linalg.norm(truth - found)) / size if size else 0.0
    _close(result.certificate.relative_error, wanted, 1e-9 * wanted + 1e-12, "the relative error")


def bounds_bracket_the_error(
    decompose: Decomposition, stack: LoRAStack, ranks: tuple[int, int]
) -> None:
    """The lower bound is at most, and the upper bound at least, the true error."""
    result = decompose(stack, ranks)
    assert result.certificate is not None, "a decomposition must certify its error"
    truth = dense_updates(stack)
    size = float(np.linalg.norm(truth))
    error = float(np.linalg.norm(truth - dense_updates(result))) / size if size else 0.0
    lower, upper = result.certificate.lower_bound, result.certificate.upper_bound
    assert lower <= error + 1e-15, f"lower bound {lower} is above the error {error}"
    assert upper >= error - 1e-15, f"upper bound {upper} is below the error {error}"
    tails = _mode_tails(truth, result.ranks)
    best = max(tails) / size if size else 0.0
    assert lower >= 0.99 * best - 1e-6, f"lower bound {lower} is below the mode tail {best}"


def _mode_tails(truth: np.ndarray, ranks: tuple[int, int]) -> list[float]:
    _, m, n = truth.shape
    unfoldings = truth.transpose(1, 0, 2).reshape(m, -1), truth.transpose(2, 0, 1).reshape(n, -1)
    return [
        float(np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:]))
        for matrix, rank in zip(unfoldings, ranks, strict=True)
    ]


def factors_are_orthonormal(
    decompose: Decomposition, stack: LoRAStack, ranks: tuple[int, int]
) -> None:
    """Columns of U and of V are orthonormal, to the rounding of the storage dtype.

    Columns beyond the stack's own rank may be zero.
    """
    result = decompose(stack, ranks)
    for name, factor in (("u", result.u), ("v", result.v)):
        wide = to_numpy(factor).astype(np.float64)
        gram = wide.T @ wide
        off = np.abs(gram - np.diag(np.diag(gram) > 0.5)).max(initial=0.0)
        assert off <= 10 * _tolerance(stack), f"{name}ᵀ{name} is off orthonormal by {off:.2g}"


def larger_ranks_never_lose_more(
    decompose: Decomposition, stack: LoRAStack, ranks: tuple[int, int]
) -> None:
    """One more column on either side does not raise the error (beyond rounding)."""
    base = _error(decompose(stack, ranks), stack)
    for more in ((ranks[0] + 1, ranks[1]), (ranks[0], ranks[1] + 1)):
        error = _error(decompose(stack, more), stack)
        assert error <= base + _tolerance(stack), f"ranks {more} lose {error}, {ranks} lose {base}"


def exact_at_full_rank(decompose: Decomposition, stack: LoRAStack) -> None:
    """With all ranks the updates come back, to the rounding of the storage dtype."""
    _, m, n = stack.shape
    error = _error(decompose(stack, (m, n)), stack)
    assert error <= _tolerance(stack), f"full ranks still lose {error}"


def gauge_invariance(
    decompose: Decomposition, stack: LoRAStack, ranks: tuple[int, int], seed: int
) -> None:
    """(up, down) → (up Q, Q⁻¹ down) leaves ΔW, and so every reported number, as it was."""
    rng = np.random.default_rng(seed)
    xp = namespace_of(up=stack.up)
    up, down = to_numpy(stack.up).astype(np.float64), to_numpy(stack.down).astype(np.float64)
    total = np.zeros((up.shape[1], up.shape[1]))
    for part in stack.slices:
        size = part.stop - part.start
        total[part, part] = rng.standard_normal((size, size)) + 3 * np.eye(size)
    other = LoRAStack(
        _like(up @ total, stack.up, xp),
        _like(np.linalg.solve(total, down), stack.up, xp),
        stack.ranks,
    )
    first, second = decompose(stack, ranks).certificate, decompose(other, ranks).certificate
    assert first is not None, "a decomposition must certify its error"
    assert second is not None, "a decomposition must certify its error"
    for name in ("relative_error", "lower_bound", "norm"):
        one, two = getattr(first, name), getattr(second, name)
        _close(two, one, 1e-6 * one + 100 * _tolerance(stack) * max(1.0, first.norm), name)


def scaling_scales_the_result(
    decompose: Decomposition, stack: LoRAStack, ranks: tuple[int, int]
) -> None:
    """A stack twice as large gives a result twice as large."""
    twice = LoRAStack(stack.up * 2.0, stack.down, stack.ranks)
    one, two = dense_updates(decompose(stack, ranks)), dense_updates(decompose(twice, ranks))
    size = max(float(np.linalg.norm(one)), 1e-300)
    off = float(np.linalg.norm(two - 2 * one)) / size
    assert off <= 1e3 * _tolerance(stack), f"twice the stack is off twice the result by {off:.2g}"


def layers_may_be_reordered(
    decompose: Decomposition, stack: LoRAStack, ranks: tuple[int, int]
) -> None:
    """Layers in reverse order lose the same, each layer its own."""
    from lotr_tn.ops import take_layers

    backwards = take_layers(stack, list(range(stack.shape[0]))[::-1])
    assert isinstance(backwards, LoRAStack)
    one, two = decompose(stack, ranks).certificate, decompose(backwards, ranks).certificate
    assert one is not None, "a decomposition must certify its error"
    assert two is not None, "a decomposition must certify its error"
    scale = (1e-6 + _tolerance(stack)) * one.norm + 1e-300
    pairs = zip(to_numpy(one.distances), to_numpy(two.distances)[::-1], strict=True)
    for layer, (forth, back) in enumerate(pairs):
        _close(back, float(forth), scale, f"the distance of layer {layer}")


def _error(result: Tucker2, stack: LoRAStack) -> float:
    truth = dense_updates(stack)
    size = float(np.linalg.norm(truth))
    return float(np.linalg.norm(truth - dense_updates(result))) / size if size else 0.0


def _like(x: np.ndarray, like: Array, xp: object) -> Array:
    from lotr_tn._arrays import cast

    wide = xp.asarray(x, device=like.device)  # pyright: ignore[reportAttributeAccessIssue]
    return cast(wide, dtype_name(like), xp=xp)


def norm_is_the_root_of_squares(norm: Callable[[Stack], Array], stack: Stack) -> None:
    """‖T‖ is the root of the sum of squared entries."""
    wanted = float(np.linalg.norm(dense_updates(stack)))
    _close(
        norm(stack),
        wanted,
        1e-6 * wanted * (dtype_name_of(stack) != "float64") + 1e-12 * wanted,
        "the norm",
    )


def dtype_name_of(stack: Stack) -> str:
    """The storage dtype of a stack."""
    return dtype_name(next(iter(arrays_of(stack).values())))


def inner_is_the_sum_of_products(
    inner: Callable[[Stack, Stack], Array], a: Stack, b: Stack
) -> None:
    """⟨a, b⟩ is the sum of products of entries."""
    x, y = dense_updates(a), dense_updates(b)
    scale = 1e-12 * float(np.linalg.norm(x) * np.linalg.norm(y)) + 1e-300
    _close(inner(a, b), float((x * y).sum()), scale, "the inner product")


def distance_is_the_norm_of_the_difference(
    distance: Callable[[Stack, Stack], Array], a: Stack, b: Stack
) -> None:
    """‖a − b‖ is the root of the sum of squared differences of entries, however small."""
    x, y = dense_updates(a), dense_updates(b)
    wanted = float(np.linalg.norm(x - y))
    _close(distance(a, b), wanted, 1e-7 * wanted + 1e-13 * float(np.linalg.norm(x)), "the distance")


def difference_is_exact(subtract: Callable[[Stack, Stack], Stack], a: Stack, b: Stack) -> None:
    """The difference a − b has the differences of the entries."""
    x, y = dense_updates(a), dense_updates(b)
    off = float(np.linalg.norm(dense_updates(subtract(a, b)) - (x - y)))
    size = float(np.linalg.norm(x) + np.linalg.norm(y))
    assert off <= _tolerance(a) * size, f"the difference is off by {off:.2g}"


def apply_is_the_matrix_product(
    apply: Callable[[Stack, Array], Array], stack: Stack, x: Array
) -> None:
    """apply(stack, x)[l] = x ΔW_lᵀ."""
    inputs = to_numpy(x).astype(np.float64)
    wanted = np.stack([inputs @ matrix.T for matrix in dense_updates(stack)])
    found = to_numpy(apply(stack, x)).astype(np.float64)
    assert found.shape == wanted.shape, f"needed shape {wanted.shape}; found {found.shape}"
    size = float(np.linalg.norm(dense_updates(stack)) * np.linalg.norm(inputs))
    off = float(np.linalg.norm(found - wanted))
    assert off <= _tolerance(stack) * size, f"x ΔWᵀ is off by {off:.2g}"
