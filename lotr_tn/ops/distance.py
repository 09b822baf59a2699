"""Distances between stacks without cancellation, and without a dense matrix.

For b_l = Q_u H_l Q_vᵀ with orthonormal Q_u, Q_v, and a_l = X C Yᵀ, write X = Q_u A + P and
Y = Q_v B + N. Then a_l − b_l is a sum of four mutually orthogonal terms,

    Q_u (A C Bᵀ − H_l) Q_vᵀ  +  P C Bᵀ Q_vᵀ  +  Q_u A C Nᵀ  +  P C Nᵀ,

each small when the difference is small. So the distance is accurate to the unit roundoff times
‖a‖, where ‖a‖² − 2⟨a, b⟩ + ‖b‖² would lose everything below its square root.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from lotr_tn._arrays import (
    BLOCK_ELEMENTS,
    Array,
    Namespace,
    float64,
    is_wide,
    row_blocks,
    zeros,
)
from lotr_tn.formats import Dense, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.linalg import cross_gram, orthonormal_basis, root_of_gram, triangular_factor
from lotr_tn.linalg.factor import qr
from lotr_tn.ops.arithmetic import subtract
from lotr_tn.ops.conversion import as_lora
from lotr_tn.ops.layers import (
    Layer,
    common_namespace,
    differentiable,
    each_core,
    first_array,
    layer_of,
    layer_product,
    require_same_shape,
)
from lotr_tn.ops.moving import astype
from lotr_tn.ops.norms import frobenius, layer_norms, root_sum_squares
from lotr_tn.ops.stacking import take_layers

__all__ = [
    "Frame",
    "cores_in",
    "distance",
    "distances_from",
    "frame_of",
    "layer_distances",
    "outside",
    "project",
]


GRAM_TRUSTED = 1e-4
"""Share of the sizes of the factors above which a squared distance by Gram matrices is trusted."""


def distance(a: Stack, b: Stack) -> Array:
    """‖a − b‖, the Frobenius norm of the difference of two stacks.

    Args:
        a: any stack (L, m, n).
        b: any stack of the same shape, library, dtype and device.

    Returns:
        A float64 number on the stacks' device.

    Raises:
        FormatError: the shapes differ.
        BackendError: library, dtype or device differ.

    Cost: O((m + n)·r_a·r_b) flops a layer; memory of one layer's factors and O(r_a·r_b).
    Accuracy: 1e-15·‖a‖ absolute for float64 input, 1e-12·‖a‖ for factors stored narrower, where
    distances of about 1% of ‖a‖ or more are taken from Gram matrices, to 1e-11 relative. Where
    torch records derivatives, the difference is always taken by Gram matrices: 1e-8·‖a‖ absolute.
    """
    return root_sum_squares(layer_distances(a, b))


def layer_distances(a: Stack, b: Stack) -> Array:
    """‖a_l − b_l‖ of each layer.

    Returns:
        (L,) float64 on the stacks' device. Cost, accuracy and errors as for `distance`.
    """
    require_same_shape(a, b)
    xp = common_namespace(a, b)
    if differentiable(a, b):
        return layer_norms(subtract(a, b))
    if isinstance(a, Dense) or isinstance(b, Dense):
        return xp.stack([_dense_distance(a, b, i, xp=xp) for i in range(a.shape[0])])
    if not isinstance(b, Tucker2 | LowRankTucker2):
        a, b = b, a
    if not isinstance(b, Tucker2 | LowRankTucker2):
        quick = _quick_distances(a, b, xp=xp)
        return xp.stack(
            [
                _layer_distance(a, b, index, xp=xp) if one is None else one
                for index, one in enumerate(quick)
            ]
        )
    frame = frame_of(b.u, b.v, xp=xp)
    if isinstance(a, Tucker2 | LowRankTucker2):
        return _tucker_distances(a, b, frame, xp=xp)
    cores = (frame.core(core, xp=xp) for core in each_core(b, xp=xp))
    if isinstance(a, LoRAStack):
        return distances_from(project(a, frame, xp=xp), cores, xp=xp)
    assert isinstance(a, Tucker1)
    return _tucker1_distances(a, frame, cores, xp=xp)


@dataclass(frozen=True)
class Frame:
    """Orthonormal bases of a pair of factors: u = left @ left_factor, v = right @ right_factor."""

    left: Array  # (m, r1) float64
    left_factor: Array  # (r1, r1) float64
    right: Array  # (n, r2) float64
    right_factor: Array  # (r2, r2) float64

    def core(self, core: Array, *, xp: Namespace) -> Array:
        """A core (r1, r2) that belongs to u and v, in the orthonormal bases."""
        return self.left_factor @ float64(core, xp=xp) @ xp.matrix_transpose(self.right_factor)


def frame_of(u: Array, v: Array, *, xp: Namespace) -> Frame:
    """The frame of the factors u (m, r1) and v (n, r2)."""
    return Frame(*orthonormal_basis(u, xp=xp), *orthonormal_basis(v, xp=xp))


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
        return self.a[:, part] @ xp.matrix_transpose(self.b[:, part])


def project(stack: LoRAStack, frame: Frame, *, xp: Namespace) -> Projection:
    """The coordinates of a LoRA stack in a frame. Cost: 2·(m·r1 + n·r2)·R flops."""
    a = cross_gram(frame.left, stack.up, xp=xp)
    b = cross_gram(frame.right, xp.matrix_transpose(stack.down), xp=xp)
    return Projection(stack, frame, a, b)


def cores_in(stack: Stack, frame: Frame, *, xp: Namespace) -> list[Array]:
    """For each layer the core (r1, r2) float64 of its projection on a frame.

    Cost: 2·(m·r1 + n·r2)·k flops for a factor of k columns; shared factors are projected once.
    """
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
            return [
                xp.matrix_transpose(cross_gram(stack.w[i, ...], left, xp=xp)) @ right
                for i in range(stack.shape[0])
            ]


def distances_from(projection: Projection, cores: Iterable[Array], *, xp: Namespace) -> Array:
    """(L,) distances of a projected LoRA stack from the Tucker-2 with these cores in the frame.

    Cost: 2·(m·r1 + n·r2)·R flops; O(R·r) memory and one block of rows.
    """
    stack, frame = projection.stack, projection.frame
    up, down = stack.up, xp.matrix_transpose(stack.down)
    # a factor's outside part may be large and yet cancel in the product, so it is multiplied by
    # the other side before its size is taken
    weights_a = [qr(projection.a[:, part], xp=xp)[1] for part in stack.slices]
    weights_b = [qr(projection.b[:, part], xp=xp)[1] for part in stack.slices]
    right = outside(down, frame.right, projection.b, stack.slices, weights_a, xp=xp)
    both = [
        xp.concat([weight, factor], axis=0)
        for weight, (_, factor) in zip(weights_b, right, strict=True)
    ]
    left = outside(up, frame.left, projection.a, stack.slices, both, xp=xp)
    inside = [
        frobenius(projection.core(index, xp=xp) - core, xp=xp) for index, core in enumerate(cores)
    ]
    terms = zip(inside, left, right, strict=True)
    return xp.stack([root_sum_squares(xp.stack([i, p, n])) for i, (p, _), (n, _) in terms])


def outside(
    x: Array,
    basis: Array,
    inside: Array,
    parts: Sequence[slice],
    weights: Sequence[Array],
    *,
    xp: Namespace,
) -> list[tuple[Array, Array]]:
    """For each part P_l of P = X - basis @ inside: ‖P_l T_lᵀ‖ for the weight T_l, and P_l's size.

    The size is a small factor with the Gram matrix of P_l.
    """
    if is_wide(x):
        found = []
        for part, weight in zip(parts, weights, strict=True):
            rest = x[:, part] - basis @ inside[:, part]
            weighed = frobenius(rest @ xp.matrix_transpose(weight), xp=xp)
            found.append((weighed, triangular_factor(rest, xp=xp)))
        return found
    grams = [zeros((part.stop - part.start,) * 2, x, xp=xp) for part in parts]
    squares = [zeros((), x, xp=xp) for _ in parts]
    for rows in row_blocks(x, BLOCK_ELEMENTS // 2):  # three copies of a block live at a time
        rest = float64(x[rows, :], xp=xp) - basis[rows, :] @ inside
        for index, (part, weight) in enumerate(zip(parts, weights, strict=True)):
            own = rest[:, part]
            grams[index] = grams[index] + xp.matrix_transpose(own) @ own
            weighed = own @ xp.matrix_transpose(weight)
            squares[index] = squares[index] + xp.sum(weighed * weighed)
    return [
        (xp.sqrt(square), root_of_gram(gram, xp=xp))
        for square, gram in zip(squares, grams, strict=True)
    ]


def _quick_distances(a: Stack, b: Stack, *, xp: Namespace) -> list[Array | None]:
    """Distances from Gram matrices, where they keep 11 digits; None for layers where they do not.

    ‖X Yᵀ − Z Wᵀ‖² from [X Z] and [Y W] loses digits by cancellation, as many as the squared
    distance is smaller than the sizes of the factors. On the host these can be looked at. Float64
    stacks always take the other way, which keeps all digits.
    """
    layers = range(a.shape[0])
    x = first_array(a)
    if is_wide(x) or str(x.device) != "cpu" or isinstance(a, Dense) or isinstance(b, Dense):
        return [None for _ in layers]
    if (
        isinstance(a, LoRAStack)
        and isinstance(b, LoRAStack)
        and len({*a.ranks}) == 1 == len({*b.ranks})
    ):
        products = _products_of_all(a, b, xp=xp)
        return [_trusted(products[i, ...], a.ranks[0], xp=xp) for i in layers]
    found = []
    for index in layers:
        one, other = layer_of(a, index, xp=xp), layer_of(b, index, xp=xp)
        found.append(_trusted(_products(one, other, xp=xp), int(one.right.shape[1]), xp=xp))
    return found


def _of_one_rank(stack: Stack) -> bool:
    """Whether it is a LoRA whose layers all have the same rank, of at least 1."""
    return isinstance(stack, LoRAStack) and len({*stack.ranks}) == 1 and stack.ranks[0] > 0


def _products(one: Layer, other: Layer, *, xp: Namespace) -> Array:
    """⟨x_i y_iᵀ, x_j y_jᵀ⟩ of all rank terms of two layers, those of the first before."""
    left = xp.concat([one.left, other.left], axis=1)
    rows = [xp.matrix_transpose(x) for x in (one.right, other.right)]  # as a LoRA stores them
    right = xp.matrix_transpose(xp.concat(rows, axis=0))
    return cross_gram(left, left, xp=xp) * cross_gram(right, right, xp=xp)


def _products_of_all(a: LoRAStack, b: LoRAStack, *, xp: Namespace) -> Array:
    """The same for all layers of one rank, (L, r + s, r + s): blocks of rows, layers together."""
    layers, (r, s) = a.shape[0], (a.ranks[0], b.ranks[0])
    left = zeros((layers, r + s, r + s), a.up, xp=xp)
    right = xp.zeros_like(left)
    for rows in row_blocks(a.up, BLOCK_ELEMENTS // 4):
        taken = [(x.up[rows, :], k) for x, k in ((a, r), (b, s))]
        parts = [xp.reshape(x, (x.shape[0], layers, k)) for x, k in taken]  # a rank may be 0
        block = xp.permute_dims(float64(xp.concat(parts, axis=2), xp=xp), (1, 0, 2))
        left = left + xp.matrix_transpose(block) @ block
    for columns in row_blocks(xp.matrix_transpose(a.down), BLOCK_ELEMENTS // 4):
        taken = [(x.down[:, columns], k) for x, k in ((a, r), (b, s))]
        parts = [xp.reshape(x, (layers, k, x.shape[1])) for x, k in taken]
        block = float64(xp.concat(parts, axis=1), xp=xp)
        right = right + block @ xp.matrix_transpose(block)
    return left * right


def _trusted(products: Array, rank: int, *, xp: Namespace) -> Array | None:
    """The distance by the products of all terms, or None where too much of it cancels."""
    own, theirs = products[:rank, :rank], products[rank:, rank:]
    square = xp.sum(own) + xp.sum(theirs) - 2 * xp.sum(products[:rank, rank:])
    size = xp.linalg.trace(own) * rank + xp.linalg.trace(theirs) * (products.shape[0] - rank)
    return xp.sqrt(square) if bool(square > GRAM_TRUSTED * size) else None


def _layer_distance(a: Stack, b: Stack, index: int, *, xp: Namespace) -> Array:
    """Distance of one layer, where each layer has factors of its own."""
    assert not isinstance(b, Dense)
    one, other = as_lora(take_layers(a, [index])), layer_of(b, index, xp=xp)
    frame = frame_of(other.left, other.right, xp=xp)
    core = frame.left_factor @ xp.matrix_transpose(frame.right_factor)
    return distances_from(project(one, frame, xp=xp), [core], xp=xp)[0]


def _tucker1_distances(a: Tucker1, frame: Frame, cores: Iterable[Array], *, xp: Namespace) -> Array:
    found = []
    for index, core in enumerate(cores):  # one layer at a time: shared columns are not copied
        one = as_lora(take_layers(a, [index]))
        found.append(distances_from(project(one, frame, xp=xp), [core], xp=xp)[0])
    return xp.stack(found)


def _tucker_distances(
    a: Tucker2 | LowRankTucker2, b: Tucker2 | LowRankTucker2, frame: Frame, *, xp: Namespace
) -> Array:
    u, v = float64(a.u, xp=xp), float64(a.v, xp=xp)
    inside_u = xp.matrix_transpose(frame.left) @ u
    inside_v = xp.matrix_transpose(frame.right) @ v
    outside_u = qr(u - frame.left @ inside_u, xp=xp)[1]
    outside_v = qr(v - frame.right @ inside_v, xp=xp)[1]
    inside_v, outside_v = xp.matrix_transpose(inside_v), xp.matrix_transpose(outside_v)
    largest = max(*inside_u.shape, *inside_v.shape, 1)
    at_once = max(1, BLOCK_ELEMENTS // (4 * largest**2))
    pairs, found = zip(each_core(a, xp=xp), each_core(b, xp=xp), strict=True), []
    while some := list(itertools.islice(pairs, at_once)):
        core, wanted = (xp.stack(cores) for cores in zip(*some, strict=True))
        inside, outside = inside_u @ core, outside_u @ core
        terms = (
            inside @ inside_v - frame.core(wanted, xp=xp),
            outside @ inside_v,
            inside @ outside_v,
            outside @ outside_v,
        )
        flat = [xp.reshape(t, (len(some), t.shape[1] * t.shape[2])) for t in terms]
        found.append(_row_norms(xp.concat(flat, axis=1), xp=xp))
    return xp.concat(found)


def _row_norms(x: Array, *, xp: Namespace) -> Array:
    """The norm of each row, scaled so that nothing over- or underflows."""
    if 0 in x.shape:
        return xp.sum(x, axis=1)
    largest = xp.max(xp.abs(x), axis=1)
    scale = xp.where(largest > 0, largest, xp.ones_like(largest))
    return scale * xp.sqrt(xp.sum((x / scale[:, None]) ** 2, axis=1))


def _dense_distance(a: Stack, b: Stack, index: int, *, xp: Namespace) -> Array:
    left, right = (
        layer_product(astype(take_layers(s, [index]), "float64"), 0, xp=xp) for s in (a, b)
    )
    return frobenius(left - right, xp=xp)
