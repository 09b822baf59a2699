"""Strategies for stacks of updates, in every format."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import array_api_compat.numpy as numpy_namespace
import numpy as np
from hypothesis import reject
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from lotr_tn._arrays import Array, cast
from lotr_tn.formats import Dense, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.ops.arrays import arrays_of
from lotr_tn.testing.laws.truth import dense_updates
from lotr_tn.testing.strategies import sizes
from lotr_tn.testing.strategies.entries import (
    GENERIC_KINDS,
    KINDS,
    Kind,
    factor,
    layered,
    layers_are_generic,
    plain,
)
from lotr_tn.testing.strategies.sizes import either

__all__ = [
    "dense_stacks",
    "lora_stacks",
    "low_rank_tucker2s",
    "nearly_low_rank",
    "stacks",
    "stacks_of_one_shape",
    "stored",
    "tucker1s",
    "tucker2s",
]

ToArray: TypeAlias = Callable[[np.ndarray], Array]
Shapes: TypeAlias = SearchStrategy[tuple[int, int, int]]
Made = TypeVar("Made", LoRAStack, Tucker2, LowRankTucker2, Tucker1, Dense)

RANKS = (1, 2, 3, 4, 0)
"""Ranks of layers, and of one shared side; 0 comes last, so that examples shrink towards 1."""

POSITIVE_PAIRS = tuple(itertools.permutations((1, 2, 3, 4, 5), 2))
PAIRS = (*POSITIVE_PAIRS, *((0, r) for r in RANKS), *((r, 0) for r in RANKS[:-1]))
"""Ranks of both sides, which differ, or are both 0."""

ATTEMPTS = 100
"""How often entries are drawn until they are generic; most often two or three times."""


def lora_stacks(
    *,
    shapes: Shapes | None = None,
    ranks: SearchStrategy[int] | None = None,
    dtype: str = "float64",
    array: ToArray | None = None,
    degenerate: bool = True,
) -> SearchStrategy[LoRAStack]:
    """LoRA stacks with ragged ranks. Requires the hypothesis package.

    Args:
        shapes: a strategy of shapes (L, m, n); `shapes()` where left out.
        ranks: a strategy from which each layer's rank is drawn; 0 to 4 where left out.
        dtype: storage dtype: "float64", "float32", "float16" or "bfloat16".
        array: a function that each NumPy array goes through, such as `torch.from_numpy`.
        degenerate: whether special cases are drawn. Otherwise each update has the full rank of its
            factors, and no singular values of the stack are tied.

    Raises:
        TypeError: shapes or ranks is a value instead of a strategy.
    """
    chosen = either("shapes", shapes, sizes.shapes())
    each = either("ranks", ranks, _layer_ranks(degenerate))
    return _lora_stacks(chosen, each, dtype, array, degenerate)


@st.composite
def _lora_stacks(
    draw: st.DrawFn,
    chosen: Shapes,
    each: SearchStrategy[int],
    dtype: str,
    array: ToArray | None,
    degenerate: bool,
) -> LoRAStack:
    layers, m, n = draw(chosen)
    found = tuple(draw(each) for _ in range(layers))

    def make(kind: Kind, rng: np.random.Generator) -> LoRAStack:
        own = found[:1] * layers if kind == "equal layers" else found
        up = layered(kind, rng, [(m, r) for r in own], dtype)
        down = layered(plain(kind), rng, [(n, r) for r in own], dtype)
        return LoRAStack(np.concatenate(up, axis=1), np.concatenate(down, axis=1).T.copy(), own)

    stack = _filled(draw, make, found, degenerate=degenerate)
    return _stored(stack, dtype, array)


def tucker2s(
    *,
    shapes: Shapes | None = None,
    ranks: SearchStrategy[tuple[int, int]] | None = None,
    dtype: str = "float64",
    array: ToArray | None = None,
    degenerate: bool = True,
) -> SearchStrategy[Tucker2]:
    """Tucker-2 stacks, whose factors need not be orthonormal. Requires the hypothesis package.

    Args:
        shapes: a strategy of shapes (L, m, n); `shapes()` where left out.
        ranks: a strategy of pairs (r1, r2); where left out, ranks from 0 to 5 that differ.
        dtype: as for `lora_stacks`.
        array: as for `lora_stacks`.
        degenerate: as for `lora_stacks`.

    Raises:
        TypeError: shapes or ranks is a value instead of a strategy.
    """
    chosen = either("shapes", shapes, sizes.shapes())
    pairs = either("ranks", ranks, st.sampled_from(PAIRS if degenerate else POSITIVE_PAIRS))
    return _tucker2s(chosen, pairs, dtype, array, degenerate)


@st.composite
def _tucker2s(
    draw: st.DrawFn,
    chosen: Shapes,
    pairs: SearchStrategy[tuple[int, int]],
    dtype: str,
    array: ToArray | None,
    degenerate: bool,
) -> Tucker2:
    layers, m, n = draw(chosen)
    r1, r2 = draw(pairs)

    def make(kind: Kind, rng: np.random.Generator) -> Tucker2:
        u = factor(plain(kind) if kind != "dependent columns" else kind, rng, m, r1)
        v = factor(plain(kind), rng, n, r2)
        return Tucker2(u, np.stack(layered(kind, rng, [(r1, r2)] * layers, dtype)), v)

    stack = _filled(draw, make, (min(r1, r2),) * layers, degenerate=degenerate)
    return _stored(stack, dtype, array)


def low_rank_tucker2s(
    *,
    shapes: Shapes | None = None,
    shared_ranks: SearchStrategy[tuple[int, int]] | None = None,
    ranks: SearchStrategy[int] | None = None,
    dtype: str = "float64",
    array: ToArray | None = None,
    degenerate: bool = True,
) -> SearchStrategy[LowRankTucker2]:
    """Tucker-2 stacks with low-rank cores of ragged ranks. Requires the hypothesis package.

    Args:
        shapes: a strategy of shapes (L, m, n); `shapes()` where left out.
        shared_ranks: a strategy of pairs (r1, r2); where left out, ranks from 0 to 5 that differ.
        ranks: a strategy from which each core's rank is drawn; 0 to 4 where left out.
        dtype: as for `lora_stacks`.
        array: as for `lora_stacks`.
        degenerate: as for `lora_stacks`.

    Raises:
        TypeError: shapes, shared_ranks or ranks is a value instead of a strategy.
    """
    pairs = st.sampled_from(PAIRS if degenerate else POSITIVE_PAIRS)
    sizes_drawn = (
        either("shapes", shapes, sizes.shapes()),
        either("shared_ranks", shared_ranks, pairs),
        either("ranks", ranks, _layer_ranks(degenerate)),
    )
    return _low_rank_tucker2s(sizes_drawn, dtype, array, degenerate)


@st.composite
def _low_rank_tucker2s(
    draw: st.DrawFn,
    drawn: tuple[Shapes, SearchStrategy[tuple[int, int]], SearchStrategy[int]],
    dtype: str,
    array: ToArray | None,
    degenerate: bool,
) -> LowRankTucker2:
    (layers, m, n), (r1, r2) = draw(drawn[0]), draw(drawn[1])
    found = tuple(draw(drawn[2]) for _ in range(layers))

    def make(kind: Kind, rng: np.random.Generator) -> LowRankTucker2:
        own = found[:1] * layers if kind == "equal layers" else found
        u = factor(plain(kind) if kind != "dependent columns" else kind, rng, m, r1)
        v = factor(plain(kind), rng, n, r2)
        up = np.concatenate(layered(kind, rng, [(r1, k) for k in own], dtype), axis=1)
        down = np.concatenate(layered(plain(kind), rng, [(r2, k) for k in own], dtype), axis=1)
        return LowRankTucker2(u, up, down.T.copy(), v, own)

    wanted = [min(k, r1, r2) for k in found]
    return _stored(_filled(draw, make, wanted, degenerate=degenerate), dtype, array)


def tucker1s(
    *,
    shapes: Shapes | None = None,
    ranks: SearchStrategy[int] | None = None,
    dtype: str = "float64",
    array: ToArray | None = None,
    degenerate: bool = True,
) -> SearchStrategy[Tucker1]:
    """Tucker-1 stacks that share either side. Requires the hypothesis package.

    Args:
        shapes: a strategy of shapes (L, m, n); `shapes()` where left out.
        ranks: a strategy of the number of shared directions; 0 to 4 where left out.
        dtype: as for `lora_stacks`.
        array: as for `lora_stacks`.
        degenerate: as for `lora_stacks`.

    Raises:
        TypeError: shapes or ranks is a value instead of a strategy.
    """
    chosen = either("shapes", shapes, sizes.shapes())
    each = either("ranks", ranks, _layer_ranks(degenerate))
    return _tucker1s(chosen, each, dtype, array, degenerate)


@st.composite
def _tucker1s(
    draw: st.DrawFn,
    chosen: Shapes,
    each: SearchStrategy[int],
    dtype: str,
    array: ToArray | None,
    degenerate: bool,
) -> Tucker1:
    layers, m, n = draw(chosen)
    rank = draw(each)
    side = draw(st.sampled_from(("in", "out")))
    wide, own = (n, m) if side == "in" else (m, n)

    def make(kind: Kind, rng: np.random.Generator) -> Tucker1:
        shared = factor(plain(kind), rng, wide, rank)
        return Tucker1(shared, np.stack(layered(kind, rng, [(own, rank)] * layers, dtype)), side)

    stack = _filled(draw, make, (rank,) * layers, degenerate=degenerate)
    return _stored(stack, dtype, array)


def dense_stacks(
    *,
    shapes: Shapes | None = None,
    dtype: str = "float64",
    array: ToArray | None = None,
    degenerate: bool = True,
) -> SearchStrategy[Dense]:
    """Stacks of plain matrices. Requires the hypothesis package.

    Args:
        shapes: a strategy of shapes (L, m, n); `shapes()` where left out.
        dtype: as for `lora_stacks`.
        array: as for `lora_stacks`.
        degenerate: as for `lora_stacks`.

    Raises:
        TypeError: shapes is a value instead of a strategy.
    """
    chosen = either("shapes", shapes, sizes.shapes())
    return _dense_stacks(chosen, dtype, array, degenerate)


@st.composite
def _dense_stacks(
    draw: st.DrawFn, chosen: Shapes, dtype: str, array: ToArray | None, degenerate: bool
) -> Dense:
    layers, m, n = draw(chosen)

    def make(kind: Kind, rng: np.random.Generator) -> Dense:
        return Dense(np.stack(layered(kind, rng, [(m, n)] * layers, dtype)))

    stack = _filled(draw, make, (min(m, n),) * layers, degenerate=degenerate)
    return _stored(stack, dtype, array)


def stacks(
    *,
    shapes: Shapes | None = None,
    dtype: str = "float64",
    array: ToArray | None = None,
    degenerate: bool = True,
) -> SearchStrategy[Stack]:
    """Stacks of any format. Requires the hypothesis package.

    Args:
        shapes: a strategy of shapes (L, m, n); `shapes()` where left out.
        dtype: as for `lora_stacks`.
        array: as for `lora_stacks`.
        degenerate: as for `lora_stacks`.

    Raises:
        TypeError: shapes is a value instead of a strategy.
    """
    options: dict[str, Any] = {
        "shapes": either("shapes", shapes, sizes.shapes()),
        "dtype": dtype,
        "array": array,
        "degenerate": degenerate,
    }
    return st.one_of(
        dense_stacks(**options),
        lora_stacks(**options),
        tucker1s(**options),
        tucker2s(**options),
        low_rank_tucker2s(**options),
    )


def stacks_of_one_shape(
    *,
    count: int = 2,
    shapes: Shapes | None = None,
    dtype: str = "float64",
    array: ToArray | None = None,
    degenerate: bool = True,
) -> SearchStrategy[tuple[Stack, ...]]:
    """Several stacks of one shape, each of any format. Requires the hypothesis package.

    Args:
        count: how many.
        shapes: a strategy of shapes (L, m, n); `shapes()` where left out.
        dtype: as for `lora_stacks`.
        array: as for `lora_stacks`.
        degenerate: as for `lora_stacks`.

    Raises:
        TypeError: shapes is a value instead of a strategy.
    """
    chosen = either("shapes", shapes, sizes.shapes())
    return _stacks_of_one_shape(count, chosen, dtype, array, degenerate)


@st.composite
def _stacks_of_one_shape(
    draw: st.DrawFn, count: int, chosen: Shapes, dtype: str, array: ToArray | None, degenerate: bool
) -> tuple[Stack, ...]:
    shape = draw(chosen)
    each = stacks(shapes=st.just(shape), dtype=dtype, array=array, degenerate=degenerate)
    return tuple(draw(each) for _ in range(count))


def nearly_low_rank(
    *,
    shapes: Shapes | None = None,
    dtype: str = "float32",
    array: ToArray | None = None,
) -> SearchStrategy[tuple[LoRAStack, tuple[int, int]]]:
    """A LoRA stack that is a Tucker-2 but for some 1e-5, and that Tucker-2's ranks.

    Requires the hypothesis package. For `laws.small_errors_are_seen`.

    Args:
        shapes: a strategy of shapes (L, m, n) with m and n from 2 on.
        dtype: as for `lora_stacks`.
        array: as for `lora_stacks`.

    Raises:
        TypeError: shapes is a value instead of a strategy.
    """
    chosen = either("shapes", shapes, sizes.shapes(most_layers=3, largest=6))
    return _nearly_low_rank(chosen, dtype, array)


@st.composite
def _nearly_low_rank(
    draw: st.DrawFn, chosen: Shapes, dtype: str, array: ToArray | None
) -> tuple[LoRAStack, tuple[int, int]]:
    layers, m, n = draw(chosen)
    if min(m, n) < 2:
        m, n = m + 1, n + 1
    pair = draw(st.tuples(st.integers(1, min(2, m - 1)), st.integers(1, min(2, n - 1))))
    size = draw(st.sampled_from((1e-5, 3e-6)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    # the shared part uses the first directions only, and the rest of 1e-5 the last one
    r = min(pair)
    ups, downs = [], []
    for _ in range(layers):
        up, down = np.zeros((m, r + 1)), np.zeros((r + 1, n))
        up[: pair[0], :r] = rng.integers(1, 4, (pair[0], r))
        down[:r, : pair[1]] = rng.integers(1, 4, (r, pair[1]))
        up[-1, r], down[r, -1] = size * rng.integers(1, 4), rng.integers(1, 4)
        ups.append(up)
        downs.append(down)
    up, down = np.concatenate(ups, axis=1), np.concatenate(downs)
    return _stored(LoRAStack(up, down, (r + 1,) * layers), dtype, array), pair


def _layer_ranks(degenerate: bool) -> SearchStrategy[int]:
    return st.sampled_from(RANKS if degenerate else RANKS[:-1])


def _filled(
    draw: st.DrawFn,
    make: Callable[[Kind, np.random.Generator], Made],
    ranks: Sequence[int],
    *,
    degenerate: bool,
) -> Made:
    """A stack of a drawn kind and seed; a generic one where nothing degenerate is wanted."""
    kind = draw(st.sampled_from(KINDS if degenerate else GENERIC_KINDS))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    if degenerate:
        return make(kind, rng)
    for _ in range(ATTEMPTS):
        stack = make(kind, rng)
        wanted = [min(rank, *stack.shape[1:]) for rank in ranks]
        if layers_are_generic(dense_updates(stack), wanted):
            return stack
    return reject()


def _stored(stack: Made, dtype: str, array: ToArray | None) -> Made:
    return replace(stack, **{k: stored(x, dtype, array) for k, x in arrays_of(stack).items()})


def stored(x: np.ndarray, dtype: str, array: ToArray | None) -> Array:
    """A drawn array in its storage dtype, then through the hook; contiguous and writable."""
    x = np.ascontiguousarray(cast(x, dtype, xp=numpy_namespace))
    return x if array is None else array(x)
