"""The exact error of every truncation of an HOSVD basis, at once."""

from lotr_tn._arrays import Array, Namespace, zeros


def lost_energy_surface(energies: Array, *, xp: Namespace) -> Array:
    """Squared error of keeping the leading r1 and r2 directions, for every pair (r1, r2).

    `energies` (k1, k2) are squared core entries in the HOSVD basis, summed over the layers. Entry
    (r1, r2) of (k1 + 1, k2 + 1) is the sum of those with row ≥ r1 or column ≥ r2: of non-negative
    terms, so small errors keep full relative accuracy, unlike one minus the kept energy.
    """
    right_of = _tail_sums(energies, axis=1, xp=xp)  # (k1, k2 + 1)
    below = _tail_sums(xp.sum(energies, axis=1), axis=0, xp=xp)  # (k1 + 1,)
    none = zeros((1, right_of.shape[1]), energies, xp=xp)
    kept_rows_lost_columns = xp.concat([none, xp.cumulative_sum(right_of, axis=0)], axis=0)
    return below[:, None] + kept_rows_lost_columns


def _tail_sums(x: Array, *, axis: int, xp: Namespace) -> Array:
    """Sums over all entries from each position to the end, with a final 0 appended."""
    tails = xp.flip(xp.cumulative_sum(xp.flip(x, axis=axis), axis=axis), axis=axis)
    end = zeros((1,) if x.ndim == 1 else (x.shape[0], 1), x, xp=xp)
    return xp.concat([tails, end], axis=axis)
