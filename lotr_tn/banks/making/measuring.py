"""How far stored layers are from the originals, which pass by once more in blocks.

A stack between growing bases knows each layer only by the directions that there were when it
passed; so what is stored is compared with what was read, and not with that.
"""

from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn.banks.making.stacks import FleetStack
from lotr_tn.decompose.streaming import Bases, project
from lotr_tn.linalg.factor import qr
from lotr_tn.ops.layers import each_core
from lotr_tn.ops.moving import astype


def distances_from(fleet: FleetStack, stored: Any) -> np.ndarray:
    """(L,) ‖ΔW − ΔŴ‖ of each layer from the original, for a Tucker-2 `stored`, in float64.

    What lies outside of the stored bases and what differs inside are at right angles.
    Cost: every factor is read once; 4·(m + n)·k·R flops for k directions and R rank terms.
    """
    left, turn_left = qr(stored.u, xp=xp)
    right, turn_right = qr(stored.v, xp=xp)
    cores = each_core(stored, xp=xp)
    bases, found = Bases(left, right), np.zeros(len(fleet.layers))
    for rows, block, scales in fleet.blocks():
        inside = project(bases, astype(block, "float64"))
        starts = np.concatenate([[0], np.cumsum(inside.ranks)])
        for at, row in enumerate(range(rows.start, rows.stop)):
            part = slice(int(starts[at]), int(starts[at + 1]))
            whole = scales[at] * inside.up[:, part] @ inside.down[part]
            differ = whole - turn_left @ next(cores) @ turn_right.T
            found[row] = float((differ**2).sum()) + scales[at] ** 2 * float(inside.missed[at])
    return np.sqrt(found)
