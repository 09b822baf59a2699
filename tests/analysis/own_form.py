"""A format and a form of a person's own, in a file that the package does not know.

ΔW_l = a diag(w_l) bᵀ, with both factors shared by all layers: found by a truncated HOSVD whose
cores keep their diagonals alone.
"""

from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from lotr_tn._arrays import Array, namespace_of
from lotr_tn.analysis.forms import Form, Look, register_form
from lotr_tn.decompose import hosvd
from lotr_tn.formats import Certificate, Format, Tucker2
from lotr_tn.linalg.ranks import FixedRank
from lotr_tn.ops import astype, layer_distances
from lotr_tn.ops.primitives import register_format

__all__ = ["FORM", "Diagonal", "register"]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Diagonal(Format):
    """One diagonal (L, r) for each layer, between factors a (m, r) and b (n, r)."""

    a: Array
    w: Array
    b: Array
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        namespace_of(a=self.a, w=self.w, b=self.b)

    @property
    def shape(self) -> tuple[int, int, int]:
        return int(self.w.shape[0]), int(self.a.shape[0]), int(self.b.shape[0])

    @property
    def rank(self) -> int:
        return int(self.w.shape[1])


class Primitives:
    layered = "w"
    hub = Tucker2
    views = True

    def lower(self, stack: Diagonal, *, xp: Any) -> Tucker2:
        eye = xp.eye(stack.rank, dtype=stack.w.dtype)
        return Tucker2(stack.a, stack.w[:, :, None] * eye, stack.b)

    def transpose(self, stack: Diagonal, *, xp: Any) -> Diagonal:
        return Diagonal(stack.b, stack.w, stack.a)

    def join(self, stacks: Any, *, axis: str, xp: Any) -> None:
        return None

    def of_lora(self, stack: Any, *, xp: Any) -> None:
        return None


def diagonal(stack: Any, ranks: FixedRank, options: Any) -> Diagonal:
    """The best diagonals between the leading directions of both sides."""
    found = hosvd(stack, FixedRank(min(ranks.r1, *stack.shape[1:])), dtype="float64")
    r = min(found.ranks)
    weights = np.diagonal(np.asarray(found.core), axis1=1, axis2=2)[:, :r]
    arrays = found.u[:, :r], weights, found.v[:, :r]
    made = Diagonal(*(np.ascontiguousarray(x).astype(options.dtype) for x in arrays))
    wide = Diagonal(*(x.astype("float64") for x in (made.a, made.w, made.b)))
    distances = np.asarray(layer_distances(astype(stack, "float64"), wide))
    norms, lost = np.asarray(found.certificate.norms), np.linalg.norm(distances)
    certificate = Certificate(distances, norms, np.float64(0.0), np.float64(lost), "diagonal", 0)
    return replace(made, certificate=certificate)


FORM = Form(
    "diagonal",
    Diagonal,
    "diagonal cores",
    {"a": "out r", "w": "layer r", "b": "in r"},
    ranks=lambda stack: (stack.rank,),
    at_ranks=diagonal,
    look=Look("#112233", "#223344", "#99aabb", "X", (4, 1)),
)


def register() -> None:
    """What an entry point calls."""
    register_format(Diagonal, Primitives())
    register_form(FORM)
