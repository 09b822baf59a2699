"""CP by sweeps in core space, and by TensorLy on a dense tensor of a size where that ends."""

import time
import warnings

import numpy as np
from tensorly.decomposition import parafac

import lotr_tn as lt
from benchmarks.measure import partly_shared, report, timed, timed_together

SIZES = {
    "full": ((32, 4096, 4096), (32, 1024, 1024), 16, 64, 50),
    "smoke": ((4, 96, 80), (4, 24, 20), 4, 6, 10),
}


def run(size: str) -> None:
    """LoRA stacks in float32 on NumPy; both errors are measured on the dense difference."""
    large, small, rank, terms, iterations = SIZES[size]
    stack = _stack(large, rank)
    whole, found = timed(lambda: lt.cp(stack, terms), 3)
    less = _stack(small, rank)
    ours, result = timed(lambda: lt.cp(less, terms), 3)
    dense = lt.to_dense(less).astype(np.float64)
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights, (w, a, b) = parafac(
            lt.to_dense(less), terms, init="svd", n_iter_max=iterations, tol=1e-6
        )
    theirs = time.perf_counter() - begun
    peer = lt.to_dense(lt.CP(a, w * weights, b)).astype(np.float64)
    norm = float(np.linalg.norm(dense))
    errors = [
        float(np.linalg.norm(dense - x)) / norm
        for x in (lt.to_dense(result).astype(np.float64), peer)
    ]
    known = found.certificate
    assert known is not None
    rows = [
        ["lotr_tn cp", _size(large), whole.text(), f"{known.relative_error:.4f}"],
        ["lotr_tn cp", _size(small), ours.text(), f"{errors[0]:.4f}"],
        ["TensorLy parafac", _size(small), f"{theirs:.3f}", f"{errors[1]:.4f}"],
    ]
    applying = _applying(found, large[2])
    report(
        "cp",
        f"CP of rank {terms} of LoRAs of rank {rank}, float32. TensorLy: SVD start, at most "
        f"{iterations} iterations, {theirs / ours.median:,.1f} times the seconds. `apply` of one "
        "layer, by batch, takes so many times its three products by hand: "
        + ", ".join(f"{rows}: {share:.2f}" for rows, share in applying.items()),
        ["Tool", "Layers", "Seconds", "Relative error"],
        rows,
        {
            "shape": large,
            "peer_shape": small,
            "rank": rank,
            "terms": terms,
            "seconds": whole.median,
            "seconds_at_peer_shape": ours.median,
            "peer_seconds": theirs,
            "times_faster": theirs / ours.median,
            "error": errors[0],
            "peer_error": errors[1],
            "apply_over_by_hand": applying,
        },
    )


def _applying(stack: lt.CP, n: int) -> dict[int, float]:
    """How long `apply` of one layer takes beside its three products, by the rows of the batch."""
    rng, found = np.random.default_rng(0), {}
    a, w, b = stack.a, stack.weights[3, :], stack.b
    for rows in (1, 32, 4096):
        x = rng.standard_normal((rows, n), dtype=np.float32)
        ours, hand = timed_together(
            lambda x=x: lt.apply(stack, x, layer=3), lambda x=x: ((x @ b) * w) @ a.T
        )
        found[rows] = ours.median / hand.median
    return found


def _stack(shape: tuple[int, int, int], rank: int) -> lt.LoRAStack:
    up, down = partly_shared(shape, rank, shared=2 * rank, noise=0.3)
    return lt.LoRAStack(up, down, (rank,) * shape[0])


def _size(shape: tuple[int, int, int]) -> str:
    layers, m, n = shape
    return f"{layers} x {m}x{n}"
