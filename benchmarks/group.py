"""One group of a large adapter, against the two matrix products that no method can avoid."""

import lotr_tn as lt
from benchmarks.measure import partly_shared, peak_bytes, report, timed

SIZES = {"full": ((32, 4096, 4096), 16, 128), "smoke": ((4, 96, 80), 4, 6)}


def run(size: str) -> None:
    """HOOI to convergence of a stack of LoRA updates in float32 on NumPy."""
    shape, rank, target = SIZES[size]
    rows, record = [], {}
    for kind, shared in (("partly shared", target), ("no structure", 0)):
        up, down = partly_shared(shape, rank, shared, noise=0.3)
        stack = lt.LoRAStack(up, down, (rank,) * shape[0])
        others = up.copy(), down.copy()  # BLAS takes a shortcut for a matrix with itself
        floor, _ = timed(lambda: (up.T @ others[0], down @ others[1].T), 9)  # noqa: B023
        ours, result = timed(lambda: lt.hooi(stack, target), 5)  # noqa: B023
        peak = peak_bytes(lambda: lt.hooi(stack, target))  # noqa: B023
        factors = up.nbytes + down.nbytes
        figures = {
            "seconds": ours.median,
            "floor_seconds": floor.median,
            "over_floor": ours.median / floor.median,
            "peak_over_factors": (peak + factors) / factors,
            "relative_error": result.certificate.relative_error,
            "lower_bound": result.certificate.lower_bound,
            "sweeps": result.certificate.sweeps,
        }
        record[kind] = figures
        rows.append(
            [
                kind,
                ours.text(),
                f"{floor.median:.3f}",
                f"{figures['over_floor']:.1f}x",
                f"{figures['peak_over_factors']:.2f}x",
                str(figures["sweeps"]),
                f"{figures['relative_error']:.4f}",
            ]
        )
    layers, m, n = shape
    report(
        "group",
        f"HOOI of {layers} x {m}x{n}, LoRA rank {rank}, r1 = r2 = {target}, float32; peak "
        "memory as a share of the factors, input included",
        ["Data", "Seconds", "2 GEMMs", "Ratio", "Peak", "Sweeps", "Error"],
        rows,
        {"shape": shape, "rank": rank, "ranks": [target, target], "data": record},
    )
