"""Merging on cores: one orthonormal basis for all updates, and TIES and DARE in it."""

from collections.abc import Sequence

import array_api_compat
import numpy as np

from lotr_tn._arrays import Array, Namespace, to_numpy, zeros
from lotr_tn.decompose.assemble import fix_signs
from lotr_tn.decompose.core_space import Side, core_space
from lotr_tn.decompose.search import resolution
from lotr_tn.formats import Stack, Tucker2
from lotr_tn.linalg.bases import signs
from lotr_tn.ops.arithmetic import scale
from lotr_tn.ops.moving import astype

ARITHMETIC = 2.0**-43
"""Share of the norm that float64 factors in another gauge may differ by: 1e-13. What is smaller
must neither elect a sign nor be counted."""


def in_common_basis(
    stack: Stack, weights: Sequence[float], wide: bool, *, xp: Namespace
) -> tuple[Tucker2, float]:
    """The weighted updates as cores in their HOSVD basis, and what is rounding in these."""
    space = core_space(scale(astype(stack, "float64"), weights))
    noise = float(space.norm) * max(resolution(wide), ARITHMETIC)
    (u, a), (v, b) = (_axes(side, noise, xp=xp) for side in (space.left, space.right))
    cores = [a[:, part] @ xp.matrix_transpose(b[:, part]) for part in space.slices]
    return Tucker2(u, xp.stack(cores), v), noise


def _axes(side: Side, noise: float, *, xp: Namespace) -> tuple[Array, Array]:
    """The singular directions (m, k) of one side, and its factor in them (k, R)."""
    count, size = int((to_numpy(side.sigma) > noise).sum()), int(side.sigma.shape[0])
    axes = xp.eye(size, count, dtype=xp.float64, device=array_api_compat.device(side.sigma))
    if count == 0:
        rows = side.basis if side.basis is not None else side.mixing
        return zeros((int(rows.shape[0]), 0), rows, xp=xp), side.coordinates[:0, :]
    lifted = side.lift(axes, xp=xp)
    return fix_signs(lifted, xp=xp), side.coordinates[:count, :] * signs(lifted, xp=xp)[:, None]


def merge_cores(
    cores: Array,
    noise: float,
    method: str,
    density: float,
    entropy: Sequence[int],
    *,
    xp: Namespace,
) -> Array:
    """The one core (k1, k2) of weighted cores (L, k1, k2) by TIES or DARE."""
    if 0 in cores.shape:
        return xp.sum(cores, axis=0)
    nothing = xp.zeros_like(cores)
    cores = xp.where(xp.abs(cores) <= noise, nothing, cores)
    if method != "ties":
        drawn = np.random.default_rng(entropy).random(tuple(cores.shape)) < density
        kept = xp.asarray(drawn, device=array_api_compat.device(cores))
        cores = xp.where(kept, cores / density, nothing)
        if method == "dare":
            return xp.sum(cores, axis=0)
    elif density < 1:
        cores = xp.stack([_trimmed(cores[i, ...], density, xp=xp) for i in range(cores.shape[0])])
    total = xp.sum(cores, axis=0)
    sign = xp.where(xp.abs(total) <= noise, xp.zeros_like(total), xp.sign(total))
    agreeing = cores * sign[None, ...] > 0
    count = xp.sum(xp.astype(agreeing, xp.float64), axis=0)
    kept = xp.sum(xp.where(agreeing, cores, nothing), axis=0)
    merged = kept / xp.where(count > 0, count, xp.ones_like(count))
    return xp.where(xp.isfinite(total), merged, total)


def _trimmed(core: Array, density: float, *, xp: Namespace) -> Array:
    """A core (k1, k2) with only its entries of largest magnitude; of equal ones, the first."""
    size = core.shape[0] * core.shape[1]
    flat = xp.reshape(core, (size,))
    count = max(1, int(density * size))
    places = xp.argsort(xp.argsort(-xp.abs(flat), stable=True), stable=True)
    kept = xp.where(places < count, flat, xp.zeros_like(flat))
    return xp.reshape(kept, core.shape)
