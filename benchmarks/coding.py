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
LAYERS = {"full": (8, 2048, 2048, 16), "smoke": (2, 40, 30, 2)}
"""How many layers are coded for their speed, m, n, and their rank."""


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
    speeds = _speeds(*LAYERS[size])
    report(
        "coding",
        "Shares of the demo's float32 factors at a relative error of all updates. Of {} layers of "
        "{} x {} and rank {}, one core codes {:.0f} MB of such factors a second, their error "
        "measured, and decodes {:.0f}".format(*LAYERS[size], *speeds),
        ["Error", "Numbers", "Bits", "Gaussian rate", "Bits / rate"],
        rows,
        {"rows": found, "megabytes_per_second": {"coding": speeds[0], "decoding": speeds[1]}},
    )


def _speeds(layers: int, m: int, n: int, rank: int) -> tuple[float, float]:
    """Megabytes of float32 factors that are coded and decoded in a second of a processor's time."""
    rng = np.random.default_rng(0)
    up = rng.standard_normal((m, rank * layers)) * np.tile(0.8 ** np.arange(rank), layers)
    down = rng.standard_normal((rank * layers, n))
    one = Codable(lt.LoRAStack(up.astype("f4"), down.astype("f4"), (rank,) * layers))
    begun = time.process_time()
    found = one.at(one.largest / 50)
    middle = time.process_time()
    assert found is not None
    decode_directions(found[1], (m, n), sum(found[0].ranks))
    ended = time.process_time()
    size = 4 * layers * rank * (m + n) / 1e6
    return size / (middle - begun), size / (ended - middle)
