"""Bytes of whole adapters at an error, by every common way to store them, and a Gaussian's rate.

Ranks are cut over all modules together where that loses least, and what is left is stored in
float32, bfloat16, whole numbers of 8 bits with a scale for each column, or of 4 bits with a float16
scale for each 64; the error of the product is measured each time, and as many directions are kept
as it takes. `zstd` packs the float32 factors as they are, and loses nothing; it needs the package
zstandard, which is no dependency of this project. `numbers` and `bits` are files that `lotr
convert` writes, with headers, less the tensors that are no updates. What such a file says of its
error is compared with dense products of what is exported from it.

    python -m benchmarks.bits_peers ADAPTER ADAPTER ...
"""

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import ml_dtypes
import numpy as np
import typer

import lotr_tn as lt
from benchmarks.measure import report
from lotr_tn.coding.bound import gaussian_bits
from lotr_tn.files.packed_tensors import PackedTensors

ERRORS = (0.02, 0.05, 0.1, 0.2, 0.3)
GROUP = 64
"""Entries that share a scale in 4 bits."""

Pair = tuple[np.ndarray, np.ndarray]
Stored = tuple[np.ndarray, int]
"""What comes back, and the bytes that it took."""


def float32(x: np.ndarray) -> Stored:
    """As it is."""
    return x.astype(np.float32).astype(np.float64), 4 * x.size


def bfloat16(x: np.ndarray) -> Stored:
    """Eight bits of mantissa."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float64), 2 * x.size


def int8(x: np.ndarray) -> Stored:
    """A float32 scale for each column."""
    scale = np.abs(x).max(axis=0, initial=0.0).astype(np.float32).astype(np.float64) / 127
    return np.rint(x / np.where(scale > 0, scale, 1)) * scale, x.size + 4 * x.shape[1]


def int4(x: np.ndarray) -> Stored:
    """A float16 scale for each 64 entries of a column."""
    wide = np.pad(x.T, ((0, 0), (0, -len(x) % GROUP)))
    flat = wide.reshape(-1, GROUP)
    scale = (np.abs(flat).max(axis=1, keepdims=True) / 7).astype(np.float16).astype(np.float64)
    back = np.clip(np.rint(flat / np.where(scale > 0, scale, 1)), -8, 7) * scale
    return back.reshape(wide.shape)[:, : len(x)].T, (x.size + 1) // 2 + 2 * scale.size


WAYS: dict[str, Callable[[np.ndarray], Stored]] = {
    "ranks cut, float32": float32,
    "ranks cut, bfloat16": bfloat16,
    "ranks cut, int8 per column": int8,
    "ranks cut, int4 per 64": int4,
}


@dataclass(frozen=True, eq=False)
class Directions:
    """The singular directions of all modules, each side times the root of the singular value."""

    pairs: list[Pair]

    @staticmethod
    def of(adapter: lt.LoRAAdapter) -> "Directions":
        """Those of an adapter."""
        pairs = []
        for module in adapter.modules:
            up, down = (np.asarray(x, dtype=np.float64) for x in module.factors())
            (left, a), (right, b) = np.linalg.qr(up), np.linalg.qr(down.T)
            u, values, v = np.linalg.svd(a @ b.T, full_matrices=False)
            pairs.append((left @ u * values**0.5, right @ v.T * values**0.5))
        return Directions(pairs)

    @cached_property
    def values(self) -> list[np.ndarray]:
        """The singular values of each module."""
        return [(x**2).sum(0) for x, _ in self.pairs]

    @property
    def energy(self) -> float:
        """The squared norm of all updates."""
        return float(sum((values**2).sum() for values in self.values))

    @cached_property
    def order(self) -> tuple[np.ndarray, np.ndarray]:
        """Modules and places of all directions, those first that hold most for their numbers."""
        sizes = [sum(map(len, pair)) for pair in self.pairs]
        worth = np.concatenate([v**2 / n for v, n in zip(self.values, sizes, strict=True)])
        counts = [len(values) for values in self.values]
        modules = np.repeat(np.arange(len(counts)), counts)
        places = np.concatenate([np.arange(count) for count in counts])
        found = np.argsort(-worth, kind="stable")
        return modules[found], places[found]

    def rounded(self, kept: int, way: Callable[[np.ndarray], Stored]) -> tuple[list[Pair], int]:
        """What comes back of so many directions, and the bytes that they took."""
        modules, places = (x[:kept] for x in self.order)
        pairs, size = [], 0
        for at, pair in enumerate(self.pairs):
            mine = np.sort(places[modules == at])
            (x, one), (y, other) = (way(side[:, mine]) for side in pair)
            pairs.append((x, y))
            size += one + other
        return pairs, size

    def error(self, pairs: list[Pair]) -> float:
        """The relative error of these products in place of the adapter's."""
        lost = 0.0
        for pair, (x, y) in zip(self.pairs, pairs, strict=True):
            left, right = np.hstack([pair[0], x]), np.hstack([pair[1], -y])
            lost += float(((left.T @ left) * (right.T @ right)).sum())
        return (max(lost, 0.0) / self.energy) ** 0.5

    def fewest(self, error: float, way: Callable[[np.ndarray], Stored]) -> int | None:
        """How many directions it takes for an error; None where this way is never so near."""
        low, high = 0, len(self.order[0])
        if self.error(self.rounded(high, way)[0]) > error:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.error(self.rounded(middle, way)[0]) <= error
            low, high = (low, middle) if enough else (middle, high)
        return high

    def bytes_at(self, error: float, way: Callable[[np.ndarray], Stored]) -> int | None:
        """The bytes at an error; None where this way cannot be as near as that."""
        kept = self.fewest(error, way)
        return None if kept is None else self.rounded(kept, way)[1]


def zstd_bytes(adapter: lt.LoRAAdapter) -> int | None:
    """The float32 factors, packed; None where zstandard is not installed."""
    if importlib.util.find_spec("zstandard") is None:
        return None
    packer = importlib.import_module("zstandard").ZstdCompressor(level=19)
    factors = [x for module in adapter.modules for x in (module.up, module.down)]
    return len(packer.compress(b"".join(x.astype(np.float32).tobytes() for x in factors)))


def file_at(
    adapter: lt.LoRAAdapter, error: float, coding: Literal["none", "auto"]
) -> tuple[int, float, float]:
    """Bytes of the file of a conversion, the error that it tells, and that of dense products."""
    rule = lt.TotalError(error)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.lotr.safetensors"
        done = lt.convert_adapter(adapter, rule, format="auto", coding=coding)
        lt.save_adapter(done.adapter, path)
        back = lt.load_adapter(path)
        size = path.stat().st_size - _others(done.adapter)
    assert isinstance(back, lt.LoTRAdapter)
    return size, done.relative_error, dense_error(adapter, back)


def _others(adapter: lt.LoTRAdapter) -> int:
    """Bytes that tensors that are no updates have in a file."""
    extras = adapter.extras
    if isinstance(extras, PackedTensors):
        return extras.stream.nbytes
    return sum(tensor.nbytes for tensor in extras.values())


def dense_error(adapter: lt.LoRAAdapter, back: lt.LoTRAdapter) -> float:
    """‖ΔW − ΔŴ‖ / ‖ΔW‖ of all modules, by their matrices in float64, one at a time."""
    exported = lt.to_lora(back, dtype="float64").adapter
    found = {module.target.name: module for module in exported.modules}
    lost = whole = 0.0
    for module in adapter.modules:
        one, other = (
            np.asarray(up, dtype=np.float64) @ np.asarray(down, dtype=np.float64)
            for up, down in (x.factors() for x in (module, found[module.target.name]))
        )
        lost, whole = lost + ((one - other) ** 2).sum(), whole + (one**2).sum()
    return float((lost / whole) ** 0.5)


Shares = Sequence[float | None]
"""Of the float32 factors, for each error; None where a way cannot be as near as that."""


def rows_of(adapter: lt.LoRAAdapter, errors: Sequence[float]) -> Iterator[tuple[str, Shares]]:
    """Every way and its shares; last how far told errors are off."""
    floats, directions = 4 * adapter.parameters, Directions.of(adapter)
    for name, way in WAYS.items():
        sizes = [directions.bytes_at(error, way) for error in errors]
        yield name, [None if size is None else size / floats for size in sizes]
    packed = zstd_bytes(adapter)
    yield "zstd of float32", [None if packed is None else packed / floats] * len(errors)
    gaps = []
    codings: dict[str, Literal["none", "auto"]] = {"numbers": "none", "bits": "auto"}
    for name, coding in codings.items():
        files = [file_at(adapter, error, coding) for error in errors]
        gaps += [abs(told - dense) / max(dense, 1e-30) for _, told, dense in files]
        for error, (_, told, _) in zip(errors, files, strict=True):
            assert told <= error, f"{told} is more than the {error} that was asked"
        yield name, [size / floats for size, _, _ in files]
    sizes = [(len(x), len(y)) for x, y in directions.pairs]
    lost = [error**2 * directions.energy for error in errors]
    rates = [gaussian_bits(directions.values, sizes, one) / 8 / floats for one in lost]
    yield "Gaussian rate", rates
    yield "told error / dense - 1", [max(gaps)] * len(errors)


def run(paths: Sequence[Path], errors: Sequence[float] = ERRORS) -> None:
    """One table for each adapter."""
    record: dict[str, dict[str, object]] = {}
    for path in paths:
        adapter = lt.load_adapter(path)
        assert isinstance(adapter, lt.LoRAAdapter), f"{path} is no LoRA"
        *found, (_, (gap, *_)) = rows_of(adapter, errors)
        record[path.name] = {**dict(found), "gap": gap}
        report(
            "bits_peers",
            f"{path.name}: {adapter.parameters:,} numbers, shares of {4 * adapter.parameters:,} "
            f"bytes at a relative error of all updates. Told errors are off by {gap:.0e} at most",
            ["Stored as", *(f"{error:.0%}" for error in errors)],
            [
                [name, *("-" if share is None else f"{share:.3f}" for share in shares)]
                for name, shares in found
            ],
            {"errors": list(errors), "adapters": record},
        )


def main(
    adapters: Annotated[list[Path], typer.Argument(help="LoRA adapters.", exists=True)],
) -> None:
    """Bytes of adapters at an error, by every common way to store them."""
    run(adapters)


if __name__ == "__main__":
    typer.run(main)
