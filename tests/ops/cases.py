"""Inputs of every operation: stacks of one shape on one backend, vectors, layers and factors."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn._arrays import Array
from lotr_tn.formats import Stack
from lotr_tn.ops import convert
from lotr_tn.ops.arrays import arrays_of, with_arrays
from lotr_tn.ops.primitives import CORE
from lotr_tn.testing import strategies
from tests.conftest import on_backend

FORMATS = {kind.__name__: kind for kind in CORE}
ROWS = 3


@dataclass(frozen=True)
class Case:
    """What laws are held on."""

    a: Stack  # of the format that is tested
    b: Stack  # of any format
    c: Stack  # of any format
    near: Stack  # a, but for a share of 1 … 1e-11, in any format
    x: Array  # (3, n)
    y: Array  # (3, m)
    layers: Sequence[int]  # one for each row of x; they may repeat
    factor: float
    factors: Sequence[float]  # one for each layer
    seed: int


@st.composite
def cases(draw: st.DrawFn, kind: type[Stack], backend: str, dtype: str) -> Case:
    """Cases whose first stack has that format."""
    options: dict[str, Any] = {"dtype": dtype, "array": partial(on_backend, backend=backend)}
    a = draw(strategies.stacks_of(kind, **options))
    layers, m, n = a.shape
    same = strategies.stacks(shapes=st.just(a.shape), **options)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x, y = (on_backend(rng.integers(-2, 3, (ROWS, size)).astype(dtype), backend) for size in (n, m))
    rows = st.lists(st.integers(-layers, layers - 1), min_size=ROWS, max_size=ROWS)
    numbers = st.sampled_from((1.0, -1.0, 0.0, 0.5, 1e-6, 3e4))
    return Case(
        a=a,
        b=draw(same),
        c=draw(same),
        near=convert(_nearly(a, draw(st.integers(0, 11))), draw(st.sampled_from(CORE))),
        x=x,
        y=y,
        layers=draw(rows),
        factor=draw(numbers),
        factors=draw(st.lists(numbers, min_size=layers, max_size=layers)),
        seed=draw(st.integers(0, 99)),
    )


def _nearly(stack: Stack, digits: int) -> Stack:
    name, x = list(arrays_of(stack).items())[-1]
    return with_arrays(stack, **{name: x * (1 + 10.0**-digits)})


def largest(stacks: Sequence[Stack]) -> float:
    """The largest norm."""
    return max(float(lt.norm(stack)) for stack in stacks)
