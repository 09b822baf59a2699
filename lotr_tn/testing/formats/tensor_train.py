"""What the laws know of tensor trains."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from lotr_tn.formats import TensorTrain
from lotr_tn.testing.entries import Kind, factor, layered, plain
from lotr_tn.testing.formats.registry import Arrays, Cut, Drawn, FormatLaws, Sizes

APART, TURNED, PAIRED = "out then in", "in then out", "paired"
RANKS = ((2, 3, 1, 2), (1, 2, 3, 2), (3, 1, 2, 3), (2, 2, 2, 2), (0, 2, 1, 2), (2, 2, 0, 1))


def _legs(size: int) -> tuple[int, ...]:
    """A size as two digits, where it has a factor."""
    first = next((k for k in range(2, size) if size % k == 0), None)
    return (size,) if first is None else (first, size // first)


def _places(arrangement: str, m: int, n: int) -> list[tuple[int, int]]:
    """The legs (o, n) of every core."""
    out, into = [(o, 1) for o in _legs(m)], [(1, i) for i in _legs(n)]
    if arrangement == PAIRED:
        pairs = list(itertools.zip_longest(_legs(m), _legs(n), fillvalue=1))
        return pairs if len(pairs) > 1 else [*pairs, (1, 1)]
    return out + into if arrangement == APART else into + out


def _make(
    kind: Kind, rng: np.random.Generator, shape: tuple, sizes: Drawn, dtype: str
) -> TensorTrain:
    layers, m, n = shape
    legs = _places(sizes["arrangement"], m, n)
    bonds = [1, *itertools.islice(itertools.cycle(sizes["ranks"]), len(legs) - 1), 1]
    cores = []
    for k, (o, i) in enumerate(legs):
        left, right = bonds[k], bonds[k + 1]
        if k > 0 and k == sizes["shared"]:
            parts = [factor(plain(kind), rng, left * o * i, right)]
        else:
            own = kind if k == 0 else plain(kind)
            parts = layered(own, rng, [(left * o * i, right)] * layers, dtype)
        cores.append(np.stack(parts).reshape(len(parts), left, o, i, right))
    order = tuple(range(len(legs)))
    return TensorTrain(tuple(cores), order, order[::-1] if sizes["reversed"] else order)


def _dense(stack: TensorTrain, arrays: Arrays) -> np.ndarray:
    """Cores one by one, layer by layer, and the digits in their order."""
    layers, m, n = stack.shape
    count, found = len(stack.cores), []
    for layer in range(layers):
        total = np.ones(1)
        for k in range(count):
            core = arrays[f"cores.{k}"]
            total = np.tensordot(total, core[layer % len(core)], axes=1)
        axes = [2 * k for k in stack.out_order] + [2 * k + 1 for k in stack.in_order]
        found.append(total[..., 0].transpose(axes).reshape(m, n))
    return np.stack(found)


def _layer_ranks(stack: TensorTrain) -> list[int]:
    """The bond in the middle, as far as those before and behind it let it be."""
    if stack.middle is None:
        return [1] * stack.shape[0]
    sizes = [math.prod(legs) for legs in stack.legs]
    bonds = [1, *stack.ranks, 1]
    ends = []
    for steps, start in (
        (range(stack.middle), 0),
        (range(len(sizes) - 1, stack.middle - 1, -1), 1),
    ):
        rank = 1
        for k in steps:
            rank = min(rank * sizes[k], bonds[k + 1 - start])
        ends.append(rank)
    return [min(ends)] * stack.shape[0]


def _regauge(stack: TensorTrain, arrays: Arrays, matrices: Sequence[np.ndarray]) -> Arrays:
    """Q on the right of a core, and its inverse on the left of the next."""
    found = dict(arrays)
    for k, q in enumerate(matrices):
        found[f"cores.{k}"] = np.einsum("lrons,st->lront", found[f"cores.{k}"], q)
        inverse = np.linalg.inv(q)
        found[f"cores.{k + 1}"] = np.einsum("st,ltonu->lsonu", inverse, found[f"cores.{k + 1}"])
    return found


def _cuts(stack: TensorTrain, pair: tuple[int, int]) -> list[Cut]:
    """The bond in the middle, which is the rank of every layer."""
    assert stack.middle is not None, "the bonds of a train of paired legs cut no rank of a matrix"
    bond = (1, *stack.ranks, 1)[stack.middle]
    return [Cut(f"r of layer {layer}", bond, pair[0], layer) for layer in range(stack.shape[0])]


TENSOR_TRAIN = FormatLaws(
    TensorTrain,
    _make,
    _dense,
    layer_ranks=_layer_ranks,
    sizes={
        "ranks": Sizes(RANKS, RANKS[:4]),
        "arrangement": Sizes((APART, TURNED, PAIRED), (APART, TURNED)),
        "shared": Sizes((None, 1, 2)),
        "reversed": Sizes((False, True)),
    },
    gauge_sizes=lambda stack: stack.ranks,
    regauge=_regauge,
    cuts=_cuts,
)
