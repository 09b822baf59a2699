"""Core space: a stack of updates as a small problem, without loss.

A LoRA stack is ΔW_l = x_l y_lᵀ. In orthonormal bases of the spans of all x_l and of all y_l it
becomes a_l b_lᵀ in float64, with a (K1, R) and b (K2, R). The bases are the HOSVD's, so truncating
coordinates is HOSVD truncation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lotr_tn._arrays import Array, Namespace, float64, is_wide, namespace_of
from lotr_tn.decompose.reduction import Reduction, reduced
from lotr_tn.formats import Stack
from lotr_tn.linalg.bases import inverse_or_zero, polar_factor, root_of_gram, triangular_factor
from lotr_tn.linalg.factor import eigh_descending, qr, svd
from lotr_tn.linalg.gram import cross_gram, wide_product
from lotr_tn.ops.frame import triangles
from lotr_tn.ops.norms import frobenius, root_sum_squares


@dataclass(frozen=True)
class Side:
    """One side of the core space: its orthonormal basis @ mixing is never formed whole."""

    basis: Array | None  # (m, k), or None for the identity
    mixing: Array  # (k, K) or (m, K)
    coordinates: Array  # (K, R): the factor in that basis
    sigma: Array  # (K,): singular values of the stack's unfolding along this side
    weights: tuple[Array, ...]  # per layer T_l with T_lᵀ T_l = x_lᵀ x_l: how this side weighs

    def lift(self, subspace: Array, *, xp: Namespace) -> Array:
        """Orthonormal columns (m, r) for orthonormal coordinates (K, r)."""
        # on the Gram route, columns beyond the rank of this side are zero
        mixed = self.mixing @ subspace
        if self.basis is None:
            return mixed
        if is_wide(self.basis):
            return self.basis @ mixed
        return polar_factor(wide_product(self.basis, mixed, xp=xp), xp=xp)


@dataclass(frozen=True)
class CoreSpace:
    """A stack in core space."""

    left: Side
    right: Side
    slices: tuple[slice, ...]
    layer_norms: Array  # (L,)
    wide: bool  # whether the input was float64
    missed: tuple[Array, Array] | None = None  # norms outside both bases, where they are sketched

    @property
    def norm(self) -> Array:
        """‖T‖."""
        return root_sum_squares(self.layer_norms)

    @property
    def xp(self) -> Namespace:
        """The array library."""
        return namespace_of(x=self.layer_norms)


def core_space(stack: Stack) -> CoreSpace:
    """The core space of a stack, without loss.

    Gram matrices in float64 resolve singular values to 1.5e-8 of the largest, below the rounding
    of narrower input. With R = Σ r_l, 2·(m + n)·R² + O(R³) flops, and twice that for float64.
    """
    return space_of(reduced(stack))


def space_of(reduction: Reduction) -> CoreSpace:
    """The core space of a stack that is already reduced, in the large."""
    stack = reduction.small
    xp = namespace_of(up=stack.up, down=stack.down)
    x, y = stack.up, xp.matrix_transpose(stack.down)
    x_side, y_side = _reduce(x, stack.slices, xp=xp), _reduce(y, stack.slices, xp=xp)
    left = _side(x, x_side, y_side.weights, stack.slices, xp=xp)
    right = _side(y, y_side, x_side.weights, stack.slices, xp=xp)
    norms = [
        frobenius(t @ xp.matrix_transpose(s), xp=xp)
        for t, s in zip(x_side.weights, y_side.weights, strict=True)
    ]
    left, right = _beyond(left, reduction.left), _beyond(right, reduction.right)
    return CoreSpace(left, right, stack.slices, xp.stack(norms), is_wide(x))


def _beyond(side: Side, basis: Array | None) -> Side:
    """A side whose basis is itself given in an orthonormal basis."""
    if basis is None:
        return side
    return replace(side, basis=basis if side.basis is None else basis @ side.basis)


def layer_weights(x: Array, slices: Sequence[slice], *, xp: Namespace) -> tuple[Array, ...]:
    """For each part x_l of x a small T_l with T_lᵀ T_l = x_lᵀ x_l."""
    return tuple(triangular_factor(x[:, part], xp=xp) for part in slices)


def weigh(x: Array, slices: Sequence[slice], weights: Sequence[Array], *, xp: Namespace) -> Array:
    """[x_1 T_1ᵀ, …, x_L T_Lᵀ]: each layer's columns recombined by its own small matrix."""
    return xp.concat(
        [x[:, part] @ xp.matrix_transpose(t) for part, t in zip(slices, weights, strict=True)],
        axis=1,
    )


@dataclass(frozen=True)
class _ReducedFactor:
    """A factor x (m, R) reduced: per-layer weights, and either Q R (wide) or the Gram matrix."""

    weights: tuple[Array, ...]
    gram: Array | None = None  # (R, R)
    q: Array | None = None  # (m, R)
    r: Array | None = None  # (min(m, R), R)


def _reduce(x: Array, slices: Sequence[slice], *, xp: Namespace) -> _ReducedFactor:
    tall = x.shape[0] > x.shape[1]
    if is_wide(x):
        q, r = qr(x, xp=xp) if tall else (None, x)
        return _ReducedFactor(tuple(triangles(r, slices, xp=xp)), q=q, r=r)
    if tall:
        gram = cross_gram(x, x, xp=xp)
        return _ReducedFactor(
            tuple(root_of_gram(gram[part, part], xp=xp) for part in slices), gram=gram
        )
    return _ReducedFactor(layer_weights(x, slices, xp=xp))


def _side(
    x: Array,
    reduced: _ReducedFactor,
    weights: tuple[Array, ...],
    slices: tuple[slice, ...],
    *,
    xp: Namespace,
) -> Side:
    """The HOSVD basis of one side: `weights` are those of the other side."""
    own = reduced.weights
    if reduced.r is not None:
        u, sigma, _ = svd(weigh(reduced.r, slices, weights, xp=xp), xp=xp)
        coordinates = xp.matrix_transpose(u) @ reduced.r
        return Side(reduced.q, u, coordinates, sigma, own)
    if reduced.gram is not None:  # tall: diagonalise Tᵀ (xᵀx) T, of size R
        half = weigh(reduced.gram, slices, weights, xp=xp)
        both = weigh(xp.matrix_transpose(half), slices, weights, xp=xp)
        values, z = eigh_descending(both, xp=xp)
        sigma = xp.sqrt(values)
        mixing = unweigh(z * inverse_or_zero(sigma, xp=xp)[None, :], weights, xp=xp)
        return Side(x, mixing, xp.matrix_transpose(mixing) @ reduced.gram, sigma, own)
    factor = float64(x, xp=xp)  # no taller than wide: its coordinates are its own rows
    weighed = weigh(factor, slices, weights, xp=xp)
    values, vectors = eigh_descending(weighed @ xp.matrix_transpose(weighed), xp=xp)
    return Side(None, vectors, xp.matrix_transpose(vectors) @ factor, xp.sqrt(values), own)


def unweigh(z: Array, weights: Sequence[Array], *, xp: Namespace) -> Array:
    """Stack T_lᵀ z_l, where z (Σ k_l, K) is cut by the rows of the T_l (k_l, r_l)."""
    parts, start = [], 0
    for t in weights:
        parts.append(xp.matrix_transpose(t) @ z[start : start + t.shape[0], :])
        start += t.shape[0]
    return xp.concat(parts, axis=0)
