"""Distances between stacks without cancellation, and without a dense matrix.

Where one stack has two shared factors, the other is seen from their orthonormal bases (`frame`),
all layers at once; else layer by layer.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import assert_never

from lotr_tn._arguments import door
from lotr_tn._arrays import BLOCK_ELEMENTS, Array, Namespace, float64, is_wide, row_blocks, zeros
from lotr_tn.formats import Core, Dense, Format, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.linalg import cross_gram
from lotr_tn.linalg.factor import qr, triangle_of
from lotr_tn.ops.arithmetic import subtract
from lotr_tn.ops.arrays import common_namespace, differentiable, first_array
from lotr_tn.ops.batches import in_batches, row_norms, side_by_side
from lotr_tn.ops.checks import require_same_shape
from lotr_tn.ops.conversion import as_lora
from lotr_tn.ops.frame import distances_from, distances_in, frame_of, project
from lotr_tn.ops.layers import Layer, each_core, layer_of, layer_product
from lotr_tn.ops.magnitude import measured
from lotr_tn.ops.moving import astype
from lotr_tn.ops.norms import frobenius, layer_norms, root_sum_squares
from lotr_tn.ops.primitives import by_rule_or_hub
from lotr_tn.ops.stacking import take_layers

GRAM_TRUSTED = 1e-4
"""Share of the sizes of the factors above which a squared distance by Gram matrices is trusted."""


@door
@measured
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
    Accuracy: 1e-15·‖a‖ absolute for float64 input (of Σ_j ‖x_j‖‖y_j‖ over the rank terms, where
    they cancel), 1e-12·‖a‖ for factors stored narrower, where distances of about 1% of ‖a‖ or more
    are taken from Gram matrices, to 1e-11 relative. Where torch records derivatives, the difference
    is always taken by Gram matrices: 1e-8·‖a‖ absolute.
    """
    return root_sum_squares(layer_distances(a, b))


@door
@measured
def layer_distances(a: Stack, b: Stack) -> Array:
    """‖a_l − b_l‖ of each layer.

    Returns:
        (L,) float64 on the stacks' device. Cost, accuracy and errors as for `distance`.
    """
    require_same_shape(a, b)
    if isinstance(a, Format) or isinstance(b, Format):
        return by_rule_or_hub(layer_distances, a, b)
    xp = common_namespace(a, b)
    if differentiable(a, b):
        return layer_norms(subtract(a, b))
    match a, b:
        case (Dense(), _) | (_, Dense()):
            return _of_matrices(a, b, xp=xp)
        case (Tucker2() | LowRankTucker2(), Tucker2() | LowRankTucker2()):
            return _of_shared_factors(a, b, xp=xp)
        case (LoRAStack() | Tucker1(), Tucker2() | LowRankTucker2()):
            return _from_shared_factors(a, b, xp=xp)
        case (Tucker2() | LowRankTucker2(), LoRAStack() | Tucker1()):
            return _from_shared_factors(b, a, xp=xp)
        case (LoRAStack() | Tucker1(), LoRAStack() | Tucker1()):
            return _of_own_factors(b, a, xp=xp)
        case never:
            assert_never(never)


def _from_shared_factors(
    a: LoRAStack | Tucker1, b: Tucker2 | LowRankTucker2, *, xp: Namespace
) -> Array:
    frame = frame_of(b.u, b.v, xp=xp)
    cores = (frame.core(core, xp=xp) for core in each_core(b, xp=xp))
    if isinstance(a, LoRAStack):
        return distances_from(project(a, frame, xp=xp), cores, xp=xp)
    found = []
    for index, core in enumerate(cores):  # one layer at a time: shared columns are not copied
        one = as_lora(take_layers(a, [index]))
        found.append(distances_from(project(one, frame, xp=xp), [core], xp=xp)[0])
    return xp.stack(found)


def _of_own_factors(a: LoRAStack | Tucker1, b: LoRAStack | Tucker1, *, xp: Namespace) -> Array:
    """Where each layer has factors of its own."""
    quick = _quick_distances(a, b, xp=xp)
    slow = [index for index, found in enumerate(quick) if found is None]
    if isinstance(a, LoRAStack) and isinstance(b, LoRAStack):
        exact = _distances_of_layers(a, b, slow, xp=xp)
    else:
        pairs = ([as_lora(take_layers(x, [index])) for x in (a, b)] for index in slow)
        exact = [_distances_of_layers(one, other, [0], xp=xp)[0] for one, other in pairs]
    left = iter(exact)
    return xp.stack([next(left) if found is None else found for found in quick])


def _distances_of_layers(
    a: LoRAStack, b: LoRAStack, layers: Sequence[int], *, xp: Namespace
) -> list[Array]:
    """Distances of some layers, each seen from the orthonormal bases of its own in `b`."""
    parts, others = a.slices, b.slices

    def made(places: list[int]) -> Iterable[Array]:
        some = [layers[place] for place in places]
        factors = (a.up, parts), (a.down.mT, parts), (b.up, others), (b.down.mT, others)
        x, y, u, v = (
            float64(side_by_side(factor, where, some, xp), xp=xp) for factor, where in factors
        )
        (left, own_left), (right, own_right) = qr(u, xp=xp), qr(v, xp=xp)
        return xp.unstack(distances_in(x, y, left, right, own_left @ own_right.mT, xp=xp))

    sizes = [(a.ranks[layer], b.ranks[layer]) for layer in layers]
    entries = sum(a.shape[1:]) * max((max(size) for size in sizes), default=1)
    return in_batches(sizes, entries, made)


def _quick_distances(
    a: LoRAStack | Tucker1, b: LoRAStack | Tucker1, *, xp: Namespace
) -> list[Array | None]:
    """Distances from Gram matrices, where they keep 11 digits; None for layers where not."""
    # as many digits cancel as the squared distance is smaller than the factors; on the host this
    # can be seen. Float64 stacks always take the other way, which keeps all digits.
    layers = range(a.shape[0])
    x = first_array(a)
    if is_wide(x) or str(x.device) != "cpu":
        return [None for _ in layers]
    ranks = a.ranks if isinstance(a, LoRAStack) else (a.rank,) * a.shape[0]
    alike = len({*ranks}) == 1
    if alike and isinstance(a, LoRAStack) and isinstance(b, LoRAStack) and len({*b.ranks}) == 1:
        products = _products_of_all(a, b, xp=xp)
    else:
        pairs = ((layer_of(a, index, xp=xp), layer_of(b, index, xp=xp)) for index in layers)
        products = (_products(one, other, xp=xp) for one, other in pairs)
    return [_trusted(each, rank, xp=xp) for each, rank in zip(products, ranks, strict=True)]


def _products(one: Layer, other: Layer, *, xp: Namespace) -> Array:
    """⟨x_i y_iᵀ, x_j y_jᵀ⟩ of all rank terms of two layers, those of the first before."""
    left = xp.concat([one.left, other.left], axis=1)
    rows = [x.mT for x in (one.right, other.right)]  # as a LoRA stores them
    right = xp.concat(rows, axis=0).mT
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
        left = left + block.mT @ block
    for columns in row_blocks(a.down.mT, BLOCK_ELEMENTS // 4):
        taken = [(x.down[:, columns], k) for x, k in ((a, r), (b, s))]
        parts = [xp.reshape(x, (layers, k, x.shape[1])) for x, k in taken]
        block = float64(xp.concat(parts, axis=1), xp=xp)
        right = right + block @ block.mT
    return left * right


def _trusted(products: Array, rank: int, *, xp: Namespace) -> Array | None:
    """The distance by the products of all terms, or None where too much of it cancels."""
    own, theirs = products[:rank, :rank], products[rank:, rank:]
    square = xp.sum(own) + xp.sum(theirs) - 2 * xp.sum(products[:rank, rank:])
    size = xp.linalg.trace(own) * rank + xp.linalg.trace(theirs) * (products.shape[0] - rank)
    return xp.sqrt(square) if bool(square > GRAM_TRUSTED * size) else None


def _of_shared_factors(
    a: Tucker2 | LowRankTucker2, b: Tucker2 | LowRankTucker2, *, xp: Namespace
) -> Array:
    frame = frame_of(b.u, b.v, xp=xp)
    u, v = float64(a.u, xp=xp), float64(a.v, xp=xp)
    inside_u, inside_v = frame.left.mT @ u, frame.right.mT @ v
    outside_u = triangle_of(u - frame.left @ inside_u, xp=xp)
    outside_v = triangle_of(v - frame.right @ inside_v, xp=xp)
    inside_v, outside_v = inside_v.mT, outside_v.mT
    largest = max(*inside_u.shape, *inside_v.shape, 1)
    at_once = max(1, BLOCK_ELEMENTS // (4 * largest**2))
    pairs, found = zip(each_core(a, xp=xp), each_core(b, xp=xp), strict=True), []
    while some := list(itertools.islice(pairs, at_once)):
        core, wanted = (xp.stack(cores) for cores in zip(*some, strict=True))
        inside, outside = inside_u @ core, outside_u @ core
        within = inside @ inside_v - frame.core(wanted, xp=xp)
        terms = within, outside @ inside_v, inside @ outside_v, outside @ outside_v
        flat = [xp.reshape(t, (len(some), t.shape[1] * t.shape[2])) for t in terms]
        found.append(row_norms(xp.concat(flat, axis=1), xp=xp))
    return xp.concat(found)


def _of_matrices(a: Core, b: Core, *, xp: Namespace) -> Array:
    found = []
    for index in range(a.shape[0]):
        wide = (astype(take_layers(x, [index]), "float64") for x in (a, b))
        left, right = (layer_product(layer_of(x, 0, xp=xp), xp=xp) for x in wide)
        found.append(frobenius(left - right, xp=xp))
    return xp.stack(found)
