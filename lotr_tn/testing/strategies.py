"""Hypothesis strategies for stacks of updates. Requires the hypothesis package.

Sizes and a seed are drawn, and entries follow from the seed: that shrinks to small, readable cases.
Axes differ in size, so that a transposed or swapped axis cannot hide.
"""

import numpy as np
from hypothesis import strategies as st

from lotr_tn.formats import LoRAStack, Tucker2

__all__ = ["distinct_sizes", "lora_stacks", "ranks", "tucker_stacks"]


@st.composite
def distinct_sizes(draw: st.DrawFn, count: int, largest: int = 12) -> tuple[int, ...]:
    """`count` different sizes from 2 to `largest`."""
    sizes = st.integers(2, largest)
    return tuple(draw(st.lists(sizes, min_size=count, max_size=count, unique=True)))


def ranks(largest: int = 6) -> st.SearchStrategy[tuple[int, int]]:
    """A pair of ranks from 1 to `largest`."""
    return st.tuples(st.integers(1, largest), st.integers(1, largest))


@st.composite
def lora_stacks(draw: st.DrawFn, *, dtype: str = "float64", degenerate: bool = True) -> LoRAStack:
    """A LoRA stack on NumPy with ragged ranks.

    Args:
        draw: given by hypothesis.
        dtype: storage dtype.
        degenerate: whether zero layers, repeated layers and ranks 0 may occur.
    """
    layers, m, n = draw(distinct_sizes(3))
    layers = min(layers, 6)
    smallest = 0 if degenerate else 1
    each = draw(st.lists(st.integers(smallest, 3), min_size=layers, max_size=layers))
    if sum(each) == 0:
        each[0] = 1
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    up, down = rng.standard_normal((m, sum(each))), rng.standard_normal((sum(each), n))
    kind = (
        draw(st.sampled_from(["plain", "zero layer", "shared", "tiny", "huge"]))
        if degenerate
        else ""
    )
    if kind == "zero layer":
        up[:, : each[0]] = 0
    elif kind == "shared":
        up[:] = up[:, :1]
    elif kind in ("tiny", "huge"):
        up *= 1e-12 if kind == "tiny" else 1e8
    return LoRAStack(up.astype(dtype), down.astype(dtype), tuple(each))


@st.composite
def tucker_stacks(draw: st.DrawFn, *, dtype: str = "float64") -> Tucker2:
    """A Tucker-2 stack on NumPy, with factors that need not be orthonormal."""
    layers, m, n, r1, r2 = draw(distinct_sizes(5))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    u, v = rng.standard_normal((m, r1)), rng.standard_normal((n, r2))
    core = rng.standard_normal((layers, r1, r2))
    return Tucker2(u.astype(dtype), core.astype(dtype), v.astype(dtype))
