"""Core spaces of less than full size: subspaces found at random, or layer after layer.

When only r ≪ R = Σ r_l directions are wanted, a basis of a few more columns holds nearly all that
matters. What it misses is measured, so bounds stay true: the tail of the singular values inside can
only be below the true tail, and together with the missed part only above.
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

    `multiply` takes Q (m, k) to A Aᵀ Q: each time divides the share of a direction of singular
    value σ by about (σ / σ_k)² more. The expected squared error is at most (1 + r / (k − r − 1))
    times the tail of rank r with no power iteration, and close to the tail itself after two.
    Source: Halko, Martinsson and Tropp (2011), algorithm 4.4 and theorem 10.5.
    """
    basis = qr(start, xp=xp)[0]
    for _ in range(power_iterations):
        basis = qr(multiply(basis), xp=xp)[0]
    return basis


def randomised_space(stack: LoRAStack, size: int, *, power_iterations: int, seed: int) -> CoreSpace:
    """A core space of `size` directions a side, by randomised range finders on both unfoldings."""

    def basis(x: Array, weights: Sequence[Array], side: int, xp: Namespace) -> Array:
        shape = sum(int(t.shape[0]) for t in weights), min(size, *x.shape)
        numbers = xp.asarray(  # the same for every library
            np.random.default_rng(seed + side).standard_normal(shape),
            device=array_api_compat.device(x),
        )

        def multiply(q: Array) -> Array:
            z = cross_gram(x, q, xp=xp)
            seen = [t @ z[part, :] for t, part in zip(weights, stack.slices, strict=True)]
            return wide_product(x, unweigh(xp.concat(seen, axis=0), weights, xp=xp), xp=xp)

        start = wide_product(x, unweigh(numbers, weights, xp=xp), xp=xp)
        return range_finder(start, multiply, power_iterations, xp=xp)

    return _space_in(stack, basis)


def blocked_space(stack: LoRAStack, size: int) -> CoreSpace:
    """A core space of `size` directions a side, by one pass over the layers.

    The basis, weighed by its singular values, and one layer's factor are brought together, and the
    leading `size` directions kept. Without loss where size reaches R.
    Source: Iwen and Ong (2016), incremental SVD of partitioned columns.
    """

    def basis(x: Array, weights: Sequence[Array], _: int, xp: Namespace) -> Array:
        return _merged(x, weights, stack.slices, size, xp=xp)

    return _space_in(stack, basis)


def _merged(
    x: Array, weights: Sequence[Array], slices: Sequence[slice], size: int, *, xp: Namespace
) -> Array:
    """The leading directions of [x_1 T_1ᵀ, …, x_L T_Lᵀ], merged layer after layer."""
    basis = held = None  # held: basis times singular values
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
    stack: LoRAStack, basis: Callable[[Array, Sequence[Array], int, Namespace], Array]
) -> CoreSpace:
    """The core space of the stack projected on bases of both sides, and what lies outside."""
    # `basis` is of [x_1 T_1ᵀ, …, x_L T_Lᵀ], for a factor x, the T_l, and the side, 0 or 1
    xp = namespace_of(up=stack.up, down=stack.down)
    factors = stack.up, xp.matrix_transpose(stack.down)
    weights = [layer_weights(x, stack.slices, xp=xp) for x in factors]
    bases = [basis(x, weights[1 - side], side, xp) for side, x in enumerate(factors)]
    a, b = inside = [cross_gram(q, x, xp=xp) for q, x in zip(bases, factors, strict=True)]
    missed = []
    for x, q, z, others in zip(factors, bases, inside, weights[::-1], strict=True):
        sizes = [size for size, _ in outside(x, q, z, stack.slices, others, xp=xp)]
        missed.append(root_sum_squares(xp.stack(sizes)))
    norms = [frobenius(t @ xp.matrix_transpose(s), xp=xp) for t, s in zip(*weights, strict=True)]
    space = space_of(Reduction(LoRAStack(a, xp.matrix_transpose(b), stack.ranks), *bases))
    return replace(space, layer_norms=xp.stack(norms), missed=(missed[0], missed[1]))
