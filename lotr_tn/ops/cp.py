"""CP in the algebra: its hub, sums side by side, and rules where that is dear."""

from collections.abc import Sequence

from lotr_tn._arrays import (
    Array,
    Namespace,
    at_least_float32,
    cast,
    dtype_name,
    float64,
    identity,
    narrow,
    on_host,
    to_numpy,
)
from lotr_tn.formats import CP, LoRAStack, Stack, Tucker2
from lotr_tn.linalg import cross_gram
from lotr_tn.ops.apply import layers_of_rows, taken
from lotr_tn.ops.arrays import common_namespace, differentiable
from lotr_tn.ops.chain import rows_of
from lotr_tn.ops.checks import require_layer
from lotr_tn.ops.network import Network
from lotr_tn.ops.padding import placed
from lotr_tn.ops.primitives import Axis, rule

TRUSTED = 2.0**-6
"""Share of the sizes of the terms above which a squared norm by Gram matrices keeps 14 digits."""

SMALLEST, LARGEST = 1e-250, 1e250
"""Between which sums of squares neither under- nor overflow."""


class CPPrimitives:
    """CP within the algebra."""

    layered = "weights"
    hub = Tucker2
    views = True
    closed = True
    moves = True

    def lower(self, stack: CP, *, xp: Namespace) -> Tucker2:
        """Tucker-2 with diagonal cores."""
        eye = cast(identity(stack.rank, stack.a, xp=xp), dtype_name(stack.a), xp=xp)
        return Tucker2(stack.a, eye[None, ...] * stack.weights[:, None, :], stack.b)

    def network(self, stack: CP) -> Network:
        """Three matrices that meet in the terms."""
        (layers, m, n), rank = stack.shape, stack.rank
        return "mr,lr,nr", ((m, rank), (layers, rank), (n, rank))

    def transpose(self, stack: CP, *, xp: Namespace) -> CP:
        """The sides swapped."""
        return CP(stack.b, stack.weights, stack.a)

    def join(self, stacks: Sequence[CP], *, axis: Axis, xp: Namespace) -> CP:
        """The terms of all side by side; of stacks that share both sides, their weights."""
        first = stacks[0]
        if all(s.a is first.a and s.b is first.b for s in stacks):
            weights = [s.weights for s in stacks]
            if axis == "layers":
                return CP(first.a, xp.concat(weights, axis=0), first.b)
            wide = sum(at_least_float32(w, xp=xp) for w in weights)
            return CP(first.a, narrow(wide, dtype_name(first.a), xp=xp), first.b)
        a, b = (xp.concat([getattr(s, side) for s in stacks], axis=1) for side in ("a", "b"))
        if axis == "sum":
            return CP(a, xp.concat([s.weights for s in stacks], axis=1), b)
        total, start, rows = int(a.shape[1]), 0, []
        for stack in stacks:
            rows.append(placed(stack.weights, 1, start, total, xp=xp))
            start += stack.rank
        return CP(a, xp.concat(rows, axis=0), b)

    def of_lora(self, stack: LoRAStack, *, xp: Namespace) -> CP:
        """A term for each of the LoRA's, of weight 1 in its layer and 0 in the others."""
        total = sum(stack.ranks)
        ones = cast(xp.ones_like(stack.up[:1, :]), dtype_name(stack.up), xp=xp)
        rows = [placed(ones[:, p], 1, p.start, total, xp=xp) for p in stack.slices]
        return CP(stack.up, xp.concat(rows, axis=0), stack.down.mT)


@rule("apply", CP)
def _apply(stack: CP, x: Array, *, layer: int | Sequence[int] | Array | None = None) -> Array:
    """((x B) ∘ w) Aᵀ: O((m + n) R) for a row."""
    layers, m, n = stack.shape
    if isinstance(layer, int):
        weights, rank = stack.weights[require_layer(layers, layer), :], stack.rank
        if rows_of(x) * (rank * (m + n) - m * n) > m * n * rank:  # merging takes less
            return x @ ((stack.a * weights) @ stack.b.mT).mT
        return ((x @ stack.b) * weights) @ stack.a.mT
    xp = common_namespace(stack)
    if layer is not None:
        chosen = layers_of_rows(stack, x, layer)
        if len(chosen) == 0:
            return xp.zeros((0, *x.shape[1:-1], m), dtype=x.dtype, device=x.device)
        flat = _flat(x, xp=xp)
        each = (len(chosen), flat.shape[0] // len(chosen), stack.rank)
        inside = xp.reshape(flat @ stack.b, each)
        inside = inside * taken(stack.weights, chosen, xp=xp)[:, None, :]
        return xp.reshape(_flat(inside, xp=xp) @ stack.a.mT, (*x.shape[:-1], m))
    inside = (_flat(x, xp=xp) @ stack.b)[None, ...] * stack.weights[:, None, :]
    return xp.reshape(_flat(inside, xp=xp) @ stack.a.mT, (layers, *x.shape[:-1], m))


def _flat(x: Array, *, xp: Namespace) -> Array:
    """(rows, k) of (..., k)."""
    return xp.reshape(x, (rows_of(x), x.shape[-1]))


@rule("layer_norms", CP)
def _layer_norms(stack: CP, kind: str = "frobenius") -> Array:
    """(w_lᵀ (AᵀA ∘ BᵀB) w_l)^½: O((m + n) R² + L R²), where so much is left that it has digits."""
    xp = common_namespace(stack)
    if kind != "frobenius" or differentiable(stack) or not on_host(stack.a):
        return NotImplemented
    weights = float64(stack.weights, xp=xp)
    products = _products(stack, stack, xp=xp)
    squares = xp.sum((weights @ products) * weights, axis=1)
    sizes = xp.sum((xp.abs(weights) @ xp.abs(products)) * xp.abs(weights), axis=1)
    nothing = xp.max(xp.abs(weights), axis=1) == 0 if stack.rank else squares == 0
    sure = (squares >= TRUSTED * sizes) & (sizes > SMALLEST) & (sizes < LARGEST)
    return xp.sqrt(squares) if bool(xp.all(sure | nothing)) else NotImplemented


@rule("inner", CP)
def _inner(a: Stack, b: Stack) -> Array:
    """Σ_l v_lᵀ (AᵀC ∘ BᵀD) w_l of two CPs: O((m + n + L) R S)."""
    if not (isinstance(a, CP) and isinstance(b, CP)):
        return NotImplemented
    xp = common_namespace(a, b)
    v, w = float64(a.weights, xp=xp), float64(b.weights, xp=xp)
    terms = (v.mT @ w) * _products(a, b, xp=xp)
    if on_host(terms):
        size = float(to_numpy(xp.sum(xp.abs(terms))))
        if not SMALLEST < size < LARGEST:
            return NotImplemented
    return xp.sum(terms)


def _products(one: CP, other: CP, *, xp: Namespace) -> Array:
    """(R, S) ⟨a_r b_rᵀ, c_s d_sᵀ⟩ of all pairs of terms, without their weights."""
    return cross_gram(one.a, other.a, xp=xp) * cross_gram(one.b, other.b, xp=xp)
