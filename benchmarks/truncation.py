"""Cutting the rank of one update, against a dense SVD of the product."""

import numpy as np

import lotr_tn as lt
from benchmarks.measure import report, timed

SIZES = {"full": (2048, 64, 32), "smoke": (60, 6, 3)}


def run(size: str) -> None:
    """One layer in float32: factors in, factors out; singular values against the dense ones."""
    import torch

    side, rank, kept = SIZES[size]
    rng = np.random.default_rng(0)
    up = rng.standard_normal((side, rank), dtype=np.float32)
    down = rng.standard_normal((rank, side), dtype=np.float32)
    stack = lt.LoRAStack(up, down, (rank,))
    a, b = torch.from_numpy(up), torch.from_numpy(down)
    ours, cut = timed(lambda: lt.round(stack, kept), 9)
    # as the tools do it: the product, then all its singular vectors
    peer, found = timed(lambda: torch.linalg.svd(a @ b, full_matrices=False), 1)
    exact = np.linalg.svd((up.astype(np.float64) @ down), compute_uv=False)[:kept]
    values = np.asarray(lt.layer_singular_values(cut)[0])[:kept]
    gap = float(np.max(np.abs(values - exact) / exact[0]))
    peer_gap = float(np.max(np.abs(found[1].numpy()[:kept] - exact) / exact[0]))
    report(
        "truncation",
        f"Rank {rank} to {kept} of one {side}x{side} update, float32. Off: singular values against "
        "those of the dense product in float64",
        ["Way", "Seconds", "Off"],
        [
            ["lotr_tn round, with its certificate", ours.text(), f"{gap:.1e}"],
            ["torch.linalg.svd of the product", f"{peer.median:.3f}", f"{peer_gap:.1e}"],
            ["ratio", f"{peer.median / ours.median:,.0f}x", ""],
        ],
        {
            "side": side,
            "rank": rank,
            "kept": kept,
            "seconds": ours.median,
            "peer_seconds": peer.median,
            "times_faster": peer.median / ours.median,
            "off": gap,
            "peer_off": peer_gap,
        },
    )
