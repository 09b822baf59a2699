"""Banks: what they take, how fast they are made, and what using and growing them costs.

A run of 18 checkpoints, filled up from four real ones where `LOTR_REAL_DATA` names their folder
and else from planted ones, is measured against cutting each adapter's own ranks and against other
packages. Two fleets of planted adapters show how seconds and memory grow with the number of
adapters; the bank of the larger one is then read from and appended to.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

import lotr_tn as lt
from benchmarks.bank_peers import (
    PEERS,
    Point,
    bytes_for_error,
    curve_to_error,
    installed,
    numbers_of_updates,
)
from benchmarks.fleets import write_fleet, write_run
from benchmarks.measure import Timing, report, timed_together
from lotr_tn.adapters.as_lora import to_lora
from lotr_tn.banks.bank import Bank
from lotr_tn.banks.changing.appending import add_adapters
from lotr_tn.banks.file import load_bank

ERROR = 0.05
"""Relative error of every adapter, everywhere."""

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
BANK = "bank.lotr.safetensors"


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        steps: checkpoints of the run.
        real: whether the run is filled up from real checkpoints where they are at hand.
        shapes: of the fleets.
        shared: directions planted in the fleets.
        counts: adapters of the smaller and the larger fleet.
        repeats: conversions of the run and of the smaller fleet.
        seconds: for each of the two functions that are timed in turn.
    """

    steps: int
    real: bool
    shapes: str
    shared: int
    counts: tuple[int, int]
    repeats: int
    seconds: float


SIZES = {
    "smoke": Size(5, False, "tiny", 6, (3, 6), 1, 0.01),
    "full": Size(18, True, "llama-3.2-1b", 32, (20, 200), 3, 2.0),
    "large": Size(18, True, "llama-3.2-1b", 32, (100, 1000), 3, 4.0),
}

CONVERT = """
import json, resource, sys, time
from pathlib import Path
import lotr_tn as lt
from lotr_tn.banks.making.conversion import make_bank
from lotr_tn.doors.sources import named_adapters

folder, count, bank, error = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
folders = sorted(path for path in folder.iterdir() if path.is_dir())[:count]
begun = time.perf_counter()
done = make_bank(named_adapters(folders), bank, lt.RelativeError(error), force=True)
seconds = time.perf_counter() - begun
try:  # the high-water mark of this program alone; getrusage's begins with the parent's
    lines = open("/proc/self/status").read().splitlines()
    peak = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
record = {
    "seconds": seconds,
    "peak": peak,
    "met": bool(done.met),
    "worst": max(done.errors.values()),
    "separate": done.bytes_separate,
    "routes": sorted(set(done.routes.values())),
}
print(json.dumps(record))
"""


def run(size: str) -> None:
    """Measure a run of checkpoints, two fleets, and the use of a bank."""
    chosen = SIZES[size]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        history = _history(folder, chosen)
        fleets, bank, spare = _fleets(folder, chosen)
        use = _use(folder, bank, spare, chosen)
    few, many = fleets
    report(
        "bank",
        f"{history['adapters']} checkpoints of one run ({history['source']}), then fleets of "
        f"{few['adapters']} and {many['adapters']} adapters; every adapter within {ERROR:.0%}",
        ["What", "Here", "Against", "Ratio"],
        [*_history_rows(history), *_fleet_rows(few, many), *_use_rows(use)],
        {"error": ERROR, "run": history, "fleets": list(fleets), "use": use},
    )


def _history(folder: Path, size: Size) -> dict[str, Any]:
    """A run as a bank, against other ways of storing it."""
    sources, source = _sources(folder / "sources", size)
    folders = write_run(folder / "run", sources, size.steps)
    path = folder / BANK
    reads, records = _converted(folder / "run", len(folders), path, size.repeats)
    bank, numbers = load_bank(path), 4 * numbers_of_updates(folders)
    stacks = _bytes_of_stacks(bank)
    return {
        "adapters": len(folders),
        "source": source,
        "seconds": [record["seconds"] for record in records],
        "plain_read": reads,
        "peak": records[-1]["peak"],
        "worst": records[-1]["worst"],
        "met": all(record["met"] for record in records),
        "bytes": stacks,
        "file": path.stat().st_size,
        "bytes_before": numbers,
        "bytes_separate": records[-1]["separate"],
        "peers": {peer: _peer(peer, folders, stacks) for peer in PEERS},
    }


def _sources(folder: Path, size: Size) -> tuple[list[Path], str]:
    """Checkpoints to fill the gaps between."""
    real = Path(os.environ.get("LOTR_REAL_DATA", "")) / "roberta-pt-18ckpt"
    if size.real and "LOTR_REAL_DATA" in os.environ and real.is_dir():
        return sorted(real.glob("checkpoint-*")), "real"
    ends = write_fleet(folder / "ends", 2, shapes=size.shapes, shared=size.shared, noise=0.1)
    start, end = (load_file(path / WEIGHTS) for path in ends)
    made = []
    for number, share in ((500, 0.0), (2000, 0.2), (5000, 0.4), (8600, 0.6)):
        made.append(folder / f"checkpoint-{number}")
        made[-1].mkdir()
        between = {key: ((1 - share) * x + share * end[key]) for key, x in start.items()}
        save_file({key: x.astype(np.float32) for key, x in between.items()}, made[-1] / WEIGHTS)
        shutil.copy(ends[0] / CONFIG, made[-1])
    return made, "planted"


def _converted(
    folder: Path, count: int, bank: Path, repeats: int
) -> tuple[list[float], list[dict[str, Any]]]:
    """Conversions, each in a process of its own, in turn with plain readings of the inputs."""
    reads, records = [_seconds_to_read(folder, count)], []
    for _ in range(repeats):
        arguments = [str(folder), str(count), str(bank), str(ERROR)]
        done = subprocess.run(
            [sys.executable, "-c", CONVERT, *arguments], capture_output=True, text=True, check=True
        )
        records.append(json.loads(done.stdout))
        reads.append(_seconds_to_read(folder, count))
    return reads, records


def _files(folder: Path, count: int) -> Iterator[Path]:
    for inner in sorted(path for path in folder.iterdir() if path.is_dir())[:count]:
        yield inner / WEIGHTS


def _seconds_to_read(folder: Path, count: int) -> float:
    """Seconds to read every byte of the inputs, in pieces, and do nothing with them."""
    piece, begun = bytearray(1 << 20), time.perf_counter()
    for path in _files(folder, count):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(piece):
                pass
    return time.perf_counter() - begun


def _bytes_of_stacks(bank: Bank) -> int:
    """Bytes of all shared factors and cores."""
    return bank.nbytes - sum(content.entry.nbytes for content in bank.contents)


def _peer(peer: str, folders: Sequence[Path], room: int) -> dict[str, Any] | None:
    """The fewest bytes of numbers that a package needs, and its error in as many as a bank has."""
    if not installed(peer):
        return None
    curve = curve_to_error(peer, folders, ERROR)
    inside = _largest_inside(peer, folders, curve, room)
    return {
        "bytes": bytes_for_error(curve, ERROR, stored=False),
        "error_at_bytes": None if inside is None else inside.worst,
        "curve": [vars(point) for point in curve],
    }


def _largest_inside(
    peer: str, folders: Sequence[Path], curve: Sequence[Point], room: int
) -> Point | None:
    """The point of most components whose numbers fit; they grow by as many with each one."""
    first = PEERS[peer](folders, [1])[0]
    other = max(curve, key=lambda point: point.k)
    if other.k == 1:
        return first if first.bytes_of_numbers <= room else None
    each = (other.bytes_of_numbers - first.bytes_of_numbers) / (other.k - 1)
    k = min(1 + int((room - first.bytes_of_numbers) // each), other.k)
    return PEERS[peer](folders, [k])[0] if k >= 1 else None


def _fleets(folder: Path, size: Size) -> tuple[tuple[dict[str, Any], ...], Path, Path]:
    """Two fleets as banks; the bank of the larger, and an adapter that is in neither."""
    most = max(size.counts)
    fleet = folder / "fleet"
    spare = write_fleet(fleet, most + 1, shapes=size.shapes, rank=8, shared=size.shared)[-1]
    path, found = folder / "fleet.lotr.safetensors", []
    for count in size.counts:
        reads, records = _converted(fleet, count, path, size.repeats if count < most else 1)
        found.append(
            {
                "adapters": count,
                "bytes_before": sum(file.stat().st_size for file in _files(fleet, count)),
                "file": path.stat().st_size,
                "seconds": [record["seconds"] for record in records],
                "plain_read": reads,
                "peak": records[-1]["peak"],
                "met": all(record["met"] for record in records),
                "routes": records[-1]["routes"],
            }
        )
    return tuple(found), path, spare


def _use(folder: Path, bank: Path, spare: Path, size: Size) -> dict[str, Any]:
    """Taking one adapter out of a bank, and adding one."""
    names = load_bank(bank).names
    name, source = names[len(names) // 2], folder / "fleet" / names[len(names) // 2]
    taken, read = timed_together(
        lambda: _touched(to_lora(load_bank(bank)[name]).adapter),
        lambda: _touched(lt.load_adapter(source)),
        size.seconds,
    )
    grown, alone = folder / "grown.lotr.safetensors", folder / "alone.lotr.safetensors"

    def converted() -> None:
        adapter = lt.load_adapter(spare)
        assert isinstance(adapter, lt.LoRAAdapter)
        done = lt.convert_adapter(adapter, lt.RelativeError(ERROR))
        lt.save_adapter(done.adapter, alone, force=True)

    appended, one = _in_turn(
        lambda: shutil.copy(bank, grown),
        lambda: add_adapters(
            grown, {"another": lt.load_adapter(spare)}, rule=lt.RelativeError(ERROR)
        ),
        converted,
        max(size.repeats, int(2 * size.seconds)),
    )
    return {
        "bank": len(names),
        "take_out": vars(taken),
        "load_folder": vars(read),
        "append": vars(appended),
        "convert_alone": vars(one),
    }


def _touched(adapter: Any) -> float:
    """Every number of an adapter's factors used once."""
    return sum(float(x.sum()) for module in adapter.modules for x in module.factors())


def _in_turn(
    prepare: Callable[[], Any], one: Callable[[], Any], other: Callable[[], Any], repeats: int
) -> tuple[Timing, Timing]:
    """Two functions in turn, the first on what was prepared for it, without the time of that."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        prepare()
        for work, times in zip((one, other), found, strict=True):
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
    first, second = (
        Timing(statistics.median(x[1:]), min(x[1:]), max(x[1:])) for x in found
    )  # the first round warms up
    return first, second


def _history_rows(run: dict[str, Any]) -> list[list[str]]:
    seconds, size = statistics.median(run["seconds"]), run["bytes"]
    rows = [
        [
            "run: seconds, against a plain read",
            f"{seconds:.2f}",
            *_over(seconds, run["plain_read"]),
        ],
        ["run: MB of stacks, against the inputs'", _mb(size), *_share(size, run["bytes_before"])],
        ["run: against own ranks cut", _mb(size), *_share(size, run["bytes_separate"])],
    ]
    for peer, found in run["peers"].items():
        if found is None:
            rows.append([f"run: against {peer}", _mb(size), "not installed", ""])
            continue
        rows.append([f"run: against {peer}", _mb(size), *_share(size, found["bytes"])])
        error = found["error_at_bytes"]
        if error is None:
            there = ["no room", ""]
        else:
            there = [f"{error:.3f}", f"{run['worst'] / error:.2f}x"]
        rows.append([f"run: worst error, {peer} in as many MB", f"{run['worst']:.3f}", *there])
    return rows


def _fleet_rows(few: dict[str, Any], many: dict[str, Any]) -> list[list[str]]:
    rows = []
    for fleet in (few, many):
        seconds, count = statistics.median(fleet["seconds"]), fleet["adapters"]
        speed = fleet["bytes_before"] / seconds / 1e6
        plain = fleet["bytes_before"] / statistics.median(fleet["plain_read"]) / 1e6
        rows += [
            [f"{count}: MB/s in, against a read", f"{speed:.1f}", *_against(speed, plain, ".0f")],
            [
                f"{count}: MB of file, against the inputs'",
                _mb(fleet["file"]),
                *_share(fleet["file"], fleet["bytes_before"]),
            ],
        ]
    seconds = [statistics.median(fleet["seconds"]) for fleet in (many, few)]
    peaks = [fleet["peak"] / 1e6 for fleet in (many, few)]
    label = f"{many['adapters']} against {few['adapters']}"
    return [
        *rows,
        [f"{label}: seconds", f"{seconds[0]:.2f}", *_against(seconds[0], seconds[1], ".2f")],
        [f"{label}: peak MB", f"{peaks[0]:.0f}", *_against(peaks[0], peaks[1], ".0f")],
    ]


def _use_rows(use: dict[str, Any]) -> list[list[str]]:
    taken, read = use["take_out"]["median"] * 1e3, use["load_folder"]["median"] * 1e3
    added, alone = use["append"]["median"], use["convert_alone"]["median"]
    return [
        [
            f"one of {use['bank']} out, ms, against its folder",
            f"{taken:.1f}",
            *_against(taken, read, ".1f"),
        ],
        [
            f"one to {use['bank']} added, s, against it alone",
            f"{added:.3f}",
            *_against(added, alone, ".3f"),
        ],
    ]


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f}"


def _share(size: int, other: int | None) -> list[str]:
    return ["not reached", ""] if other is None else [_mb(other), f"{size / other:.3f}x"]


def _against(here: float, there: float, form: str) -> list[str]:
    return [format(there, form), f"{here / there:.2f}x"]


def _over(seconds: float, reads: Sequence[float]) -> list[str]:
    plain = statistics.median(reads)
    return [f"{plain:.3f}", f"{seconds / plain:.0f}x"]
