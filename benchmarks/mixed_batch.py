"""A batch whose rows use different adapters: a bank's shared factors against PEFT's mixed batch.

Every row of the batch has an adapter of its own. PEFT is given `adapter_names`, one a row, and
loops over the adapters; the time of the same model with `__base__` for every row is subtracted,
round by round. Ours is `lotr_tn.apply` with a layer for each row, on the Tucker-2 that holds all
adapters. By hand are the same three products (x V, a core a row, times Uᵀ), and a gather of the
LoRA factors followed by two batched products. All take turns in every round.

NumPy takes as many threads as its BLAS is allowed: for two, set OPENBLAS_NUM_THREADS=2. On a busy
machine trust the fastest rounds, not the medians.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lotr_tn as lt
from benchmarks.measure import report

__all__ = ["run"]


@dataclass(frozen=True)
class Size:
    """What is measured."""

    rows: int
    adapters: int
    width: int
    rank: int
    shared: int
    threads: int
    seconds: float


SIZES = {
    "full": Size(64, 64, 4096, 16, 64, threads=2, seconds=20.0),
    "smoke": Size(6, 6, 24, 2, 3, threads=1, seconds=0.05),
}

OURS = ("NumPy, lotr_tn.apply", "torch, lotr_tn.apply")
FLOORS = {OURS[0]: "NumPy, by hand", OURS[1]: "torch, by hand"}
GATHER = "torch, LoRA factors gathered, two batched products"
MIXED, BASE = "PEFT, mixed batch", "PEFT, base alone"
PEER = "PEFT, mixed batch less its base"
RATIOS = {"times_faster": "median", "times_faster_at_best": "fastest"}
"""Names of the ratios PEFT / way, and the figure that each compares."""


def run(size: str = "full") -> None:
    """Measure, print and write: on the CPU, and on a GPU where torch finds one."""
    chosen = SIZES[size]
    before = torch.get_num_threads()
    torch.set_num_threads(chosen.threads)
    try:
        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        found = {device: _on_device(chosen, device) for device in devices}
    finally:
        torch.set_num_threads(before)
    report(
        "mixed-batch",
        f"{chosen.rows} rows, {chosen.adapters} adapters, one {chosen.width}x{chosen.width} layer, "
        f"float32: LoRA of rank {chosen.rank} each, Tucker-2 of ranks {chosen.shared}. Median, and "
        "half the distance of the quartiles, in microseconds. PEFT / it: how many times as long "
        "the batch takes in PEFT, beyond its base",
        ["Device, way", "Median", "±", "Fastest", "PEFT / it", "fastest"],
        [row for device, record in found.items() for row in _rows(device, record)],
        {"size": size, "threads": chosen.threads, "devices": found},
    )


def _rows(device: str, record: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"{device}, {name}",
            *(f"{way[key] * 1e6:,.0f}" for key in ("median", "half_spread", "fastest")),
            *(f"{way[key]:.2f}" if key in way else "" for key in RATIOS),
        ]
        for name, way in record["ways"].items()
    ]


def _on_device(size: Size, device: str) -> dict[str, Any]:
    """Every way's time, and how far each lies from the truth."""
    problem = _problem(size, device)
    ways = _ways(problem)
    errors = _errors(problem, ways)
    if max(errors.values()) > 1e-4:
        raise AssertionError(f"a way to apply gives wrong numbers: {errors}")
    times = _in_turn(ways | _peers(problem), size.seconds, device)
    return {
        "rounds": len(times[BASE]),
        "largest_error": max(errors.values()),
        "ways": _figures(times),
        "times_the_floor": {
            ours: statistics.median(a / b for a, b in zip(times[ours], times[floor], strict=True))
            for ours, floor in FLOORS.items()
            if ours in times
        },
    }


def _figures(times: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of each way, and of PEFT's batch less its base: the difference within each round."""
    found = {name: _spread(seconds) for name, seconds in times.items()}
    found[PEER] = _spread(
        [mixed - base for mixed, base in zip(times[MIXED], times[BASE], strict=True)]
    ) | {"fastest": found[MIXED]["fastest"] - found[BASE]["fastest"]}
    for name, way in found.items():
        if name not in (MIXED, BASE, PEER):
            for ratio, key in RATIOS.items():
                way[ratio] = found[PEER][key] / way[key]
    return found


def _spread(seconds: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return {"median": middle, "half_spread": (high - low) / 2, "fastest": min(seconds)}


@dataclass(frozen=True)
class _Problem:
    """The same adapters as LoRA factors and as one Tucker-2, and a batch of one row for each."""

    u: Tensor  # (m, r1)
    core: Tensor  # (L, r1, r2)
    v: Tensor  # (n, r2)
    down: Tensor  # (L, r, n)
    up: Tensor  # (L, m, r)
    x: Tensor  # (b, n)
    which: np.ndarray  # (b,)


def _problem(size: Size, device: str) -> _Problem:
    """Adapters of rank r inside common spaces: core = a b, up = U a, down = b Vᵀ."""
    rng = np.random.default_rng(0)

    def entries(*shape: int) -> Tensor:
        scaled = rng.standard_normal(shape, dtype=np.float32) / np.float32(shape[-1] ** 0.5)
        return torch.from_numpy(scaled).to(device)

    count, width, shared = size.adapters, size.width, size.shared
    u, v = entries(width, shared), entries(width, shared)
    a, b = entries(count, shared, size.rank), entries(count, size.rank, shared)
    which = rng.permutation(max(count, size.rows))[: size.rows] % count
    return _Problem(u, a @ b, v, b @ v.mT, u @ a, entries(size.rows, width), which)


def _ways(p: _Problem) -> dict[str, Callable[[], Any]]:
    stack, x, names = lt.Tucker2(p.u, p.core, p.v), p.x, [int(i) for i in p.which]
    which = torch.from_numpy(p.which).to(x.device)
    ways: dict[str, Callable[[], Any]] = {
        OURS[1]: lambda: lt.apply(stack, x, layer=names),
        FLOORS[OURS[1]]: lambda: (
            torch.bmm((x @ p.v)[:, None, :], torch.index_select(p.core, 0, which).mT)[:, 0] @ p.u.mT
        ),
        GATHER: lambda: torch.bmm(
            torch.index_select(p.up, 0, which),
            torch.bmm(torch.index_select(p.down, 0, which), x[:, :, None]),
        )[:, :, 0],
    }
    if x.device.type == "cpu":
        u, core, v, rows = (array.numpy() for array in (p.u, p.core, p.v, x))
        numpy_stack = lt.Tucker2(u, core, v)
        ways[OURS[0]] = lambda: lt.apply(numpy_stack, rows, layer=names)
        ways[FLOORS[OURS[0]]] = lambda: ((rows @ v)[:, None, :] @ core[p.which].mT)[:, 0] @ u.T
    return ways


def _errors(p: _Problem, ways: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Relative to the products in float64, a row at a time; PEFT's with its base taken away."""
    rows = [
        p.u.double() @ (p.core[i].double() @ (p.v.double().mT @ row.double()))
        for i, row in zip(p.which, p.x, strict=True)
    ]
    wanted = torch.stack(rows).cpu()
    peers = _peers(p)
    made = {name: torch.as_tensor(way()) for name, way in ways.items()}
    made[PEER] = peers[MIXED]() - peers[BASE]()
    return {
        name: float(torch.linalg.norm(y.double().cpu() - wanted) / torch.linalg.norm(wanted))
        for name, y in made.items()
    }


class _Layer(nn.Module):
    """A model of one linear layer."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.proj = nn.Linear(n, m, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


def _peers(p: _Problem) -> dict[str, Callable[[], Any]]:
    """PEFT's model of one linear layer with every adapter added, and a batch that names them."""
    from peft import LoraConfig, get_peft_model

    (count, rank, n), m = p.down.shape, p.up.shape[1]
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base: Any = _Layer(n, m).to(p.x.device)
        model: Any = get_peft_model(base, config, adapter_name="a0")
        for i in range(1, count):
            model.add_adapter(f"a{i}", config)
    model.to(p.x.device).eval()
    layer = model.base_model.model.proj
    with torch.no_grad():
        for i in range(count):
            layer.lora_A[f"a{i}"].weight.copy_(p.down[i])
            layer.lora_B[f"a{i}"].weight.copy_(p.up[i])

    def forward(names: list[str]) -> Tensor:
        with torch.no_grad():
            return model(p.x, adapter_names=names)

    named, nobody = [f"a{i}" for i in p.which], ["__base__"] * len(p.which)
    return {MIXED: lambda: forward(named), BASE: lambda: forward(nobody)}


def _in_turn(
    ways: Mapping[str, Callable[[], Any]], seconds: float, device: str
) -> dict[str, list[float]]:
    """Seconds of every way in every round; rounds for about `seconds` in all, at least five.

    A way runs twice at its turn and the second run is timed, so that it does not pay for what the
    one before it has done to caches and threads. The order is drawn anew for every round.
    """

    def once(way: Callable[[], Any]) -> float:
        way()
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        way()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    a_round = 0.0
    for _ in range(2):
        a_round = 2 * sum(once(way) for way in ways.values())
    found: dict[str, list[float]] = {name: [] for name in ways}
    order, rng = list(ways), np.random.default_rng(0)
    for _ in range(max(5, min(2000, int(seconds / max(a_round, 1e-9))))):
        rng.shuffle(order)
        for name in order:
            found[name].append(once(ways[name]))
    return found
