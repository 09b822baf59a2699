"""Strategies for stacks of updates, in every format."""

from collections.abc import Callable
from typing import Any, TypeAlias, TypedDict, TypeVar, Unpack

import array_api_compat.numpy as numpy_namespace
import numpy as np
from hypothesis import reject
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from lotr_tn._arrays import Array, cast
from lotr_tn.formats import Dense, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.ops.arrays import arrays_of, with_arrays
from lotr_tn.testing.entries import GENERIC_KINDS, KINDS, layers_are_generic
from lotr_tn.testing.formats import FormatLaws, known_formats, laws_of
from lotr_tn.testing.laws.truth import dense_updates
from lotr_tn.testing.strategies import sizes
from lotr_tn.testing.strategies.sizes import either

ToArray: TypeAlias = Callable[[np.ndarray], Array]
Shapes: TypeAlias = SearchStrategy[tuple[int, int, int]]
Made = TypeVar("Made", bound=Stack)

ATTEMPTS = 100  # how often entries are drawn until they are generic; most often two or three times


class _Entries(TypedDict, total=False):
    """How entries are drawn and stored: see `stacks_of`."""

    dtype: str
    array: ToArray | None
    degenerate: bool


class _Common(_Entries, total=False):
    """Options of the strategies of all formats."""

    shapes: Shapes | None


def stacks_of(
    kind: type[Made],
    *,
    shapes: Shapes | None = None,
    dtype: str = "float64",
    array: ToArray | None = None,
    degenerate: bool = True,
    **drawn: Any,
) -> SearchStrategy[Made]:
    """Stacks of one format, core or registered. Requires the hypothesis package.

    Args:
        kind: the format.
        shapes: a strategy of shapes (L, m, n); `shapes()` where left out.
        dtype: storage dtype: "float64", "float32", "float16" or "bfloat16".
        array: a function that each NumPy array goes through, such as `torch.from_numpy`.
        degenerate: whether special cases are drawn. Otherwise each update has the full rank of its
            factors, and no singular values of the stack are tied.
        **drawn: strategies for the format's other sizes, by name, such as `ranks`.

    Raises:
        TypeError: an argument is a value instead of a strategy, or has no such name.
        AssertionError: the laws do not know the format.
    """
    laws, shapes = laws_of(kind), either("shapes", shapes, sizes.shapes())
    if unknown := set(drawn) - set(laws.sizes):
        raise TypeError(f"{kind.__name__} draws {sorted(laws.sizes)}; found {sorted(unknown)}")
    chosen = {}
    for name, size in laws.sizes.items():
        choices = size.choices if degenerate else size.generic or size.choices
        chosen[name] = either(name, drawn.get(name), st.sampled_from(choices))
    return _stacks(laws, chosen, shapes, dtype, array, degenerate)


@st.composite
def _stacks(
    draw: st.DrawFn,
    laws: FormatLaws[Made],
    chosen: dict[str, SearchStrategy],
    shapes: Shapes,
    dtype: str,
    array: ToArray | None,
    degenerate: bool,
) -> Made:
    """A stack of a drawn kind and seed; a generic one where nothing degenerate is wanted."""
    shape = draw(shapes)
    found: dict[str, Any] = {}
    for name, each in chosen.items():
        many = laws.sizes[name].each_layer
        found[name] = tuple(draw(each) for _ in range(shape[0])) if many else draw(each)
    kind = draw(st.sampled_from(KINDS if degenerate else GENERIC_KINDS))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    for _ in range(ATTEMPTS):
        stack = laws.make(kind, rng, shape, found, dtype)
        wanted = [min(rank, *shape[1:]) for rank in laws.layer_ranks(stack)]
        if degenerate or layers_are_generic(dense_updates(stack), wanted):
            return _stored(stack, dtype, array)
    return reject()


def lora_stacks(
    *, ranks: SearchStrategy[int] | None = None, **common: Unpack[_Common]
) -> SearchStrategy[LoRAStack]:
    """LoRA stacks with ragged ranks. Requires the hypothesis package.

    Args:
        ranks: a strategy from which each layer's rank is drawn; 0 to 4 where left out.
        **common: `shapes`, `dtype`, `array` and `degenerate`, as for `stacks_of`.

    Raises:
        TypeError: shapes or ranks is a value instead of a strategy.
    """
    return stacks_of(LoRAStack, ranks=ranks, **common)


def tucker2s(
    *, ranks: SearchStrategy[tuple[int, int]] | None = None, **common: Unpack[_Common]
) -> SearchStrategy[Tucker2]:
    """Tucker-2 stacks, whose factors need not be orthonormal. Requires the hypothesis package.

    - `ranks`: a strategy of pairs (r1, r2); where left out, ranks from 0 to 5 that differ.

    The other arguments, and what they raise, are those of `lora_stacks`.
    """
    return stacks_of(Tucker2, ranks=ranks, **common)


def low_rank_tucker2s(
    *,
    shared_ranks: SearchStrategy[tuple[int, int]] | None = None,
    ranks: SearchStrategy[int] | None = None,
    **common: Unpack[_Common],
) -> SearchStrategy[LowRankTucker2]:
    """Tucker-2 stacks with low-rank cores of ragged ranks. Requires the hypothesis package.

    - `shared_ranks`: a strategy of pairs (r1, r2); where left out, ranks from 0 to 5 that differ.
    - `ranks`: a strategy from which each core's rank is drawn; 0 to 4 where left out.

    The other arguments, and what they raise, are those of `lora_stacks`.
    """
    return stacks_of(LowRankTucker2, shared_ranks=shared_ranks, ranks=ranks, **common)


def tucker1s(
    *, ranks: SearchStrategy[int] | None = None, **common: Unpack[_Common]
) -> SearchStrategy[Tucker1]:
    """Tucker-1 stacks that share either side. Requires the hypothesis package.

    - `ranks`: a strategy of the number of shared directions; 0 to 4 where left out.

    The other arguments, and what they raise, are those of `lora_stacks`.
    """
    return stacks_of(Tucker1, ranks=ranks, **common)


def dense_stacks(**common: Unpack[_Common]) -> SearchStrategy[Dense]:
    """Stacks of plain matrices. Requires the hypothesis package.

    Arguments are those of `lora_stacks`, but for ranks.
    """
    return stacks_of(Dense, **common)


def stacks(**common: Unpack[_Common]) -> SearchStrategy[Stack]:
    """Stacks of any format. Requires the hypothesis package.

    Arguments are those of `lora_stacks`, but for ranks.
    """
    return st.one_of([stacks_of(kind, **common) for kind in known_formats()])


def stacks_of_one_shape(
    *, count: int = 2, shapes: Shapes | None = None, **entries: Unpack[_Entries]
) -> SearchStrategy[tuple[Stack, ...]]:
    """Several stacks of one shape, each of any format. Requires the hypothesis package.

    - `count`: how many.

    The other arguments, and what they raise, are those of `lora_stacks`.
    """

    def of(shape: tuple[int, int, int]) -> SearchStrategy[tuple[Stack, ...]]:
        return st.tuples(*[stacks(shapes=st.just(shape), **entries)] * count)

    return either("shapes", shapes, sizes.shapes()).flatmap(of)


def nearly_low_rank(
    *, shapes: Shapes | None = None, dtype: str = "float32", array: ToArray | None = None
) -> SearchStrategy[tuple[LoRAStack, tuple[int, int]]]:
    """A LoRA stack that is a Tucker-2 but for some 1e-5, and that Tucker-2's ranks.

    Requires the hypothesis package. For `laws.small_errors_are_seen`.

    - `shapes`: a strategy of shapes (L, m, n) with m and n from 2 on.

    The other arguments are those of `lora_stacks`.
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


def _stored(stack: Made, dtype: str, array: ToArray | None) -> Made:
    return with_arrays(stack, **{k: stored(x, dtype, array) for k, x in arrays_of(stack).items()})


def stored(x: np.ndarray, dtype: str, array: ToArray | None) -> Array:
    """A drawn array in its storage dtype, then through the hook; contiguous and writable."""
    x = np.ascontiguousarray(cast(x, dtype, xp=numpy_namespace))
    return x if array is None else array(x)
