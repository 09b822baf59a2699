"""Stacks seen from a pair of orthonormal bases, with what lies outside both measured.

For b_l = Q_u H_l Q_vᵀ with orthonormal Q_u, Q_v, and a_l = X C Yᵀ, write X = Q_u A + P and
Y = Q_v B + N. Then a_l − b_l is a sum of four mutually orthogonal terms,

    Q_u (A C Bᵀ − H_l) Q_vᵀ  +  P C Bᵀ Q_vᵀ  +  Q_u A C Nᵀ  +  P C Nᵀ,

each small when the difference is small. So the distance is accurate to the unit roundoff times
‖a‖, where ‖a‖² − 2⟨a, b⟩ + ‖b‖² would lose everything below its square root.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, assert_never

from lotr_tn._arrays import BLOCK_ELEMENTS, Array, Namespace, float64, is_wide, zeros
from lotr_tn.formats import Core, Dense, LoRAStack, LowRankTucker2, Tucker1, Tucker2
from lotr_tn.linalg import cross_gram, orthonormal_basis, root_of_gram
from lotr_tn.linalg.factor import qr, triangle_of
from lotr_tn.ops.batches import in_batches, row_norms, side_by_side
from lotr_tn.ops.norms import frobenius


@dataclass(frozen=True)
class Frame:
    """Orthonormal bases of a pair of factors: u = left @ left_factor, v = right @ right_factor."""

    left: Array  # (m, r1) float64
    left_factor: Array  # (r1, r1) float64
    right: Array  # (n, r2) float64
    right_factor: Array  # (r2, r2) float64

    def core(self, core: Array, *, xp: Namespace) -> Array:
        """A core (r1, r2) that belongs to u and v, in the orthonormal bases."""
        return self.left_factor @ float64(core, xp=xp) @ self.right_factor.mT


def frame_of(u: Array, v: Array, *, xp: Namespace) -> Frame:
    """The frame of the factors u (m, r1) and v (n, r2)."""
    return Frame(*_resolved_basis(u, xp=xp), *_resolved_basis(v, xp=xp))


def _resolved_basis(x: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """By the Gram matrix where that loses, ε₆₄ times the condition number, at most 1e-14."""
    # a device would have to be waited for: there the basis is always Householder's
    if str(x.device) != "cpu":
        return qr(x, xp=xp)
    basis, factor = orthonormal_basis(x, xp=xp)
    if is_wide(x) or 0 in factor.shape:
        return basis, factor
    sizes = xp.linalg.vector_norm(factor, axis=1)
    return qr(x, xp=xp) if bool(xp.min(sizes) < sizes[0] / 64) else (basis, factor)


@dataclass(frozen=True)
class Projection:
    """A LoRA stack in a frame: up = left @ a + P and downᵀ = right @ b + N."""

    stack: LoRAStack
    frame: Frame
    a: Array  # (r1, R) float64
    b: Array  # (r2, R) float64

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where each layer's rank terms lie: found once for all layers."""
        return self.stack.slices

    def core(self, index: int, *, xp: Namespace) -> Array:
        """The core (r1, r2) of the layer's projection, in the frame."""
        part = self.slices[index]
        return self.a[:, part] @ self.b[:, part].mT


def project(stack: LoRAStack, frame: Frame, *, xp: Namespace) -> Projection:
    """The coordinates of a LoRA stack in a frame. Cost: 2·(m·r1 + n·r2)·R flops."""
    a = cross_gram(frame.left, stack.up, xp=xp)
    b = cross_gram(frame.right, stack.down.mT, xp=xp)
    return Projection(stack, frame, a, b)


def cores_in(stack: Core, frame: Frame, *, xp: Namespace) -> list[Array]:
    """For each layer the core (r1, r2) float64 of its projection on a frame."""
    left, right = frame.left, frame.right
    match stack:
        case LoRAStack():
            projection = project(stack, frame, xp=xp)
            return [projection.core(index, xp=xp) for index in range(stack.shape[0])]
        case Tucker2():
            a, b = cross_gram(left, stack.u, xp=xp), cross_gram(stack.v, right, xp=xp)
            return [a @ float64(stack.core[i, ...], xp=xp) @ b for i in range(stack.shape[0])]
        case LowRankTucker2():
            a = cross_gram(left, stack.u, xp=xp) @ float64(stack.up, xp=xp)
            b = float64(stack.down, xp=xp) @ cross_gram(stack.v, right, xp=xp)
            return [a[:, part] @ b[part, :] for part in stack.slices]
        case Tucker1(side="in"):
            b = cross_gram(stack.shared, right, xp=xp)
            return [cross_gram(left, stack.own[i, ...], xp=xp) @ b for i in range(stack.shape[0])]
        case Tucker1():
            a = cross_gram(left, stack.shared, xp=xp)
            return [a @ cross_gram(stack.own[i, ...], right, xp=xp) for i in range(stack.shape[0])]
        case Dense():
            layers = range(stack.shape[0])
            return [cross_gram(stack.w[i, ...], left, xp=xp).mT @ right for i in layers]
        case never:
            assert_never(never)


def distances_from(projection: Projection, cores: Iterable[Array], *, xp: Namespace) -> Array:
    """(L,) distances of a projected LoRA stack from the Tucker-2 with these cores in the frame."""
    stack, frame = projection.stack, projection.frame
    # a factor's outside part may be large and yet cancel in the product, so it is multiplied by
    # the other side before its size is taken
    weights_a = triangles(projection.a, projection.slices, xp=xp)
    weights_b = triangles(projection.b, projection.slices, xp=xp)
    right = outside(stack.down.mT, frame.right, projection.b, projection.slices, weights_a, xp=xp)
    pairs = zip(weights_b, right, strict=True)
    both = [xp.concat([weight, factor], axis=0) for weight, (_, factor) in pairs]
    left = outside(stack.up, frame.left, projection.a, projection.slices, both, xp=xp)
    inside = []
    for index, core in enumerate(cores):
        inside.append(frobenius(projection.core(index, xp=xp) - core, xp=xp))
    sizes = [xp.stack(inside), *(xp.stack([size for size, _ in side]) for side in (left, right))]
    return row_norms(xp.stack(sizes, axis=1), xp=xp)


def triangles(x: Array, parts: Sequence[slice], *, xp: Namespace) -> list[Array]:
    """For each part the triangle R of its QR, which has its norms and inner products."""
    widths = [part.stop - part.start for part in parts]

    def made(places: list[int]) -> Iterable[Array]:
        return xp.unstack(triangle_of(side_by_side(x, parts, places, xp), xp=xp))

    return in_batches(widths, x.shape[0], made)


def distances_in(x: Array, y: Array, left: Array, right: Array, core: Array, *, xp: Any) -> Array:
    """(G,) ‖X_g Y_gᵀ − left H_g rightᵀ‖ for factors (G, m, r), (G, n, r) and cores H, in float64.

    The bases (m, k) have orthonormal columns; each layer may have its own, (G, m, k).
    """
    a, b = left.mT @ x, right.mT @ y
    above, beside = x - left @ a, y - right @ b
    weighed = beside @ triangle_of(a, xp=xp).mT
    both = xp.concat([triangle_of(b, xp=xp), triangle_of(beside, xp=xp)], axis=1)
    terms = a @ b.mT - core, weighed, above @ both.mT
    return row_norms(xp.stack([row_norms(term, xp=xp) for term in terms], axis=1), xp=xp)


def outside(
    x: Array,
    basis: Array,
    inside: Array,
    parts: Sequence[slice],
    weights: Sequence[Array],
    *,
    xp: Namespace,
) -> list[tuple[Array, Array]]:
    """For each part P_l of P = X - basis @ inside: ‖P_l T_lᵀ‖ for the weight T_l, and its size."""

    # the size of P_l is a small factor with its Gram matrix
    def made(places: list[int]) -> Iterable[tuple[Array, Array]]:
        weight = xp.stack([weights[place] for place in places])
        if is_wide(x):
            own, within = (side_by_side(one, parts, places, xp) for one in (x, inside))
            rest = own - basis @ within
            sizes, factors = row_norms(rest @ weight.mT, xp=xp), triangle_of(rest, xp=xp)
        else:
            squares, grams = _outside_of_alike(x, basis, inside, parts, weight, places, xp=xp)
            sizes, factors = xp.sqrt(squares), root_of_gram(grams, xp=xp)
        return zip(xp.unstack(sizes), xp.unstack(factors), strict=True)

    # narrow factors pass by in blocks of rows, all layers of a size at once
    each = x.shape[0] * max(1, inside.shape[1] // max(1, len(parts))) if is_wide(x) else 0
    return in_batches([tuple(weight.shape) for weight in weights], each, made)


def _outside_of_alike(
    x: Array,
    basis: Array,
    inside: Array,
    parts: Sequence[slice],
    weight: Array,
    places: Sequence[int],
    *,
    xp: Namespace,
) -> tuple[Array, Array]:
    """Of parts of one width, and weights (G, k, w): ‖P_l T_lᵀ‖², and the Gram matrices of P_l."""
    width = weight.shape[2]
    gram = zeros((len(places), width, width), x, xp=xp)
    square = zeros((len(places),), x, xp=xp)
    within = side_by_side(inside, parts, places, xp)
    entries = max(1, len(places) * width)
    step = max(128, BLOCK_ELEMENTS // 2 // entries)  # three copies of a block live at a time
    for start in range(0, x.shape[0], step):
        rows = slice(start, min(start + step, x.shape[0]))
        own = float64(side_by_side(x[rows, :], parts, places, xp), xp=xp) - basis[rows, :] @ within
        gram = gram + own.mT @ own
        weighed = own @ weight.mT
        square = square + xp.sum(weighed * weighed, axis=(1, 2))
    return square, gram
