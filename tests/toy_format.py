"""A format that no file of the package names: a diagonal core a layer, inside shared factors."""

from dataclasses import dataclass
from typing import final

import numpy as np

from lotr_tn._arrays import Array, cast, dtype_name, identity, namespace_of
from lotr_tn.formats import Certificate, Format, LoRAStack, Tucker2
from lotr_tn.formats.checks import require_axes, require_equal
from lotr_tn.ops.padding import zero_blocks
from lotr_tn.ops.primitives import register_format, unregister_format
from lotr_tn.testing.entries import factor, layered, plain
from lotr_tn.testing.formats import (
    Cut,
    FormatLaws,
    Sizes,
    register_format_laws,
    unregister_format_laws,
)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Toy(Format):
    """ΔW_l = U diag(w_l) Vᵀ."""

    u: Array
    weights: Array
    v: Array
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        namespace_of(u=self.u, weights=self.weights, v=self.v)
        for name, x, axes in (
            ("u", self.u, "(m, r)"),
            ("weights", self.weights, "(L, r)"),
            ("v", self.v, "(n, r)"),
        ):
            require_axes(name, x, axes)
            require_equal("r", ("u", self.u.shape[1]), (name, x.shape[1]))

    @property
    def shape(self) -> tuple[int, int, int]:
        return int(self.weights.shape[0]), int(self.u.shape[0]), int(self.v.shape[0])

    @property
    def rank(self) -> int:
        return int(self.u.shape[1])


class Primitives:
    layered = "weights"
    hub = Tucker2
    views = True

    def lower(self, stack, *, xp):
        eye = cast(identity(stack.rank, stack.u, xp=xp), dtype_name(stack.u), xp=xp)
        return Tucker2(stack.u, eye[None, ...] * stack.weights[:, None, :], stack.v)

    def transpose(self, stack, *, xp):
        return Toy(stack.v, stack.weights, stack.u)

    def join(self, stacks, *, axis, xp):
        first = stacks[0]
        if all(s.u is first.u and s.v is first.v for s in stacks):
            if axis == "sum":
                return Toy(first.u, sum((s.weights for s in stacks[1:]), first.weights), first.v)
            return Toy(first.u, xp.concat([s.weights for s in stacks], axis=0), first.v)
        u, v = (xp.concat([getattr(s, side) for s in stacks], axis=1) for side in ("u", "v"))
        if axis == "sum":
            return Toy(u, xp.concat([s.weights for s in stacks], axis=1), v)
        total, start, weights = int(u.shape[1]), 0, []
        for stack in stacks:
            after = total - start - stack.rank
            weights.append(zero_blocks(stack.weights, 1, start, after, xp=xp))
            start += stack.rank
        return Toy(u, xp.concat(weights, axis=0), v)

    def of_lora(self, stack: LoRAStack, *, xp):
        total, rows = sum(stack.ranks), []
        ones = cast(xp.sum(identity(total, stack.up, xp=xp), axis=0), dtype_name(stack.up), xp=xp)
        for part in stack.slices:
            own = zero_blocks(ones[part][None, :], 1, part.start, total - part.stop, xp=xp)
            rows.append(own)
        return Toy(stack.up, xp.concat(rows, axis=0), stack.down.mT)


def _make(kind, rng, shape, sizes, dtype):
    layers, m, n = shape
    u = factor(plain(kind) if kind != "dependent columns" else kind, rng, m, sizes["rank"])
    v = factor(plain(kind), rng, n, sizes["rank"])
    rows = layered(kind, rng, [(1, sizes["rank"])] * layers, dtype)
    return Toy(u, np.concatenate(rows, axis=0), v)


def _regauge(stack, arrays, matrices):
    a, b = (np.array([float(x[0, 0]) for x in part]) for part in np.array_split(matrices, 2))
    return {"u": arrays["u"] * a, "weights": arrays["weights"] / (a * b), "v": arrays["v"] * b}


LAWS = FormatLaws(
    Toy,
    _make,
    dense=lambda stack, arrays: np.stack(
        [(arrays["u"] * row) @ arrays["v"].T for row in arrays["weights"]]
    ),
    layer_ranks=lambda stack: (stack.rank,) * stack.shape[0],
    sizes={"rank": Sizes((1, 2, 3, 4, 0), (1, 2, 3, 4))},
    gauge_sizes=lambda stack: (1,) * (2 * stack.rank),
    regauge=_regauge,
    cuts=lambda stack, pair: [Cut("r", stack.rank, pair[0], "out")],
)


def register() -> None:
    """Open the algebra and the laws to the format."""
    register_format(Toy, Primitives())
    register_format_laws(LAWS)


def unregister() -> None:
    """Close both again."""
    unregister_format(Toy)
    unregister_format_laws(Toy)
