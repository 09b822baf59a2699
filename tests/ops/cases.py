"""Inputs of every operation: stacks of one shape on one backend, vectors, layers and factors."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn._arrays import Array
from lotr_tn.formats import Stack
from lotr_tn.ops import convert
from lotr_tn.ops.arrays import arrays_of, with_arrays
from lotr_tn.ops.primitives import CORE, registered_formats
from lotr_tn.testing import strategies
from tests.conftest import on_backend

FORMATS = {kind.__name__: kind for kind in (*CORE, *registered_formats())}
ROWS = 3
NUMBERS = st.sampled_from((1.0, -1.0, 0.0, 0.5, 1e-6, 3e4))


class Case:
    """What laws are held on; each thing is drawn when a law first asks for it."""

    def __init__(self, draw: Callable[..., Any], kind: type[Stack], backend: str, dtype: str):
        self._draw = draw
        self._on = partial(on_backend, backend=backend)
        self._options: dict[str, Any] = {"dtype": dtype, "array": self._on}
        self.a: Stack = draw(strategies.stacks_of(kind, **self._options))

    def _same(self) -> Stack:
        """A stack of any format, of the shape of the first."""
        return self._draw(strategies.stacks(shapes=st.just(self.a.shape), **self._options))

    @cached_property
    def b(self) -> Stack:
        """A stack of any format."""
        return self._same()

    @cached_property
    def c(self) -> Stack:
        """A stack of any format."""
        return self._same()

    @cached_property
    def near(self) -> Stack:
        """The first, but for a share of 1 … 1e-11, in any format."""
        digits, kind = self._draw(st.integers(0, 11)), self._draw(st.sampled_from(CORE))
        return convert(_nearly(self.a, digits), kind)

    @cached_property
    def x(self) -> Array:
        """Three inputs, (3, n)."""
        return self._rows(self.a.shape[2])

    @cached_property
    def y(self) -> Array:
        """Three outputs, (3, m)."""
        return self._rows(self.a.shape[1])

    def _rows(self, size: int) -> Array:
        rng = np.random.default_rng(self._draw(st.integers(0, 99)))
        return self._on(rng.integers(-2, 3, (ROWS, size)).astype(self._options["dtype"]))

    @cached_property
    def layers(self) -> Sequence[int]:
        """A layer for each row of x; they may repeat."""
        count = self.a.shape[0]
        each = st.integers(-count, count - 1)
        return self._draw(st.lists(each, min_size=ROWS, max_size=ROWS))

    @cached_property
    def factor(self) -> float:
        """A number."""
        return self._draw(NUMBERS)

    @cached_property
    def factors(self) -> Sequence[float]:
        """A number for each layer."""
        count = self.a.shape[0]
        return self._draw(st.lists(NUMBERS, min_size=count, max_size=count))

    @cached_property
    def seed(self) -> int:
        """A seed."""
        return self._draw(st.integers(0, 99))


def _nearly(stack: Stack, digits: int) -> Stack:
    name, x = list(arrays_of(stack).items())[-1]
    return with_arrays(stack, **{name: x * (1 + 10.0**-digits)})


def largest(stacks: Sequence[Stack]) -> float:
    """The largest norm."""
    return max(float(lt.norm(stack)) for stack in stacks)
