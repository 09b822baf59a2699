"""How far stored layers are from the originals, which pass by once more in blocks.

A stack between growing bases knows each layer only by the directions that there were when it
passed. What later directions took of it would be missed; so what is stored is compared with what
was read, and not with that.
"""

from collections.abc import Callable

import numpy as np

from lotr_tn.banks.making.stacks import FleetStack
from lotr_tn.decompose.streaming import Bases, project
from lotr_tn.formats import LowRankTucker2, Tucker2
from lotr_tn.ops.moving import astype

__all__ = ["distances_from"]


def distances_from(fleet: FleetStack, stored: Tucker2 | LowRankTucker2) -> np.ndarray:
    """(L,) ‖ΔW − ΔŴ‖ of each layer from the original, in float64.

    What lies outside of the stored bases and what differs inside are at right angles.

    Cost: every factor is read once; 4·(m + n)·k·R flops for stored bases of k directions and R rank
    terms, and O(k³) a layer.
    """
    left, turn_left = np.linalg.qr(stored.u.astype(np.float64))
    right, turn_right = np.linalg.qr(stored.v.astype(np.float64))
    core = _cores(stored)
    bases, found = Bases(left, right), np.zeros(len(fleet.layers))
    for rows, block, scales in fleet.blocks():
        inside = project(bases, astype(block, "float64"))
        starts = np.concatenate([[0], np.cumsum(inside.ranks)])
        for at, row in enumerate(range(rows.start, rows.stop)):
            part = slice(int(starts[at]), int(starts[at + 1]))
            whole = scales[at] * inside.up[:, part] @ inside.down[part]
            differ = whole - turn_left @ core(row) @ turn_right.T
            found[row] = float((differ**2).sum()) + scales[at] ** 2 * float(inside.missed[at])
    return np.sqrt(found)


def _cores(stored: Tucker2 | LowRankTucker2) -> Callable[[int], np.ndarray]:
    """What gives the core (k1, k2) of a layer."""
    if isinstance(stored, Tucker2):
        cores = stored.core
        return lambda row: cores[row].astype(np.float64)
    up, down, slices = stored.up, stored.down, stored.slices  # found once for all layers

    def core(row: int) -> np.ndarray:
        mine = slices[row]
        return up[:, mine].astype(np.float64) @ down[mine].astype(np.float64)

    return core
