"""Bits of the demo's adapter at an error, against numbers and against a Gaussian's rate."""

import time
from pathlib import Path

import numpy as np

import lotr_tn as lt
from benchmarks.measure import report
from lotr_tn import demo
from lotr_tn.coding.bound import gaussian_bits
from lotr_tn.coding.directions import decode_directions
from lotr_tn.decompose.coded import Codable
from lotr_tn.ops.conversion import as_lora

ERRORS = {"full": (0.02, 0.05, 0.1, 0.2, 0.3, 0.5), "smoke": (0.1,)}


def run(size: str) -> None:
    """Shares of the float32 factors, and bytes of these a second, coding and decoding."""
    adapter = lt.load_adapter(Path(demo.__file__).parent / "adapter")
    groups = lt.group_modules(adapter)
    floats = 4 * sum(group.stored for group in groups.values())
    codables = [Codable(as_lora(group.stack)) for group in groups.values()]
    energy = sum(float(one.energies.sum()) for one in codables)
    shapes = [group.shape[1:] for group in groups.values()]
    rows, found = [], []
    for error in ERRORS[size]:
        rule = lt.TotalError(error)
        plain = lt.convert_adapter(adapter, rule, format="auto").bytes_after
        coded = lt.convert_adapter(adapter, rule, format="auto", coding="auto").bytes_after
        least = gaussian_bits(
            [np.concatenate(one.values) for one in codables], shapes, error**2 * energy
        )
        shares = [plain / floats, coded / floats, least / 8 / floats]
        rows.append(
            [f"{error:.0%}", *(f"{share:.3f}" for share in shares), f"{8 * coded / least:.2f}"]
        )
        found.append({"error": error, "numbers": shares[0], "bits": shares[1], "bound": shares[2]})
    step = max(one.largest for one in codables) / 50
    begun = time.perf_counter()
    made = [one.at(step) for one in codables]
    middle = time.perf_counter()
    for found_one, shape in zip(made, shapes, strict=True):
        assert found_one is not None
        decode_directions(found_one[1], shape, sum(found_one[0].ranks))
    ended = time.perf_counter()
    speeds = floats / (middle - begun) / 1e6, floats / (ended - middle) / 1e6
    report(
        "coding",
        "Shares of the demo's float32 factors at a relative error of all updates. Coded at "
        f"{speeds[0]:.0f} MB of these a second, decoded at {speeds[1]:.0f}",
        ["Error", "Numbers", "Bits", "Gaussian rate", "Bits / rate"],
        rows,
        {"rows": found, "megabytes_per_second": {"coding": speeds[0], "decoding": speeds[1]}},
    )
