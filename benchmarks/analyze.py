"""A whole adapter through `lotr analyze`, beside `lotr convert` of the same, and its parts."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import lotr_tn as lt
from benchmarks.adapter import SIZES, make_adapter
from benchmarks.measure import report, timed
from lotr_tn.analysis.clustering import clusters_of, sharing
from lotr_tn.analysis.coordinates import coordinates_of
from lotr_tn.analysis.curves import curves_of
from lotr_tn.analysis.subspaces import overlaps_of

COMMAND = """
import json, sys, time
begun = time.perf_counter()
from lotr_tn.cli import main
sys.argv = ["lotr", *sys.argv[1:], "-q", "-f"]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
print(json.dumps({"seconds": time.perf_counter() - begun}))
"""


def run(size: str) -> None:
    """Both commands in processes of their own, and the parts of one group in this one."""
    shapes, layers, rank, target = SIZES[size]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source, page = folder / "lora", folder / "page.html"
        make_adapter(source, shapes, layers, rank)
        out = str(folder / "a.lotr.safetensors")
        seconds = {
            f"convert --rank {target}": _seconds(
                "convert", str(source), "--rank", str(target), "-o", out
            ),
            "convert --rel-error 0.05": _seconds(
                "convert", str(source), "--rel-error", "0.05", "-o", out
            ),
            "analyze --rel-error 0.05 --html": _seconds(
                "analyze", str(source), "--rel-error", "0.05", "--html", str(page)
            ),
        }
        written = page.stat().st_size
    base = seconds["convert --rel-error 0.05"]
    rows = [[name, f"{one:.2f}", f"{one / base:.2f}x"] for name, one in seconds.items()]
    rows.append(["size of the page", f"{written / 1e6:.2f} MB", ""])
    report(
        "analyze",
        f"lotr analyze: {len(shapes)} kinds x {layers} layers, rank {rank}, bfloat16",
        ["Command, own process", "Seconds", "Of convert"],
        rows,
        {"seconds": seconds, "page": written},
    )
    _parts(size)


def _seconds(*arguments: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)["seconds"]


def _parts(size: str) -> None:
    """One group: the surface and the clusters against one HOSVD."""
    shapes, layers, rank, target = SIZES[size]
    m, n = next(iter(shapes.values()))
    rng = np.random.default_rng(0)
    up = rng.standard_normal((m, layers * rank), dtype=np.float32)
    down = rng.standard_normal((layers * rank, n), dtype=np.float32)
    stack = lt.LoRAStack(up, down, (rank,) * layers)
    repeats = 5 if size == "full" else 1
    coordinates = coordinates_of(stack)
    overlaps, curves = overlaps_of(coordinates), curves_of(coordinates, 0, sharing())
    work = {
        f"hosvd, ranks {target}": lambda: lt.hosvd(stack, target),
        "error_surface": lambda: lt.analysis.error_surface(stack),
        "curves of all formats": lambda: curves_of(coordinates_of(stack), 0),
        "clusters, beside it": lambda: clusters_of(coordinates, overlaps, curves, 0.05),
    }
    found = {name: timed(call, repeats)[0] for name, call in work.items()}
    base = next(iter(found.values())).median
    report(
        "analyze-group",
        f"one group: {layers} layers of {m}x{n}, rank {rank}, float32",
        ["Part", "Seconds", "Of a HOSVD"],
        [[name, time.text(), f"{time.median / base:.2f}x"] for name, time in found.items()],
        {name: time.median for name, time in found.items()},
    )
