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
        """Median, with the spread in brackets."""
        return f"{self.median:.3f} ({self.fastest:.3f}-{self.slowest:.3f})"


def timed(work: Callable[[], Any], repeats: int) -> tuple[Timing, Any]:
    """Time a function after one run to warm up; also gives its last result."""
    result = work()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - begun)
    return Timing(statistics.median(seconds), min(seconds), max(seconds)), result


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
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD)
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

    def factor(size: int) -> np.ndarray:
        own = rng.standard_normal((size, layers * rank), dtype=np.float32) / np.sqrt(size)
        if not shared:
            return own
        basis = np.linalg.qr(rng.standard_normal((size, shared), dtype=np.float32))[0]
        inside = rng.standard_normal((shared, layers * rank), dtype=np.float32) / np.sqrt(shared)
        return basis @ inside + np.float32(noise) * own

    return factor(m), np.ascontiguousarray(factor(n).T)
