"""Timing, memory, tables."""

import json
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs."""

    median: float
    fastest: float
    slowest: float

    def text(self) -> str:
        """Median, and half the spread."""
        return f"{self.median:.3f} ±{(self.slowest - self.fastest) / 2:.3f}"


def timed(work: Callable[[], Any], repeats: int) -> tuple[Timing, Any]:
    """Time a function after one run to warm up; also gives its last result."""
    result = work()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - begun)
    return Timing(statistics.median(seconds), min(seconds), max(seconds)), result


def timed_together(
    one: Callable[[], Any], other: Callable[[], Any], seconds: float = 1.0
) -> tuple[Timing, Timing]:
    """Two functions in turn, for about `seconds` each, so that both see the same machine."""
    for work in (one, other):
        work()
    begun = time.perf_counter()
    for work in (one, other):
        work()
    repeats = max(5, min(2000, int(2 * seconds / max(time.perf_counter() - begun, 1e-9))))
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for work, times in zip((one, other), found, strict=True):
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
    first, second = (Timing(statistics.median(x), min(x), max(x)) for x in found)
    return first, second


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most memory that NumPy and Python held beyond what was there, while `work` ran."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def report(
    name: str, title: str, columns: list[str], rows: list[list[str]], record: dict[str, Any]
) -> None:
    """Print a table, and keep the figures as JSON."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=index > 0)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record | {"machine": machine}, indent=2))


def partly_shared(
    shape: tuple[int, int, int], rank: int, shared: int, noise: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """LoRA factors (m, L·rank) and (L·rank, n) that lie near a common subspace, float32.

    Args:
        shape: (L, m, n).
        rank: rank of each layer.
        shared: dimension of the common subspaces; 0 for entries without any structure.
        noise: size of each column outside the common subspace, relative to inside.
        seed: of the random generator.
    """
    layers, m, n = shape
    rng = np.random.default_rng(seed)

    def entries(rows: int, columns: int, scale: int) -> np.ndarray:
        return rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(scale**0.5)

    def factor(size: int) -> np.ndarray:
        own = entries(size, layers * rank, size)
        if not shared:
            return own
        basis = np.linalg.qr(entries(size, shared, 1))[0]
        return basis @ entries(shared, layers * rank, shared) + np.float32(noise) * own

    return factor(m), np.ascontiguousarray(factor(n).T)
