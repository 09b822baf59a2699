"""Trains of cores (B, r, o, n, r'), B the layers or 1: sweeps of QR and SVD, and transfer matrices.

Everything is in float64 and for all layers at once.
"""

import math
from collections.abc import Sequence

import numpy as np
from array_api_compat import device

from lotr_tn._arrays import Array, Namespace, on_host, to_numpy
from lotr_tn.linalg.bases import signs
from lotr_tn.linalg.factor import qr, singular_values, svd

Cores = list[Array]


def absorbed_right(core: Array, x: Array, *, xp: Namespace) -> Array:
    """A core times matrices (B, r', s) on its right bond."""
    b, r, o, n, s = core.shape
    made = xp.reshape(core, (b, r * o * n, s)) @ x
    return xp.reshape(made, (made.shape[0], r, o, n, x.shape[2]))


def absorbed_left(core: Array, x: Array, *, xp: Namespace) -> Array:
    """Matrices (B, s, r) times a core on its left bond."""
    b, r, o, n, s = core.shape
    made = x @ xp.reshape(core, (b, r, o * n * s))
    return xp.reshape(made, (made.shape[0], x.shape[1], o, n, s))


def with_orthonormal_rows(
    cores: Sequence[Array], first: int, last: int | None = None, *, xp: Namespace
) -> Cores:
    """The same train, in which all cores from `first` on have orthonormal rows (r, o·n·r').

    Those behind `last` have them already.
    """
    found = list(cores)
    for k in range(len(found) - 1 if last is None else last, first - 1, -1):
        b, r, o, n, s = found[k].shape
        q, t = qr(xp.reshape(found[k], (b, r, o * n * s)).mT, xp=xp)
        found[k] = xp.reshape(q.mT, (b, q.shape[2], o, n, s))
        found[k - 1] = absorbed_right(found[k - 1], t.mT, xp=xp)
    return found


def split(x: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Orthonormal columns Q, and T, with x = Q T for x (B, p, q): QR, but nothing of a wide x."""
    if x.shape[1] > x.shape[2]:
        return qr(x, xp=xp)
    return xp.eye(x.shape[1], dtype=x.dtype, device=device(x))[None, :, :], x


def with_orthonormal_columns(
    cores: Sequence[Array], last: int, *, xp: Namespace
) -> tuple[Cores, list[Array]]:
    """The same train, in which the cores before `last` have orthonormal columns (r·o·n, r').

    Also what went over each bond, (B, k, r'): where the cores behind have orthonormal rows, it has
    the singular values of the unfolding there.
    """
    found, passed = list(cores), []
    for k in range(last):
        b, r, o, n, s = found[k].shape
        q, t = qr(xp.reshape(found[k], (b, r * o * n, s)), xp=xp)
        found[k] = xp.reshape(q, (b, r, o, n, q.shape[2]))
        found[k + 1] = absorbed_left(found[k + 1], t, xp=xp)
        passed.append(t)
    return found, passed


def bond_values(passed: Sequence[Array], *, xp: Namespace) -> list[np.ndarray]:
    """(B, k) singular values of every bond, descending, on the host."""
    return [
        to_numpy(singular_values(x, xp=xp)) if 0 not in x.shape else np.zeros((x.shape[0], 0))
        for x in passed
    ]


def cut(cores: Sequence[Array], ranks: Sequence[int], floors: Array, *, xp: Namespace) -> Cores:
    """A train with orthonormal columns before its last core, cut to these bonds by SVD.

    Cores but the first come out with orthonormal rows, the entry of largest size in each positive;
    rows of singular values below the floors (B,) of their layers are zero.
    """
    found = list(cores)
    for k in range(len(found) - 1, 0, -1):
        b, r, o, n, s = found[k].shape
        rank = min(ranks[k - 1], r, o * n * s)
        if rank == 0:
            left, right = (xp.zeros_like(found[k])[:, :, 0, 0, :0], found[k][:, :0, ...])
        else:
            u, values, vt = svd(xp.reshape(found[k], (b, r, o * n * s)), xp=xp)
            sign = signs(vt.mT, xp=xp)
            sign = xp.where(values > floors[:, None], sign, xp.zeros_like(sign))
            left = (u * (values * sign)[:, None, :])[:, :, :rank]
            right = xp.reshape((vt * sign[:, :, None])[:, :rank, :], (b, rank, o, n, s))
        found[k], found[k - 1] = right, absorbed_right(found[k - 1], left, xp=xp)
    return found


def transfer(a: Sequence[Array], b: Sequence[Array], *, xp: Namespace) -> Array:
    """(B,) inner products of the layers of two trains of the same legs.

    Cost: 2·Σ o_k·n_k·(r_{k-1}·s_{k-1}·r_k + s_{k-1}·r_k·s_k) flops a layer, for bonds r and s.
    """
    found = None
    for x, y in zip(a, b, strict=True):
        p, r, o, n, s = x.shape
        q, t, _, _, u = y.shape
        if found is None:
            found = xp.ones((1, r, t), dtype=x.dtype, device=device(x))
        # (B, t, r) @ (B, r, o·n·s), then over t, o and n with the other core
        inside = found.mT @ xp.reshape(x, (p, r, o * n * s))
        inside = xp.reshape(inside, (inside.shape[0], t * o * n, s))
        found = inside.mT @ xp.reshape(y, (q, t * o * n, u))
    assert found is not None
    return found[:, 0, 0]


def sizes_of_terms(cores: Sequence[Array], *, xp: Namespace) -> Array:
    """(B,) the root of the sum of squares of all terms of each layer, as if none cancelled."""
    found = None
    for core in cores:
        b, r, o, n, s = core.shape
        squares = xp.sum(xp.reshape(core**2, (b, r, o * n, s)), axis=2)
        found = squares if found is None else found @ squares
    assert found is not None
    return xp.sqrt(found[:, 0, 0])


def chained(cores: Sequence[Array], *, xp: Namespace) -> Array:
    """The product of neighbouring cores (B, r, Π o·n, r'): digits o, n of each core in turn."""
    first, *others = cores
    b, r, o, n, s = first.shape
    found = xp.reshape(first, (b, r, o * n, s))
    for core in others:
        b, left, o, n, s = core.shape
        r, digits = found.shape[1:3]
        flat = xp.reshape(found, (found.shape[0], r * digits, left))
        made = flat @ xp.reshape(core, (b, left, o * n * s))
        found = xp.reshape(made, (made.shape[0], r, digits * o * n, s))
    return found


def scaled_to_one(cores: Sequence[Array], *, xp: Namespace) -> tuple[Cores, int]:
    """Cores times exact powers of two, so that their largest entries are about 1; and the exponent.

    The train is 2^exponent times the one that is returned. On devices nothing is scaled.
    """
    if not all(on_host(core) for core in cores):
        return list(cores), 0
    found, total = [], 0
    for core in cores:
        largest = float(np.abs(to_numpy(core)).max(initial=0.0))
        exponent = math.frexp(largest)[1] if math.isfinite(largest) else 0
        half = exponent // 2
        found.append(core * 2.0**-half * 2.0 ** (half - exponent))
        total += exponent
    return found, total
