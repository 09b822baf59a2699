"""Kinds of entries, from whole numbers on; each factor follows from a kind and a seed."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

Kind = Literal[
    "whole numbers",
    "normal",
    "one zero layer",
    "equal layers",
    "dependent columns",
    "tied singular values",
    "tiny",
    "huge",
    "zero",
]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""All kinds, the simplest first: a falsifying example shrinks towards it."""

GENERIC_KINDS: tuple[Kind, ...] = ("whole numbers", "normal")

TINY, HUGE = 1e-12, 1e8
HALF_TINY, HALF_HUGE = 1e-3, 1e2
"""float16 ends at 6e-8 and at 65504, so there the extremes are milder."""

GAP = 1e-3  # generic singular values are apart by that share of the largest


def factor(kind: Kind, rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """A factor (rows, columns) that all layers share, in float64."""
    x = _numbers(kind, rng, (rows, columns))
    if kind == "dependent columns" and columns:
        x[:] = x[:, :1]
    return x


def layered(
    kind: Kind, rng: np.random.Generator, sizes: Sequence[tuple[int, int]], dtype: str
) -> list[np.ndarray]:
    """One float64 matrix a layer, of the sizes given; zero, tiny or huge is made here, once."""
    layers = [_numbers(kind, rng, size) for size in sizes]
    match kind:
        case "tied singular values":
            layers = [np.roll(x, index, axis=0) for index, x in enumerate(layers)]
        case "one zero layer":
            layers[-1][:] = 0
        case "equal layers" if len(set(sizes)) == 1:
            layers = [layers[0].copy() for _ in layers]
        case "dependent columns":
            layers = [np.ones_like(x) * x[:, :1] for x in layers]
        case "tiny" | "huge":
            layers = [x * _extreme(kind, dtype) for x in layers]
        case "zero":
            layers = [np.zeros(size) for size in sizes]
    return layers


def plain(kind: Kind) -> Kind:
    """The kind for a second factor, where the first already has what is special about `kind`."""
    match kind:
        case "tiny" | "huge":
            return "normal"
        case "one zero layer" | "dependent columns" | "zero":
            return "whole numbers"
    return kind


def _numbers(kind: Kind, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    match kind:
        case "normal" | "tiny" | "huge":
            return rng.standard_normal(size)
        case "tied singular values":
            return np.eye(*size)
        case _:
            return rng.integers(-2, 3, size).astype(np.float64)


def _extreme(kind: Kind, dtype: str) -> float:
    if dtype == "float16":
        return HALF_TINY if kind == "tiny" else HALF_HUGE
    return TINY if kind == "tiny" else HUGE


def layers_are_generic(dense: np.ndarray, rank: Sequence[int]) -> bool:
    """Whether each update has the rank given, and singular values of both unfoldings differ."""
    # then no choice of leading directions depends on rounding
    _, m, n = dense.shape
    if any(np.linalg.matrix_rank(x) < r for x, r in zip(dense, rank, strict=True)):
        return False
    unfoldings = dense.transpose(1, 0, 2).reshape(m, -1), dense.reshape(-1, n)
    return all(_stand_apart(np.linalg.svd(x, compute_uv=False)) for x in unfoldings)


def _stand_apart(values: np.ndarray) -> bool:
    present = values[values > 1e-9 * values.max(initial=0.0)]
    return bool((np.abs(np.diff(present)) > GAP * values.max(initial=0.0)).all())
