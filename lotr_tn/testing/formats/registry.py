"""What the laws must know of a format, and where it is registered; without hypothesis."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np

from lotr_tn.formats import Stack
from lotr_tn.testing.entries import Kind

Arrays: TypeAlias = Mapping[str, np.ndarray]
"""A stack's arrays by field name, in float64."""

Own = TypeVar("Own", bound=Stack)

Drawn: TypeAlias = Mapping[str, Any]
"""What was drawn of a format's `sizes`, by name."""

Make: TypeAlias = Callable[[Kind, np.random.Generator, tuple[int, int, int], Drawn, str], Own]


@dataclass(frozen=True)
class Sizes:
    """What is drawn beside the shape: ranks, or which side is shared.

    Attributes:
        choices: all of them, the simplest first: examples shrink towards it.
        generic: those in which nothing is degenerate; all where left out.
        each_layer: whether every layer has one of its own; then a tuple of L is made of them.
    """

    choices: tuple[Any, ...]
    generic: tuple[Any, ...] = ()
    each_layer: bool = False


@dataclass(frozen=True)
class Cut:
    """A rank of a result, what was asked for, and whose singular values it cuts off.

    Attributes:
        name: of the rank, as in `r1`.
        found: the rank that the result has.
        asked: the rank that was asked for.
        of: the unfolding of the stack along its outputs or inputs, or one layer, by its index.
    """

    name: str
    found: int
    asked: int
    of: Literal["out", "in"] | int


@dataclass(frozen=True)
class FormatLaws(Generic[Own]):
    """How stacks of a format are drawn, and what is true of them by the format's definition.

    Attributes:
        kind: the format.
        make: a stack of a kind of entries, from a generator, for a shape (L, m, n), what was drawn
            of `sizes`, and a storage dtype by name; its arrays are float64 in NumPy.
        dense: the updates (L, m, n) from a stack's arrays in float64: the truth that the laws are
            held against, so it shares no code with the algebra.
        layer_ranks: the rank that each layer of a stack has where nothing is degenerate.
        sizes: what is drawn beside the shape, by name.
        gauge_sizes: sizes of the matrices that change a stack's gauge; none where left out.
        regauge: the arrays of the same updates for such matrices, which are invertible.
        cuts: the ranks of a result, for a pair of ranks that was asked for. Laws of ranks refuse a
            result whose format has none.
        factors: fields that an orthonormal decomposition makes orthonormal, of both sides.
    """

    kind: type[Own]
    make: Make[Own]
    dense: Callable[[Own, Arrays], np.ndarray]
    layer_ranks: Callable[[Own], Sequence[int]]
    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    gauge_sizes: Callable[[Own], tuple[int, ...]] = lambda stack: ()
    regauge: Callable[[Own, Arrays, Sequence[np.ndarray]], Arrays] = lambda stack, arrays, _: arrays
    cuts: Callable[[Own, tuple[int, int]], list[Cut]] | None = None
    factors: tuple[str, ...] = ()


_LAWS: dict[type, FormatLaws[Any]] = {}


def register_format_laws(laws: FormatLaws[Any]) -> None:
    """Let the laws and strategies know a format: `strategies.stacks` draws it from then on.

    Examples:
        `docs/your-own-format.md` does it for a format in a file of its own.
    """
    _LAWS[laws.kind] = laws
    if "hypothesis" in sys.modules:
        from lotr_tn.testing.registration import register

        register(laws.kind)


def unregister_format_laws(kind: type) -> None:
    """Forget a format again."""
    _LAWS.pop(kind, None)


def known_formats() -> tuple[type, ...]:
    """The formats that the laws know."""
    return tuple(_LAWS)


def laws_of(kind: type[Own]) -> FormatLaws[Own]:
    """What the laws know of a format; it is an `AssertionError` to know nothing."""
    if kind not in _LAWS:
        raise AssertionError(
            f"the laws do not know the format {kind.__name__}: "
            "lotr_tn.testing.register_format_laws tells them"
        )
    return _LAWS[kind]
