"""Core spaces of less than full size: subspaces found at random, or layer after layer.

Full core space costs the third power of R = Σ r_l. When only r ≪ R directions are wanted, a basis
of a few more than r columns holds nearly all that matters. What it does not hold is measured, not
estimated, so errors and bounds stay true: the tail of the singular values inside the basis can
only be below the true tail, and together with the missed part it can only be above.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import array_api_compat
import numpy as np

from lotr_tn._arrays import Array, Namespace, float64, namespace_of
from lotr_tn.decompose.core_space import CoreSpace, layer_weights, space_of, unweigh
from lotr_tn.decompose.reduction import Reduction
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.factor import qr, svd
from lotr_tn.linalg.gram import cross_gram, wide_product
from lotr_tn.ops.frame import outside
from lotr_tn.ops.norms import frobenius, root_sum_squares


def range_finder(
    start: Array, multiply: Callable[[Array], Array], power_iterations: int, *, xp: Namespace
) -> Array:
    """An orthonormal basis that holds nearly all of the range of a matrix A.

    Args:
        start: (m, k) float64, A times random numbers.
        multiply: Q (m, k) to A Aᵀ Q.
        power_iterations: how often A Aᵀ is applied; each divides the share of a direction of
            singular value σ by about (σ / σ_k)² more.
        xp: the array namespace.

    Accuracy: the expected squared error is at most (1 + r / (k − r − 1)) times the tail of rank r
    with no power iteration, and close to the tail itself after two.

    Source: Halko, Martinsson and Tropp (2011), algorithm 4.4 and theorem 10.5.
    """
    basis = qr(start, xp=xp)[0]
    for _ in range(power_iterations):
        basis = qr(multiply(basis), xp=xp)[0]
    return basis


def random_normal(shape: tuple[int, int], seed: int, like: Array, *, xp: Namespace) -> Array:
    """Float64 normal numbers on the device of `like`, the same for every library."""
    numbers = np.random.default_rng(seed).standard_normal(shape)
    return xp.asarray(numbers, device=array_api_compat.device(like))


def randomised_space(stack: LoRAStack, size: int, *, power_iterations: int, seed: int) -> CoreSpace:
    """A core space of `size` directions a side, by randomised range finders on both unfoldings.

    Cost: 4·(m + n)·R·size flops for each power iteration, and half as many to begin with;
    O((m + n)·size) float64 memory.
    """
    xp = namespace_of(up=stack.up, down=stack.down)
    x, y = stack.up, xp.matrix_transpose(stack.down)
    x_weights, y_weights = (layer_weights(side, stack.slices, xp=xp) for side in (x, y))

    def basis(side: Array, weights: Sequence[Array], seed: int) -> Array:
        k = min(size, side.shape[0], side.shape[1])
        numbers = random_normal((sum(int(t.shape[0]) for t in weights), k), seed, side, xp=xp)
        return range_finder(
            wide_product(side, unweigh(numbers, weights, xp=xp), xp=xp),
            lambda q: wide_product(
                side, _gram_times(weights, stack.slices, cross_gram(side, q, xp=xp), xp=xp), xp=xp
            ),
            power_iterations,
            xp=xp,
        )

    bases = basis(x, y_weights, seed), basis(y, x_weights, seed + 1)
    return _space_in(stack, bases, x_weights, y_weights, xp=xp)


def blocked_space(stack: LoRAStack, size: int) -> CoreSpace:
    """A core space of `size` directions a side, by one pass over the layers.

    The basis, weighed by its singular values, and one layer's factor are brought together, and the
    leading `size` directions kept: nothing is drawn at random, and no more than one layer's
    factors is in float64 beside the bases. Without loss where size reaches R.

    Cost: 4·(m + n)·(size + r_l)² flops a layer; O((m + n)·(size + r_l)) float64 memory.
    Source: Iwen and Ong (2016), incremental SVD of partitioned columns.
    """
    xp = namespace_of(up=stack.up, down=stack.down)
    x, y = stack.up, xp.matrix_transpose(stack.down)
    x_weights, y_weights = (layer_weights(side, stack.slices, xp=xp) for side in (x, y))
    bases = tuple(
        _merged(side, weights, stack.slices, size, xp=xp)
        for side, weights in ((x, y_weights), (y, x_weights))
    )
    return _space_in(stack, (bases[0], bases[1]), x_weights, y_weights, xp=xp)


def _merged(
    x: Array, weights: Sequence[Array], slices: Sequence[slice], size: int, *, xp: Namespace
) -> Array:
    """The leading directions of [x_1 T_1ᵀ, …, x_L T_Lᵀ], merged layer after layer."""
    held = None  # basis times singular values
    basis = None
    for part, weight in zip(slices, weights, strict=True):
        own = float64(x[:, part], xp=xp) @ xp.matrix_transpose(weight)
        together = own if held is None else xp.concat([held, own], axis=1)
        q, r = qr(together, xp=xp)
        u, s, _ = svd(r, xp=xp)
        kept = min(size, int(s.shape[0]))
        basis = q @ u[:, :kept]
        held = basis * s[None, :kept]
    assert basis is not None
    return basis


def _space_in(
    stack: LoRAStack,
    bases: tuple[Array, Array],
    x_weights: Sequence[Array],
    y_weights: Sequence[Array],
    *,
    xp: Namespace,
) -> CoreSpace:
    """The core space of the stack projected on both bases, and what lies outside of them."""
    x, y = stack.up, xp.matrix_transpose(stack.down)
    a, b = cross_gram(bases[0], x, xp=xp), cross_gram(bases[1], y, xp=xp)
    small = LoRAStack(a, xp.matrix_transpose(b), stack.ranks)
    missed = [
        root_sum_squares(
            xp.stack([size for size, _ in outside(side, basis, inside, stack.slices, t, xp=xp)])
        )
        for side, basis, inside, t in ((x, bases[0], a, y_weights), (y, bases[1], b, x_weights))
    ]
    norms = [
        frobenius(t @ xp.matrix_transpose(s), xp=xp)
        for t, s in zip(x_weights, y_weights, strict=True)
    ]
    space = space_of(Reduction(small, *bases))
    return replace(space, layer_norms=xp.stack(norms), missed=(missed[0], missed[1]))


def _gram_times(
    weights: Sequence[Array], slices: Sequence[slice], z: Array, *, xp: Namespace
) -> Array:
    """Stack T_lᵀ T_l z_l, where z (R, k) is cut by the layers."""
    parts = [
        xp.matrix_transpose(t) @ (t @ z[part, :]) for t, part in zip(weights, slices, strict=True)
    ]
    return xp.concat(parts, axis=0)
