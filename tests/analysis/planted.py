"""Stacks whose structure is known, and dense computations that do not use the package."""

import numpy as np

import lotr_tn as lt


def lora(seed, shape=(4, 13, 11), ranks=(2, 3, 1, 2), decay=0.6):
    """Layers that share nothing, each with singular values that fall off."""
    rng = np.random.default_rng(seed)
    _, m, n = shape
    weights = np.concatenate([decay ** np.arange(rank) for rank in ranks])
    up = rng.standard_normal((m, sum(ranks))) * weights
    return lt.LoRAStack(up, rng.standard_normal((sum(ranks), n)), tuple(ranks))


def shared(seed, shape=(9, 31, 23), pair=(4, 3), rank=3, noise=0.0):
    """All layers write to `pair[0]` directions and read from `pair[1]`."""
    rng = np.random.default_rng(seed)
    layers, m, n = shape
    left, right = rng.standard_normal((m, pair[0])), rng.standard_normal((n, pair[1]))
    up = np.concatenate([left @ rng.standard_normal((pair[0], rank)) for _ in range(layers)], 1)
    down = np.concatenate([rng.standard_normal((rank, pair[1])) @ right.T for _ in range(layers)])
    up += noise * rng.standard_normal(up.shape)
    return lt.LoRAStack(up, down + noise * rng.standard_normal(down.shape), (rank,) * layers)


def one_side(seed, side, shape=(7, 31, 23), rank=2):
    """All layers share one side, and differ in the other."""
    rng = np.random.default_rng(seed)
    layers, m, n = shape
    up = rng.standard_normal((m, layers * rank))
    down = rng.standard_normal((layers * rank, n))
    if side == "out":
        up = np.tile(rng.standard_normal((m, rank)), layers)
    else:
        down = np.tile(rng.standard_normal((rank, n)), (layers, 1))
    return lt.LoRAStack(up, down, (rank,) * layers)


def partly_shared(seed, shape=(6, 29, 19)):
    """In every layer one strong direction that all share, and two weak ones of its own."""
    rng = np.random.default_rng(seed)
    layers, m, n = shape
    left, right = rng.standard_normal((m, 1)), rng.standard_normal((1, n))
    ups = [np.concatenate([3 * left, rng.standard_normal((m, 2))], 1) for _ in range(layers)]
    downs = [np.concatenate([right, 0.3 * rng.standard_normal((2, n))]) for _ in range(layers)]
    return lt.LoRAStack(np.concatenate(ups, 1), np.concatenate(downs), (3,) * layers)


def clustered(seed, sets=((0, 2, 5, 7), (1, 3, 4, 6)), shape=(8, 37, 21), rank=2):
    """The layers of each set share both sides."""
    rng = np.random.default_rng(seed)
    layers, m, n = shape
    ups, downs = [np.empty(0)] * layers, [np.empty(0)] * layers
    for members in sets:
        left, right = rng.standard_normal((m, rank)), rng.standard_normal((rank, n))
        for layer in members:
            ups[layer] = left @ rng.standard_normal((rank, rank))
            downs[layer] = rng.standard_normal((rank, rank)) @ right
    alone = [layer for layer in range(layers) if not any(layer in members for members in sets)]
    for layer in alone:
        ups[layer], downs[layer] = rng.standard_normal((m, rank)), rng.standard_normal((rank, n))
    return lt.LoRAStack(np.concatenate(ups, 1), np.concatenate(downs), (rank,) * layers)


PLANTED = {
    "unshared": lambda seed: lora(seed, (5, 23, 17), (2, 3, 1, 4, 2)),
    "shared": shared,
    "shared with noise": lambda seed: shared(seed, noise=0.05),
    "one output side": lambda seed: one_side(seed, "out"),
    "one input side": lambda seed: one_side(seed, "in"),
    "partly shared": partly_shared,
    "clustered": clustered,
}


def dense_of(stack):
    """(L, m, n) in float64, by a loop over the layers of a LoRA."""
    _, m, n = stack.shape
    found, start = np.zeros((len(stack.ranks), m, n)), 0
    up, down = (np.asarray(x, dtype=np.float64) for x in (stack.up, stack.down))
    for layer, rank in enumerate(stack.ranks):
        found[layer] = up[:, start : start + rank] @ down[start : start + rank]
        start += rank
    return found


def unfoldings(dense):
    """The layers side by side (m, L·n), and one below the other, transposed (n, L·m)."""
    _, m, n = dense.shape
    return dense.transpose(1, 0, 2).reshape(m, -1), dense.transpose(2, 0, 1).reshape(n, -1)


def hosvd_errors(dense, most):
    """(k1 + 1, k2 + 1, L) squared errors of the truncated HOSVD, layer by layer, pair by pair."""
    left, right = unfoldings(dense)
    u, v = (np.linalg.svd(x, full_matrices=False)[0] for x in (left, right))
    errors = np.empty((most[0] + 1, most[1] + 1, len(dense)))
    for r1 in range(most[0] + 1):
        inside = u[:, :r1] @ (u[:, :r1].T @ dense)
        for r2 in range(most[1] + 1):
            lost = dense - inside @ v[:, :r2] @ v[:, :r2].T
            errors[r1, r2] = (lost**2).sum(axis=(1, 2))
    return errors


def tails(values):
    """Squared energy beyond the first 0, 1, … values."""
    return np.array([float((values[k:] ** 2).sum()) for k in range(len(values) + 1)])
