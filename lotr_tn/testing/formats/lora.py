"""What the laws know of LoRA stacks."""

from collections.abc import Sequence

import numpy as np

from lotr_tn.formats import LoRAStack
from lotr_tn.testing.entries import Kind, layered, plain
from lotr_tn.testing.formats.registry import Arrays, Cut, Drawn, FormatLaws, Sizes

RANKS = (1, 2, 3, 4, 0)
"""Ranks of layers, and of one shared side; 0 comes last, so that examples shrink towards 1."""

EACH_RANK = Sizes(RANKS, RANKS[:-1], each_layer=True)


def _make(
    kind: Kind, rng: np.random.Generator, shape: tuple, sizes: Drawn, dtype: str
) -> LoRAStack:
    layers, m, n = shape
    own = sizes["ranks"][:1] * layers if kind == "equal layers" else sizes["ranks"]
    up = layered(kind, rng, [(m, r) for r in own], dtype)
    down = layered(plain(kind), rng, [(n, r) for r in own], dtype)
    return LoRAStack(np.concatenate(up, axis=1), np.concatenate(down, axis=1).T.copy(), own)


def terms(up: np.ndarray, down: np.ndarray, ranks: Sequence[int]) -> list[np.ndarray]:
    """up_l down_l of each layer, one by one."""
    layers, start = [], 0
    for rank in ranks:
        part = slice(start, start + rank)
        layers.append(up[:, part] @ down[part, :])
        start += rank
    return layers


def block_diagonal(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Square matrices as the blocks of one."""
    total, start = np.zeros((sum(len(x) for x in matrices),) * 2), 0
    for x in matrices:
        part = slice(start, start + len(x))
        total[part, part] = x
        start = part.stop
    return total


def layer_cuts(ranks: Sequence[int], pair: tuple[int, int]) -> list[Cut]:
    """Each layer's own rank."""
    return [Cut(f"r of layer {layer}", r, pair[0], layer) for layer, r in enumerate(ranks)]


def _regauge(stack: LoRAStack, arrays: Arrays, matrices: Sequence[np.ndarray]) -> Arrays:
    """up_l Q_l and Q_l⁻¹ down_l."""
    total = block_diagonal(matrices)
    return {"up": arrays["up"] @ total, "down": np.linalg.solve(total, arrays["down"])}


LORA = FormatLaws(
    LoRAStack,
    _make,
    dense=lambda stack, arrays: np.stack(terms(arrays["up"], arrays["down"], stack.ranks)),
    layer_ranks=lambda stack: stack.ranks,
    sizes={"ranks": EACH_RANK},
    gauge_sizes=lambda stack: stack.ranks,
    regauge=_regauge,
    cuts=lambda stack, pair: layer_cuts(stack.ranks, pair),
)
