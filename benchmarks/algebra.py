"""Distance, inner product, and sum with rounding, against the same on dense matrices."""

from collections.abc import Callable
from typing import Any

import numpy as np

import lotr_tn as lt
from benchmarks.measure import peak_bytes, report, timed

SIZES = {"full": ((32, 4096, 4096), 16), "smoke": ((3, 96, 80), 4)}


def run(size: str) -> None:
    """Two LoRA stacks in float32 on NumPy; the dense layers are formed one at a time."""
    shape, rank = SIZES[size]
    a, b = (_stack(shape, rank, seed) for seed in (0, 1))
    inputs = sum(x.nbytes for s in (a, b) for x in (s.up, s.down))
    whole = 2 * 4 * int(np.prod(shape))
    rows, record = [], {}
    for name, (ours, dense, output) in _works(a, b, rank).items():
        fast, value = timed(lambda ours=ours: ours(), 5)
        slow, seconds, wanted = _dense(dense, shape[0])
        peak = peak_bytes(ours)
        figures = {
            "seconds": fast.median,
            "dense_seconds": seconds,
            "times_faster": seconds / fast.median,
            "peak_bytes": peak,
            "dense_bytes": whole,
            "times_smaller": whole / peak,
            "peak_over_inputs_and_outputs": (peak + inputs) / (inputs + output(value)),
        }
        if wanted is not None:
            figures["value"], figures["dense_value"] = float(value), wanted
        record[name] = figures
        rows.append(
            [
                name,
                fast.text(),
                slow,
                f"{figures['times_faster']:,.0f}x",
                f"{peak / 1e6:,.1f} MB",
                f"{figures['times_smaller']:,.0f}x",
                f"{figures['peak_over_inputs_and_outputs']:.2f}x",
            ]
        )
    layers, m, n = shape
    report(
        "algebra",
        f"Two LoRA stacks of {layers} x {m}x{n}, rank {rank}, float32. Dense: layer by layer (a "
        "sum is rounded for one layer, times L). Smaller: than both stacks as dense matrices; peak "
        "as a share of inputs and outputs",
        ["Operation", "Seconds", "Dense", "Faster", "Memory", "Smaller", "Peak"],
        rows,
        {"shape": shape, "rank": rank, "operations": record},
    )


Work = tuple[Callable[[], Any], tuple[Callable[[int], Any], int], Callable[[Any], int]]


def _works(a: lt.LoRAStack, b: lt.LoRAStack, rank: int) -> dict[str, Work]:
    """For each operation: ours, the dense one with the layers it is timed on, and output bytes."""

    def layer(stack: lt.LoRAStack, index: int) -> np.ndarray:
        part = stack.slices[index]
        return stack.up[:, part] @ stack.down[part, :]

    def dense_distance(index: int) -> float:
        return float(np.linalg.norm((layer(a, index) - layer(b, index)).astype(np.float64))) ** 2

    def dense_inner(index: int) -> float:
        return float(np.sum(layer(a, index) * layer(b, index), dtype=np.float64))

    def dense_round(index: int) -> np.ndarray:
        u, s, vt = np.linalg.svd(layer(a, index) + layer(b, index), full_matrices=False)
        return (u[:, :rank] * s[:rank]) @ vt[:rank, :]

    every = a.shape[0]
    return {
        "distance": (lambda: lt.distance(a, b) ** 2, (dense_distance, every), lambda _: 8),
        "inner": (lambda: lt.inner(a, b), (dense_inner, every), lambda _: 8),
        "add and round": (
            lambda: lt.round(lt.add(a, b), rank),
            (dense_round, 1),
            lambda s: s.up.nbytes + s.down.nbytes,
        ),
    }


def _dense(work: tuple[Callable[[int], Any], int], layers: int) -> tuple[str, float, float | None]:
    """Seconds for all layers as text and number, and the sum of the layers' values."""
    function, timed_layers = work
    values: list[Any] = []

    def through() -> None:
        values[:] = [function(index) for index in range(timed_layers)]

    timing, _ = timed(through, 1)
    seconds = timing.median * layers / timed_layers
    text = f"{seconds:.2f}" if timed_layers == layers else f"{timing.median:.2f} x {layers}"
    return text, seconds, float(sum(values)) if timed_layers == layers else None


def _stack(shape: tuple[int, int, int], rank: int, seed: int) -> lt.LoRAStack:
    layers, m, n = shape
    rng = np.random.default_rng(seed)
    up = rng.standard_normal((m, layers * rank), dtype=np.float32)
    down = rng.standard_normal((layers * rank, n), dtype=np.float32)
    return lt.LoRAStack(up, down, (rank,) * layers)
