"""Applying updates, against matrix products written by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np

import lotr_tn as lt
from benchmarks.measure import report, timed_together

SIZES = {"full": ((32, 4096, 4096), 64, (1, 32, 4096), 64), "smoke": ((4, 40, 30), 5, (1, 3), 4)}


def run(size: str) -> None:
    """A Tucker-2 stack in float32, on NumPy and on torch."""
    import torch

    shape, rank, batches, rows_each = SIZES[size]
    # The C library returns arrays above 128 kB to the system after every call, and takes them back
    # page by page, until a larger one has been freed once. A program that has loaded an adapter
    # has freed one, so this one does it too.
    np.ones(2**20).sum()
    seconds = 1.0 if size == "full" else 0.01
    rows, record = [], {}
    for library, convert in (("NumPy", lambda x: x), ("torch", torch.from_numpy)):
        stack = _stack(shape, rank, convert)
        works: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}
        for batch in batches:
            x = convert(np.ones((batch, shape[2]), np.float32))
            works[f"{batch} rows, one layer"] = _one_layer(stack, x)
            works[f"{batch} rows, a plan"] = _planned(stack, x)
        for lower in (rank, rank // 4):
            name = f"{rows_each} rows, each its layer, rank {lower}"
            works[name] = _gathered(_stack(shape, lower, convert), rows_each, convert)
        for name, (ours, by_hand) in works.items():
            found, wanted = timed_together(ours, by_hand, seconds)
            key = f"{library}, {name}"
            record[key] = {"seconds": found.median, "by_hand_seconds": wanted.median}
            rows.append(
                [
                    key,
                    f"{found.median * 1e6:,.0f}",
                    f"{wanted.median * 1e6:,.0f}",
                    f"{found.median / wanted.median:.2f}",
                ]
            )
    layers, m, n = shape
    report(
        "apply",
        f"x of some rows through Tucker-2 updates of {layers} x {m}x{n}, rank {rank}, float32. By "
        "hand: the matrix products in the best order; for rows of different layers, a loop over "
        "them. Microseconds",
        ["Work", "lotr_tn", "By hand", "Ratio"],
        rows,
        {"shape": shape, "rank": rank, "works": record},
    )


def _one_layer(stack: lt.Tucker2, x: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    u, core, v = stack.u, stack.core, stack.v
    return lambda: lt.apply(stack, x, layer=3), lambda: ((x @ v) @ core[3].T) @ u.T


def _planned(stack: lt.Tucker2, x: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    u, core, v = stack.u, stack.core[3], stack.v
    plan = lt.plan("bn,nq,pq,mp->bm", x.shape, v.shape, core.shape, u.shape)
    return lambda: plan(x, v, core, u), lambda: ((x @ v) @ core.T) @ u.T


def _gathered(
    stack: lt.Tucker2, count: int, convert: Callable[[np.ndarray], Any]
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Rows of different layers, in a stack of as many layers as there are rows."""
    rng = np.random.default_rng(0)
    layers = [int(i) for i in rng.permutation(count)]
    core = convert(rng.standard_normal((count, *stack.ranks), dtype=np.float32))
    many = lt.Tucker2(stack.u, core, stack.v)
    x = convert(np.ones((count, stack.shape[2]), np.float32))

    def loop() -> list[Any]:
        return [
            ((x[i : i + 1] @ many.v) @ many.core[layer].T) @ many.u.T
            for i, layer in enumerate(layers)
        ]

    return lambda: lt.apply(many, x, layer=layers), loop


def _stack(
    shape: tuple[int, int, int], rank: int, convert: Callable[[np.ndarray], Any]
) -> lt.Tucker2:
    layers, m, n = shape
    rng = np.random.default_rng(0)
    sizes = (m, rank), (layers, rank, rank), (n, rank)
    return lt.Tucker2(*(convert(rng.standard_normal(s, dtype=np.float32)) for s in sizes))
