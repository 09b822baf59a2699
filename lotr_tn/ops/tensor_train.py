"""Tensor trains in the algebra: their LoRA, sums of cores, and rules that need no LoRA."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import device

from lotr_tn._arrays import (
    Array,
    Namespace,
    at_least_float32,
    cast,
    dtype_name,
    float64,
    identity,
    narrow,
)
from lotr_tn.contraction import ContractionPlan, plan
from lotr_tn.errors import FormatError
from lotr_tn.formats import Core, LoRAStack, Stack, TensorTrain
from lotr_tn.linalg.product import ROUNDING
from lotr_tn.linalg.trains import (
    Cores,
    chained,
    scaled_to_one,
    sizes_of_terms,
    transfer,
    with_orthonormal_columns,
)
from lotr_tn.ops.apply import apply, layers_of_rows, taken
from lotr_tn.ops.arrays import common_namespace, differentiable, storage_dtype, with_arrays
from lotr_tn.ops.batches import row_norms
from lotr_tn.ops.chain import rows_of
from lotr_tn.ops.checks import require_layer
from lotr_tn.ops.dense import warn_of_size
from lotr_tn.ops.magnitude import times_power
from lotr_tn.ops.padding import placed, zero_blocks
from lotr_tn.ops.primitives import Axis, lowered, rule

FULL_RANK_ENTRIES = 2**26
"""Above that many entries no train of full rank is made a LoRA, which would be its matrices."""


MANY_ROWS = 8
"""Rows for each direction of the widest bond from which on a train is applied as a LoRA."""


class TensorTrainPrimitives:
    """A train whose out legs and in legs stand apart is a LoRA of the bond between them."""

    layered = None
    hub: type[Core] = LoRAStack
    views = False

    def lower(self, stack: TensorTrain, *, xp: Namespace) -> LoRAStack:
        """Both halves of the train, contracted; of full rank where its legs are paired."""
        layers, m, n = stack.shape
        if (cut := stack.middle) is None:
            return _of_full_rank(stack, xp=xp)
        left, right = (
            _half(stack, first, last, xp=xp) for first, last in ((0, cut), (cut, len(stack.cores)))
        )
        if any(n != 1 for _, n in stack.legs[:cut]) or any(o != 1 for o, _ in stack.legs[cut:]):
            left, right = right, left  # the in legs stand first
        rank = int(left.shape[2])
        up = xp.reshape(xp.permute_dims(left, (1, 0, 2)), (m, layers * rank))
        down = xp.reshape(right.mT, (layers * rank, n))
        return LoRAStack(up, down, (rank,) * layers)

    def planned(self, stack: TensorTrain, rows: int | None) -> ContractionPlan:
        """The cores, and x by its digits."""
        return train_plan(stack, rows)

    def transpose(self, stack: TensorTrain, *, xp: Namespace) -> TensorTrain:
        """The same cores with out and in legs exchanged."""
        cores = tuple(xp.permute_dims(core, (0, 1, 3, 2, 4)) for core in stack.cores)
        return TensorTrain(cores, stack.in_order, stack.out_order)

    def join(
        self, stacks: Sequence[TensorTrain], *, axis: Axis, xp: Namespace
    ) -> TensorTrain | None:
        """Cores on the diagonal, or one behind the other; None where legs differ."""
        first = stacks[0]
        if any(not same_legs(first, other) for other in stacks[1:]):
            return None
        each = zip(*(stack.cores for stack in stacks), strict=True)
        if axis == "layers":
            bonds = [max(ranks) for ranks in zip(*(s.ranks for s in stacks), strict=True)]
            pairs = zip((1, *bonds), (*bonds, 1), strict=True)
            cores = [
                _stacked(parts, stacks, pair, xp=xp)
                for parts, pair in zip(each, pairs, strict=True)
            ]
        else:
            last = len(first.cores) - 1
            cores = [_diagonal(parts, k, last, xp=xp) for k, parts in enumerate(each)]
        return TensorTrain(tuple(cores), first.out_order, first.in_order)

    def of_lora(self, stack: LoRAStack, *, xp: Namespace) -> TensorTrain:
        """Two cores, of one leg each: the LoRA's own factors, filled up to its largest rank."""
        rank = max(stack.ranks)
        ups, downs = [], []
        for part, own in zip(stack.slices, stack.ranks, strict=True):
            ups.append(zero_blocks(stack.up[:, part], 1, 0, rank - own, xp=xp))
            downs.append(zero_blocks(stack.down[part, :], 0, 0, rank - own, xp=xp))
        up, down = xp.stack(ups), xp.stack(downs)
        return TensorTrain((up[:, None, :, None, :], down[:, :, None, :, None]))


def same_legs(a: TensorTrain, b: TensorTrain) -> bool:
    """Whether two trains have cores of the same legs, whose digits stand in the same order."""
    return a.legs == b.legs and _digits(a) == _digits(b)


def _digits(stack: TensorTrain) -> tuple[list[int], list[int]]:
    """The cores with out legs, and those with in legs, in the order of their digits."""
    out = [k for k in stack.out_order if stack.legs[k][0] != 1]
    return out, [k for k in stack.in_order if stack.legs[k][1] != 1]


def _half(stack: TensorTrain, first: int, last: int, *, xp: Namespace) -> Array:
    """(L, m or n, r) of the cores on one side of the middle, in the stack's dtype."""
    layers, dtype = stack.shape[0], storage_dtype(stack)
    cores = [at_least_float32(core, xp=xp) for core in stack.cores[first:last]]
    if not cores:
        return xp.ones((layers, 1, 1), dtype=stack.cores[0].dtype, device=device(stack.cores[0]))
    found = chained(cores, xp=xp)
    found = found[:, 0, :, :] if first == 0 else found[:, :, :, 0].mT
    found = xp.reshape(ordered(found, stack, range(first, last), 1, xp=xp), found.shape)
    whole = xp.broadcast_to(found, (layers, *found.shape[1:]))
    return narrow(whole, dtype, xp=xp)


def ordered(x: Array, stack: TensorTrain, cores: Any, axis: int, *, xp: Namespace) -> Array:
    """An array whose axis runs over the digits of some cores, with axes (rows…, columns…)."""
    held = [(k, side) for k in cores for side in (0, 1) if stack.legs[k][side] != 1]
    out, into = _digits(stack)
    wanted = [(k, 0) for k in out] + [(k, 1) for k in into]
    wanted = [place for place in wanted if place in held]
    sizes = [stack.legs[k][side] for k, side in held]
    split = xp.reshape(x, (*x.shape[:axis], *sizes, *x.shape[axis + 1 :]))
    places = [axis + held.index(place) for place in wanted]
    rest = range(axis + len(held), axis + len(held) + x.ndim - axis - 1)
    return xp.permute_dims(split, (*range(axis), *places, *rest))


def _of_full_rank(stack: TensorTrain, *, xp: Namespace) -> LoRAStack:
    """The matrices themselves beside an identity, where that is no more than is bearable."""
    layers, m, n = stack.shape
    if layers * m * n > FULL_RANK_ENTRIES:
        raise FormatError(
            f"a train of paired legs has full rank: as a LoRA its {layers} updates of {m} x {n} "
            "would be as large as their matrices; norm, inner, distance, apply, add, scale and "
            "round work on the train itself, and lt.to_dense forms the matrices"
        )
    w = _matrices(stack, xp=xp)
    eye = cast(identity(min(m, n), w, xp=xp), dtype_name(w), xp=xp)
    if m < n:
        up = xp.concat([eye] * layers, axis=1)
        return LoRAStack(up, xp.reshape(w, (layers * m, n)), (m,) * layers)
    up = xp.reshape(xp.permute_dims(w, (1, 0, 2)), (m, layers * n))
    return LoRAStack(up, xp.concat([eye] * layers, axis=0), (n,) * layers)


def _matrices(stack: TensorTrain, *, xp: Namespace) -> Array:
    """(L, m, n) in the stack's dtype."""
    layers, m, n = stack.shape
    found = chained([at_least_float32(core, xp=xp) for core in stack.cores], xp=xp)[:, 0, :, 0]
    whole = ordered(found, stack, range(len(stack.cores)), 1, xp=xp)
    whole = xp.broadcast_to(xp.reshape(whole, (found.shape[0], m, n)), (layers, m, n))
    return narrow(whole, storage_dtype(stack), xp=xp)


def _stacked(
    parts: Sequence[Array],
    stacks: Sequence[TensorTrain],
    bonds: tuple[int, int],
    *,
    xp: Namespace,
) -> Array:
    """The cores of one place, filled up to common bonds, layer after layer."""
    if all(part is parts[0] for part in parts) and parts[0].shape[0] == 1 < stacks[0].shape[0]:
        return parts[0]  # all layers share it
    found = []
    for part, stack in zip(parts, stacks, strict=True):
        wide = xp.broadcast_to(part, (stack.shape[0], *part.shape[1:]))
        wide = zero_blocks(wide, 1, 0, bonds[0] - int(part.shape[1]), xp=xp)
        found.append(zero_blocks(wide, 4, 0, bonds[1] - int(part.shape[4]), xp=xp))
    return xp.concat(found, axis=0)


def _diagonal(parts: Sequence[Array], k: int, last: int, *, xp: Namespace) -> Array:
    """The cores of one place on the diagonal of both bonds; side by side at the ends."""
    layers = max(int(part.shape[0]) for part in parts)
    wide = [xp.broadcast_to(part, (layers, *part.shape[1:])) for part in parts]
    if k == 0 == last:
        total = wide[0]
        for part in wide[1:]:
            total = total + part
        return total
    if k == 0:
        return xp.concat(wide, axis=4)
    if k == last:
        return xp.concat(wide, axis=1)
    total, before, rows = sum(int(part.shape[4]) for part in wide), 0, []
    for part in wide:
        rows.append(placed(part, 4, before, total, xp=xp))
        before += int(part.shape[4])
    return xp.concat(rows, axis=1)


@rule("scale", TensorTrain)
def _scale(stack: TensorTrain, factor: Any) -> TensorTrain:
    xp = common_namespace(stack)
    layers = stack.shape[0]
    one = getattr(factor, "ndim", 0) == 0 and not isinstance(factor, Sequence)
    able = [k for k, core in enumerate(stack.cores) if one or core.shape[0] == layers]
    k = min(able, key=lambda at: math.prod(stack.cores[at].shape))
    core = at_least_float32(stack.cores[k], xp=xp)
    factors = [factor] * core.shape[0] if one else [factor[index] for index in range(layers)]
    with np.errstate(over="ignore", invalid="ignore"):
        core = xp.stack([core[index, ...] * each for index, each in enumerate(factors)])
    return with_arrays(stack, **{f"cores.{k}": narrow(core, storage_dtype(stack), xp=xp)})


@rule("take_layers", TensorTrain)
def _take_layers(stack: TensorTrain, layers: Sequence[int]) -> TensorTrain:
    xp = common_namespace(stack)
    count = stack.shape[0]
    chosen = np.array([layer % count for layer in layers])
    cores = [
        core if core.shape[0] == 1 < count else taken(core, chosen, xp=xp) for core in stack.cores
    ]
    return with_arrays(stack, cores=tuple(cores))


@rule("to_dense", TensorTrain)
def _to_dense(stack: TensorTrain) -> Array:
    warn_of_size(stack.shape)
    return _matrices(stack, xp=common_namespace(stack))


def wide_cores(stack: TensorTrain, *, xp: Namespace) -> tuple[Cores, int]:
    """The cores in float64, of size about 1, and the exponent of two that this took out."""
    cores = [float64(core, xp=xp) for core in stack.cores]
    return (cores, 0) if differentiable(stack) else scaled_to_one(cores, xp=xp)


@rule("inner", TensorTrain)
def _inner(a: Stack, b: Stack) -> Any:
    if not isinstance(a, TensorTrain) or not isinstance(b, TensorTrain) or not same_legs(a, b):
        return NotImplemented
    xp = common_namespace(a, b)
    (x, p), (y, q) = wide_cores(a, xp=xp), wide_cores(b, xp=xp)
    each = transfer(x, y, xp=xp)
    return times_power(xp.sum(xp.broadcast_to(each, (a.shape[0],))), p + q)


@rule("layer_norms", TensorTrain)
def _layer_norms(stack: TensorTrain, kind: str = "frobenius") -> Any:
    if kind != "frobenius" or differentiable(stack):
        return NotImplemented
    xp = common_namespace(stack)
    cores, exponent = wide_cores(stack, xp=xp)
    return times_power(layer_sizes(cores, stack.shape[0], xp=xp), exponent)


def layer_sizes(cores: Cores, layers: int, *, xp: Namespace) -> Array:
    """(L,) the norm of each layer; 0 where its terms cancel, but for rounding."""
    swept, _ = with_orthonormal_columns(cores, len(cores) - 1, xp=xp)
    found = row_norms(swept[-1], xp=xp)
    nothing = found <= ROUNDING * sizes_of_terms(cores, xp=xp)
    found = xp.where(nothing, xp.zeros_like(found), found)
    return xp.broadcast_to(found, (layers,))


@rule("layer_distances", TensorTrain)
def _layer_distances(a: Stack, b: Stack) -> Any:
    if not isinstance(a, TensorTrain) or not isinstance(b, TensorTrain) or not same_legs(a, b):
        return NotImplemented
    if a.middle is not None or differentiable(a, b):
        return NotImplemented  # as LoRA stacks, whose distances keep more digits
    xp = common_namespace(a, b)
    wide = [with_arrays(x, cores=tuple(float64(c, xp=xp) for c in x.cores)) for x in (a, b)]
    minus = _scale(wide[1], -1.0)
    both = TensorTrainPrimitives().join((wide[0], minus), axis="sum", xp=xp)
    assert both is not None
    return _layer_norms(both)


@rule("apply", TensorTrain)
def _apply(stack: TensorTrain, x: Array, *, layer: Any = None) -> Array:
    xp = common_namespace(stack)
    if layer is None or isinstance(layer, int):
        return _through(stack, x, layer, xp=xp)
    chosen = layers_of_rows(stack, x, layer)
    if len(chosen) == 0:
        return xp.zeros((0, *x.shape[1:-1], stack.shape[1]), dtype=x.dtype, device=device(x))
    order = np.argsort(chosen, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(chosen[order])) + 1)
    parts = [_through(stack, taken(x, own, xp=xp), int(chosen[own[0]]), xp=xp) for own in members]
    return taken(xp.concat(parts, axis=0), np.argsort(order, kind="stable"), xp=xp)


def _through(stack: TensorTrain, x: Array, layer: int | None, *, xp: Namespace) -> Array:
    """X through one layer, or through all of them, by a plan."""
    layers, m, _ = stack.shape
    cores = stack.cores
    if layer is not None:
        index = require_layer(layers, layer)
        cores = [core[index : index + 1, ...] if core.shape[0] > 1 else core for core in cores]
    if rows_of(x) >= MANY_ROWS * max(stack.ranks, default=1) and stack.middle is not None:
        # both halves take no time beside the rows, and then two products do
        lora = lowered(with_arrays(stack, cores=tuple(cores)))
        return apply(lora, x, layer=None if layer is None else 0)
    sizes = tuple(tuple(core.shape) for core in cores)
    made = _planned(sizes, stack.out_order, stack.in_order, rows_of(x))
    arrays = (xp.reshape(y, shape) for y, shape in zip((x, *cores), made.shapes, strict=True))
    lead = (layers,) if layer is None else ()
    return xp.reshape(made(*arrays), (*lead, *x.shape[:-1], m))


def train_plan(stack: TensorTrain, rows: int | None) -> ContractionPlan:
    """The contraction of rows with all layers of a train, or of the layers alone for None."""
    sizes = tuple(tuple(map(int, core.shape)) for core in stack.cores)
    return _planned(sizes, stack.out_order, stack.in_order, rows)


@lru_cache(maxsize=1024)
def _planned(
    sizes: tuple[tuple[int, ...], ...],
    out_order: tuple[int, ...],
    in_order: tuple[int, ...],
    rows: int | None,
) -> ContractionPlan:
    """The same for cores of these sizes, found once: that takes as long as a small product."""
    layers, last = max(size[0] for size in sizes), len(sizes) - 1
    letters = (letter for letter in map(chr, range(ord("a"), 0x250)) if letter.isalpha())
    layer, row = next(letters), next(letters)
    terms, shapes, left = [], [], ""
    out, into = {}, {}
    for k, size in enumerate(sizes):
        right = next(letters) if k < last else ""
        own = layer if size[0] == layers else ""
        out[k], into[k] = (next(letters) if size[axis] != 1 else "" for axis in (2, 3))
        axes = (own, left, out[k], into[k], right)
        left = right
        terms.append("".join(axes))
        shapes.append(tuple(s for letter, s in zip(axes, size, strict=True) if letter))
    result, digits = (
        "".join(x[k] for k in order) for x, order in ((out, out_order), (into, in_order))
    )
    if rows is None:
        return plan(f"{','.join(terms)}->{layer}{result}{digits}", *shapes)
    columns = tuple(sizes[k][3] for k in in_order if sizes[k][3] != 1)
    equation = f"{','.join([row + digits, *terms])}->{layer}{row}{result}"
    return plan(equation, (rows, *columns), *shapes)
