"""Tensor trains of thin factors against TensorLy's of the dense matrix, and applied to rows."""

import time

import numpy as np
from tensorly import tt_to_tensor
from tensorly.decomposition import tensor_train

import lotr_tn as lt
from benchmarks.measure import report, timed, timed_together
from lotr_tn.decompose import balanced
from lotr_tn.ops.conversion import as_lora

SIZES = {"full": (4096, 16, (1, 32, 4096)), "smoke": (64, 2, (1, 2))}


def run(size: str) -> None:
    """One LoRA at bonds of its own rank, in float64; then rows through the train."""
    side, rank, batches = SIZES[size]
    rng = np.random.default_rng(0)
    up, down = rng.standard_normal((side, rank)), rng.standard_normal((rank, side))
    stack = lt.LoRAStack(up, down, (rank,))
    ours, train = timed(lambda: lt.tensor_train(stack, "balanced", rank), 9)
    legs, dense = balanced(side) * 2, up @ down
    begun = time.perf_counter()
    factors = tensor_train(dense.reshape(legs), [1, *train.ranks, 1])
    theirs = time.perf_counter() - begun
    found = np.asarray(tt_to_tensor(factors)).reshape(side, side)
    peer_error = float(np.linalg.norm(found - dense) / np.linalg.norm(dense))
    error = train.relative_error
    rows = [
        ["lotr_tn tensor_train, with its certificate", ours.text(), f"{error:.6f}"],
        ["TensorLy tensor_train of the dense matrix", f"{theirs:.3f}", f"{peer_error:.6f}"],
        ["ratio", f"{theirs / ours.median:,.0f}x", ""],
    ]
    lora, applied = as_lora(train), {}
    for batch in batches:
        x = rng.standard_normal((batch, side))
        through, halves = timed_together(
            lambda x=x: lt.apply(train, x, layer=0), lambda x=x: (x @ lora.down.T) @ lora.up.T
        )
        applied[batch] = through.median / halves.median
        rows.append(
            [f"apply to {batch} rows, over its LoRA's", through.text(), f"{applied[batch]:.2f}x"]
        )
    report(
        "trains",
        f"A LoRA of rank {rank}, {side}x{side}, to a train of legs {legs}, bonds {train.ranks}",
        ["Way", "Seconds", "Relative error, or ratio"],
        rows,
        {
            "side": side,
            "rank": rank,
            "bonds": train.ranks,
            "seconds": ours.median,
            "peer_seconds": theirs,
            "times_faster": theirs / ours.median,
            "error": error,
            "peer_error": peer_error,
            "apply_over_lora": applied,
        },
    )
