"""Changes of gauge: other factors of the same updates."""

from collections.abc import Callable, Sequence

import numpy as np

from lotr_tn._arrays import Array, Namespace, cast, dtype_name
from lotr_tn.formats import Stack
from lotr_tn.ops.arrays import Kind, arrays_of, common_namespace, with_arrays
from lotr_tn.testing.formats import laws_of
from lotr_tn.testing.laws.truth import (
    ROUNDING,
    dense_updates,
    expect_close,
    magnitude,
    norm_of,
    rounding,
    wide,
)


def gauge_sizes(stack: Stack) -> tuple[int, ...]:
    """The sizes of the matrices that change the gauge of a stack.

    One for each layer of a LoRA; r1 and r2 of a Tucker-2, and then one for each layer where its
    cores are low-rank; r of a Tucker-1; none for dense.
    """
    return laws_of(type(stack)).gauge_sizes(stack)


def change_gauge(stack: Kind, matrices: Sequence[np.ndarray]) -> Kind:
    """The same updates by other factors.

    LoRA: up_l Q_l and Q_l⁻¹ down_l. Tucker-2: U P, P⁻¹ G_l Q⁻ᵀ and V Q; with low-rank cores U P,
    P⁻¹ up_l Q_l, Q_l⁻¹ down_l Q⁻ᵀ and V Q. Tucker-1: shared Q and own_l Q⁻ᵀ.

    Args:
        stack: any stack.
        matrices: invertible NumPy matrices of `gauge_sizes(stack)`, such as
            `strategies.gauges` draws.
    """
    xp, arrays = common_namespace(stack), arrays_of(stack)
    host = {name: wide(x) for name, x in arrays.items()}
    changed = laws_of(type(stack)).regauge(stack, host, matrices)
    return with_arrays(stack, **{name: _like(x, arrays[name], xp) for name, x in changed.items()})


def random_gauge(sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Well-conditioned matrices of these sizes that mix all directions."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(-0.5, 0.5, (k, k)) / max(k, 1) ** 0.5 + np.eye(k) for k in sizes]


def measure_is_gauge_invariant(
    measure: Callable[..., Array | float], stacks: Sequence[Stack], seed: int, *, scale: float = 1.0
) -> None:
    """A number that belongs to updates is the same for all factors of these updates.

    It catches a similarity or an error that is computed from the factors instead of the updates.

    Args:
        measure: a function of as many stacks as are given.
        stacks: any stacks of one shape.
        seed: of the change of gauge.
        scale: the size to which the number's rounding is relative: 1 for a cosine, a norm for a
            distance.
    """
    others = [
        change_gauge(stack, random_gauge(gauge_sizes(stack), seed + index))
        for index, stack in enumerate(stacks)
    ]
    if any(is_lost(stack) for stack in stacks):
        return
    one, two = float(measure(*stacks)), float(measure(*others))
    worst = max(
        rounding(stack) * magnitude(stack) / norm_of(dense_updates(stack)) for stack in stacks
    )
    slack = 50 * worst * max(abs(one), scale)
    expect_close(two, one, slack, "the number, by other factors of the same updates,")


def is_lost(stack: Stack) -> bool:
    """Whether terms cancel so far that the updates are hardly larger than float32's rounding."""
    return norm_of(dense_updates(stack)) <= 1e3 * ROUNDING["float32"] * magnitude(stack)


def _like(x: np.ndarray, like: Array, xp: Namespace) -> Array:
    return cast(xp.asarray(x, device=like.device), dtype_name(like), xp=xp)
