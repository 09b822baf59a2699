"""Many adapters of one base, written as PEFT folders: a training run, and a planted fleet.

Both write one folder after another, so that memory stays near one adapter, and give the same files
again for the same seed. Nothing here is measured: these are inputs of other benchmarks.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

__all__ = ["SHAPES", "FleetShapes", "Planted", "planted_modules", "write_fleet", "write_run"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class FleetShapes:
    """The modules that a fleet adapts.

    Attributes:
        base: the base model's name, for the config.
        layers: number of layers.
        block: a layer's path in the file, with `{}` for its number.
        modules: (m, n) of each adapted module, by its path inside the layer.
    """

    base: str
    layers: int
    block: str
    modules: Mapping[str, tuple[int, int]]

    def shapes(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Every module's path in the file, and its (m, n)."""
        for layer in range(self.layers):
            for name, shape in self.modules.items():
                yield f"{self.block.format(layer)}.{name}", shape


LLAMA_BLOCK = "base_model.model.model.layers.{}"
SHAPES = {
    "llama-3.2-1b": FleetShapes(
        "meta-llama/Llama-3.2-1B",
        16,
        LLAMA_BLOCK,
        {"self_attn.q_proj": (2048, 2048), "self_attn.v_proj": (512, 2048)},
    ),
    "tiny": FleetShapes(
        "tiny", 2, LLAMA_BLOCK, {"self_attn.q_proj": (40, 48), "self_attn.v_proj": (24, 48)}
    ),
}


@dataclass(frozen=True)
class Planted:
    """The spaces in which every update of one module lies, but for its noise.

    Attributes:
        u: (m, shared), orthonormal columns.
        v: (n, shared), orthonormal columns.
    """

    u: np.ndarray
    v: np.ndarray


def write_run(
    folder: Path,
    source_checkpoints: Sequence[Path],
    steps: int = 18,
    *,
    noise: float = 0.02,
    wander: float = 0.0,
    seed: int = 0,
) -> list[Path]:
    """Fill the gaps between real checkpoints of one run, so that there are `steps` of them.

    The sources themselves are copied byte for byte. What lies between two neighbours is
    interpolated in the factors A and B, not in their product, whose rank would double. The factors
    of one run stay in one gauge, so that this follows the run: on the checkpoints of the tests the
    cosines of neighbours are at least 0.94 for A and 0.55 for B, and a midpoint lies within 9% of
    the mean of both updates. Every interpolated factor is then given noise of its own, `noise`
    times its norm, which no other checkpoint shares: at 0.02 about 2.8% of the update cannot be
    compressed away, only dropped. Heads and other tensors are interpolated too, without noise.
    New checkpoints go where the gaps are widest, by the numbers that end the names of the sources.

    Without `wander` all checkpoints lie on straight lines between the sources, as no real run does:
    taken as single vectors their factors then need one direction fewer than there are sources,
    which flatters a method that looks for such directions. `wander` lets every new checkpoint leave
    the line inside the row and column spaces that the sources' factors span together, each its own
    way, which in turn suits a method that looks for such spaces: neither is the real run.

    Args:
        folder: where to write; made if need be.
        source_checkpoints: PEFT folders `checkpoint-<number>` of one run with safetensors files.
        steps: how many checkpoints there shall be, the sources among them.
        noise: Frobenius norm of each interpolated factor's noise, relative to the factor.
        wander: likewise of its way off the line, halfway between two sources; less near them.
        seed: of the noise.

    Returns:
        The folders `checkpoint-<number>`, in the order of the run.

    Raises:
        ValueError: fewer than two sources, fewer steps than sources or more than there are numbers,
            no number in a name, tensors of different names or shapes, or factors that are not in
            one gauge.
    """
    sources = {_number(Path(path)): Path(path) for path in source_checkpoints}
    known = sorted(sources)
    if len(known) < 2 or not len(known) <= steps <= known[-1] - known[0]:
        raise ValueError(
            "a run needs two sources of different numbers, no fewer steps than sources, and as "
            f"many numbers between them; found sources {known} and {steps} steps"
        )
    spaces = _spaces([sources[at] for at in known]) if wander else {}
    made = []
    for (left, right), between in zip(pairwise(known), _spread(known, steps), strict=True):
        made.append(_copied(sources[left], folder))
        start, end = (load_file(sources[at] / WEIGHTS) for at in (left, right))
        _require_one_gauge(start, end)
        for i in range(1, between + 1):
            share = i / (between + 1)
            at = round(left + share * (right - left))
            rng = np.random.default_rng([seed, at])
            tensors = {key: _between(key, start[key], end[key], share, noise, rng) for key in start}
            off = wander * 2 * (share * (1 - share)) ** 0.5
            for key, space in spaces.items():
                x = tensors[key]
                moved = _off_the_line(x.T if ".lora_B" in key else x, space, off, rng)
                tensors[key] = np.ascontiguousarray(moved.T if ".lora_B" in key else moved)
            config = (sources[left] / CONFIG).read_text()
            made.append(_written(folder / f"checkpoint-{at}", tensors, config))
    return [*made, _copied(sources[known[-1]], folder)]


def write_fleet(
    folder: Path,
    count: int,
    *,
    shapes: str | FleetShapes = "llama-3.2-1b",
    rank: int = 8,
    shared: int = 32,
    noise: float = 0.01,
    seed: int = 0,
    dtype: str = "float32",
) -> list[Path]:
    """Write adapters whose updates lie near common spaces, one space pair for each module.

    A module's update is 2 (U a + E) (b Vᵀ + F) of exactly `rank`, where U and V are the module's
    own spaces of `shared` directions, the same for all adapters, a and b are random, and E and F
    are noise of all directions, scaled so that the update moves by `noise` times its norm (to first
    order; exact to noise²). The 2 is lora_alpha / r in the config, with lora_alpha = 2 r.

    Args:
        folder: where to write; made if need be.
        count: number of adapters, `adapter-0000` on.
        shapes: a name in `SHAPES`, or modules of one's own.
        rank: rank of each update.
        shared: directions of each planted space.
        noise: Frobenius norm of the noise, relative to the update without it.
        seed: with it an adapter depends on its number only, not on `count`.
        dtype: float32, float16 or bfloat16, of the files; halves round the update by 1e-3 or 5e-3.

    Returns:
        The folders, in order. The q and v projections of Llama-3.2-1B at rank 8 take 3.4 MB each in
        float32.

    Raises:
        ValueError: there is too little room on the disk, or the dtype is unknown.
    """
    chosen = SHAPES[shapes] if isinstance(shapes, str) else shapes
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; needed one of {', '.join(DTYPES)}")
    folder.mkdir(parents=True, exist_ok=True)
    entries = sum(rank * (m + n) for _, (m, n) in chosen.shapes())
    needed = count * (entries * np.dtype(DTYPES[dtype]).itemsize + 20_000)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{count} adapters take {needed:,} bytes, and {folder} has {free:,} free")
    planted = planted_modules(chosen, shared, seed)
    config = json.dumps(_config(chosen, rank), indent=2)
    return [
        _written(
            folder / f"adapter-{i:04d}",
            _fleet_tensors(planted, rank, noise, np.random.default_rng([seed, 1, i]), dtype),
            config,
        )
        for i in range(count)
    ]


def planted_modules(shapes: FleetShapes, shared: int, seed: int = 0) -> dict[str, Planted]:
    """The spaces that `write_fleet` plants, by each module's path in the file, float32."""
    rng = np.random.default_rng([seed, 0])

    def basis(size: int) -> np.ndarray:
        return np.linalg.qr(rng.standard_normal((size, shared), dtype=np.float32))[0]

    return {name: Planted(basis(m), basis(n)) for name, (m, n) in shapes.shapes()}


def _fleet_tensors(
    planted: Mapping[str, Planted], rank: int, noise: float, rng: np.random.Generator, dtype: str
) -> dict[str, np.ndarray]:
    tensors = {}
    for name, spaces in planted.items():
        up, down = _near(spaces, rank, noise, rng)
        tensors[f"{name}.lora_A.weight"] = down.astype(DTYPES[dtype])
        tensors[f"{name}.lora_B.weight"] = up.astype(DTYPES[dtype])
    return tensors


def _near(
    spaces: Planted, rank: int, noise: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """B (m, r) and A (r, n) of an update near the planted spaces, of norm about 0.05."""

    def entries(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    (m, shared), n = spaces.u.shape, spaces.v.shape[0]
    left, right = entries(shared, rank), entries(rank, shared)
    up, down = spaces.u @ left, right @ spaces.v.T
    e, f = entries(m, rank) / np.float32(m**0.5), entries(rank, n) / np.float32(n**0.5)
    # ‖e down + up f‖², without forming it: cross terms of small Gram matrices
    moved = (
        np.sum((e.T @ e) * (down @ down.T))
        + np.sum((up.T @ up) * (f @ f.T))
        + 2 * np.sum((e.T @ up) * (down @ f.T))
    )
    norm = np.linalg.norm(left @ right)
    size = np.float32(noise * norm / moved**0.5)
    scale = np.float32((0.05 / norm) ** 0.5)
    return scale * (up + size * e), scale * (down + size * f)


def _config(shapes: FleetShapes, rank: int) -> dict[str, Any]:
    return {
        "base_model_name_or_path": shapes.base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in shapes.modules}),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def _number(path: Path) -> int:
    digits = path.name.rpartition("-")[2]
    if not digits.isdigit():
        raise ValueError(f"{path} must be named checkpoint-<number>, to know its place in the run")
    return int(digits)


def _spread(known: Sequence[int], steps: int) -> list[int]:
    """How many new steps go into each gap: each time one more where steps lie farthest apart."""
    gaps = [right - left for left, right in pairwise(known)]
    counts = [0] * len(gaps)
    for _ in range(steps - len(known)):
        widest = max(range(len(gaps)), key=lambda i: gaps[i] / (counts[i] + 1))
        counts[widest] += 1
    return counts


def _require_one_gauge(start: Mapping[str, np.ndarray], end: Mapping[str, np.ndarray]) -> None:
    """Refuse neighbours whose factors point elsewhere: what lies between them means nothing."""
    if {k: x.shape for k, x in start.items()} != {k: x.shape for k, x in end.items()}:
        raise ValueError("neighbouring checkpoints must hold tensors of the same names and shapes")
    for key, x in start.items():
        if ".lora_" in key:
            norms = float(np.linalg.norm(x)) * float(np.linalg.norm(end[key]))
            if norms and float(np.vdot(x, end[key])) < 0.3 * norms:
                raise ValueError(f"{key} of neighbours must be in one gauge: cosine under 0.3")


def _between(
    key: str,
    start: np.ndarray,
    end: np.ndarray,
    share: float,
    noise: float,
    rng: np.random.Generator,
) -> np.ndarray:
    if start.dtype.kind != "f":
        return start
    x = (1 - share) * start.astype(np.float64) + share * end.astype(np.float64)
    if ".lora_" in key:
        own = rng.standard_normal(x.shape)
        x += noise * np.linalg.norm(x) / np.linalg.norm(own) * own
    return x.astype(start.dtype)


def _spaces(sources: Sequence[Path]) -> dict[str, np.ndarray]:
    """Orthonormal rows that span all sources' rows of A, and columns of B, by key."""
    stacked: dict[str, list[np.ndarray]] = {}
    for source in sources:
        for key, x in load_file(source / WEIGHTS).items():
            if ".lora_" in key:
                stacked.setdefault(key, []).append(x.T if ".lora_B" in key else x)
    return {key: np.linalg.qr(np.concatenate(xs).T)[0].T for key, xs in stacked.items()}


def _off_the_line(
    x: np.ndarray, space: np.ndarray, size: float, rng: np.random.Generator
) -> np.ndarray:
    """Rows (r, n) moved inside a space (q, n) by `size` times their norm."""
    move = rng.standard_normal((x.shape[0], space.shape[0])) @ space
    return (x + size * np.linalg.norm(x) / np.linalg.norm(move) * move).astype(x.dtype)


def _copied(source: Path, folder: Path) -> Path:
    target = folder / source.name
    target.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        (target / name).write_bytes((source / name).read_bytes())
    return target


def _written(target: Path, tensors: dict[str, np.ndarray], config: str) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    (target / CONFIG).write_text(config)
    return target
