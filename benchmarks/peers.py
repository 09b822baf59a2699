"""The same decomposition by TensorLy, on the dense tensor that it needs, in the same run."""

import time
import warnings

import numpy as np
from tensorly.decomposition import partial_tucker

import lotr_tn as lt
from benchmarks.measure import partly_shared, report, timed

SIZES = {"full": ((16, 1024, 1024), 8, 64, 3), "smoke": ((4, 40, 32), 4, 6, 3)}


def run(size: str) -> None:
    """HOOI with equal ranks and sweeps; the error of both is measured on the dense difference."""
    shape, rank, target, sweeps = SIZES[size]
    up, down = partly_shared(shape, rank, shared=target, noise=0.3)
    stack = lt.LoRAStack(up, down, (rank,) * shape[0])
    ours, result = timed(lambda: lt.hooi(stack, target, tolerance=0, max_sweeps=sweeps), 5)
    dense = lt.to_dense(stack)
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (core, (u, v)), _ = partial_tucker(
            dense, [target, target], modes=[1, 2], n_iter_max=sweeps, tol=0
        )
    theirs = time.perf_counter() - begun
    norm = float(np.linalg.norm(dense.astype(np.float64)))
    errors = [
        float(np.linalg.norm(dense.astype(np.float64) - lt.to_dense(t).astype(np.float64))) / norm
        for t in (result, lt.Tucker2(u, core, v))
    ]
    layers, m, n = shape
    report(
        "peers",
        f"Tucker-2 of {layers} x {m}x{n}, LoRA rank {rank}, ranks {target}, {sweeps} sweeps",
        ["Tool", "Seconds", "Relative error"],
        [
            ["lotr_tn hooi", ours.text(), f"{errors[0]:.8f}"],
            ["TensorLy partial_tucker", f"{theirs:.3f}", f"{errors[1]:.8f}"],
            [
                "ratio, difference",
                f"{theirs / ours.median:.0f}x",
                f"{abs(errors[0] - errors[1]):.1e}",
            ],
        ],
        {
            "shape": shape,
            "ranks": [target, target],
            "sweeps": sweeps,
            "seconds": ours.median,
            "peer_seconds": theirs,
            "times_faster": theirs / ours.median,
            "error": errors[0],
            "peer_error": errors[1],
        },
    )
