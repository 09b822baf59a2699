"""A group whose core space is large: the whole of it, and subspaces found at random."""

import lotr_tn as lt
from benchmarks.measure import partly_shared, report, timed

SIZES = {"full": ((32, 4096, 4096), 64, 128), "smoke": ((6, 96, 80), 8, 4)}


def run(size: str) -> None:
    """HOOI of a stack of high-rank LoRA updates in float32 on NumPy, by both methods."""
    shape, rank, target = SIZES[size]
    rows, record = [], {}
    for kind, shared in (("partly shared", target), ("no structure", 0)):
        up, down = partly_shared(shape, rank, shared, noise=0.3)
        stack = lt.LoRAStack(up, down, (rank,) * shape[0])
        for method in ("randomised", "exact"):
            timing, found = timed(
                lambda m=method, s=stack: lt.hooi(s, target, method=m),
                3 if method == "randomised" else 1,
            )
            certificate = found.certificate
            record[f"{kind}, {method}"] = {
                "seconds": timing.median,
                "relative_error": certificate.relative_error,
                "lower_bound": certificate.lower_bound,
                "sweeps": certificate.sweeps,
            }
            rows.append(
                [
                    f"{kind}, {method}",
                    f"{timing.median:.2f}",
                    str(certificate.sweeps),
                    f"{certificate.relative_error:.4f}",
                    f"{certificate.lower_bound:.4f}",
                ]
            )
    layers, m, n = shape
    report(
        "large-group",
        f"HOOI of {layers} x {m}x{n}, LoRA rank {rank} (R = {layers * rank}), r1 = r2 = {target}, "
        "float32",
        ["Data, method", "Seconds", "Sweeps", "Error", "Lower bound"],
        rows,
        {"shape": shape, "rank": rank, "ranks": [target, target], "data": record},
    )
