"""LoTR: U and V of a group, and a small core G for each layer; ΔW = U G Vᵀ."""

from collections.abc import Mapping
from typing import Any, Self, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from lotr_tn.catalogue.methods import LOTR, Site
from lotr_tn.errors import FormatError, OptionError, RankError
from lotr_tn.nn.form import Form, Own, Start, register
from lotr_tn.nn.forms.tucker2_starts import STARTS, ZERO_CORE, starting_values
from lotr_tn.nn.grouping import Group
from lotr_tn.nn.shared_product import SharedProduct, times

Ranks: TypeAlias = int | tuple[int, int]
"""One rank, or (r1, r2) for the output and the input side."""


@register
@final
class Tucker2Form(Form):
    """U (m, r1) and V (n, r2) of all layers of a group.

    Each layer has a core G (r1, r2) of its own. The products are taken in the order with the
    fewest operations for the number of rows, and none of them is m × n.

    Args:
        u: (m, r1), the output side; it is copied.
        v: (n, r2), the input side; likewise.
        group: the name of the group.

    Raises:
        FormatError: u or v is no matrix.

    Cost: for b rows 2·b·(n·r2 + r1·r2 + m·r1) flops forward, and twice that backward, at most.

    Examples:
        >>> factors = Tucker2Form(torch.ones(5, 2), torch.ones(4, 3))
        >>> factors.shape, factors.ranks
        ((5, 4), (2, 3))
    """

    method = LOTR
    starts = STARTS
    part_names = ("factors", "cores")

    def __init__(self, u: Tensor, v: Tensor, group: str = "") -> None:
        for name, value in (("u", u), ("v", v)):
            if value.ndim != 2:
                raise FormatError(f"{name} must be a matrix; found shape {tuple(value.shape)}")
        super().__init__((u.shape[0], v.shape[0]), group)
        self.u = nn.Parameter(u.detach().clone())
        self.v = nn.Parameter(v.detach().clone())
        self.product = SharedProduct()

    @property
    def ranks(self) -> tuple[int, int]:
        """(r1, r2)."""
        return self.u.shape[1], self.v.shape[1]

    @classmethod
    def settled(cls, options: Mapping[str, Any], group: Group) -> Mapping[str, Any]:
        """Its `ranks` as a pair."""
        pair = rank_pair(options["ranks"])
        for label, rank, axis, most in zip(("r1", "r2"), pair, "mn", group.shape, strict=True):
            if not 1 <= rank <= most:
                raise RankError(
                    f"{label} of group {group.name!r} must lie in 1 … {axis} = {most}, the size of "
                    f"{group.modules[0]}; found {rank}"
                )
        return {"ranks": pair}

    @classmethod
    def require_start(cls, init: str, trained: str) -> None:
        """Refuse a start that is not known, or from which U and V would have no gradient."""
        super().require_start(init, trained)
        if trained == "factors" and init in ZERO_CORE:
            raise OptionError(
                f"with init {init!r} the cores are zero, so U and V would have no gradient; to "
                "train the factors alone begin with 'zero-u', 'principal' or an adapter"
            )

    @classmethod
    def begin(cls, group: Group, start: Start) -> tuple[Self, list[Own]]:
        """The factors of a group, and a core for each layer."""
        values, device = starting_values(group, start), start.like.device
        form = cls(values.u.to(device), values.v.to(device), group.name)
        return form, [{"core": core / start.scale} for core in values.core]

    def forward(self, x: Tensor, own: Own, site: Site) -> Tensor:
        """((x V) Gᵀ) Uᵀ."""
        return functional.linear(functional.linear(x @ self.v, own["core"]), self.u)

    def rows(self, index: Tensor, own: Own, site: Site) -> Tensor:
        """The same for rows of V in place of x V."""
        inside = functional.embedding(index, self.v, site.padding)
        return functional.linear(functional.linear(inside, own["core"]), self.u)

    def delta(self, own: Own, site: Site, scale: float = 1.0) -> Tensor:
        """The matrix s U G Vᵀ (m, n)."""
        core = own["core"]
        wide = torch.promote_types(self.u.dtype, torch.float32)
        u, v = (x.to(core.device, wide) for x in (self.u, self.v))
        return (u @ (scale * core.to(wide))) @ v.mT

    def added(self, result: Tensor, x: Tensor, own: Own, site: Site, scale: float) -> Tensor:
        """The products in the cheapest order, the last of them begun with the result."""
        u, core = self.u.to(x.device), own["core"] * scale
        m, n = self.shape
        if site.siblings < 2 and folds_right(x.numel() // n, m, n, *core.shape):
            return add_product(result, times(x, self.v.to(x.device) @ core.mT), u)
        return add_product(result, self.product(x, self.v, own["core"], site.siblings), u, core)

    def added_rows(
        self, result: Tensor, index: Tensor, own: Own, site: Site, scale: float | Tensor
    ) -> Tensor:
        """The same for an embedding, which looks up rows of V."""
        inside = functional.embedding(index, self.v.to(index.device), site.padding)
        return add_product(result, inside, self.u.to(index.device), own["core"] * scale)

    def extra_repr(self) -> str:
        """The sizes, for `print`."""
        (m, n), (r1, r2) = self.shape, self.ranks
        return f"group={self.group!r}, m={m}, n={n}, r1={r1}, r2={r2}"


def rank_pair(r: Any) -> tuple[int, int]:
    """(r1, r2) of one rank or a pair."""
    pair = (r, r) if isinstance(r, int) else tuple(r) if isinstance(r, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(x, int) and not isinstance(x, bool) for x in pair):
        raise RankError(f"r must be a whole number or a pair (r1, r2); found {r!r}")
    return pair[0], pair[1]


def folds_left(rows: int, m: int, n: int, r1: int, r2: int) -> bool:
    """Whether (x V)(U G)ᵀ takes fewer multiply-adds than ((x V) Gᵀ) Uᵀ.

    Args:
        rows: rows of x.
        m: outputs; U is (m, r1).
        n: inputs, which both orders meet alike; V is (n, r2).
        r1: columns of U.
        r2: columns of V.

    Examples:
        >>> folds_left(8, 768, 768, 16, 16), folds_left(4096, 768, 768, 16, 16)
        (False, True)
    """
    return m * r1 * r2 + rows * r2 * m < rows * r1 * (r2 + m)


def folds_right(rows: int, m: int, n: int, r1: int, r2: int) -> bool:
    """Whether (x (V Gᵀ)) Uᵀ takes fewer than both other orders.

    It does where r1 is well below r2.

    Examples:
        >>> folds_right(4096, 768, 768, 4, 16), folds_right(4096, 768, 768, 16, 4)
        (True, False)
    """
    right = n * r1 * r2 + rows * r1 * (n + m)
    chain = rows * (n * r2 + r1 * r2 + r1 * m)
    left = m * r1 * r2 + rows * r2 * (n + m)
    return right < chain and right < left


def add_product(result: Tensor, inside: Tensor, u: Tensor, core: Tensor | None = None) -> Tensor:
    """Add inside (..., r2) Gᵀ uᵀ, or without a core inside (..., r1) uᵀ, to a result (..., m).

    One product that begins with the result writes one tensor of its size, not three.
    """
    if core is not None:
        (m, _), (r1, r2) = u.shape, core.shape
        if folds_left(inside.numel() // r2, m, 0, r1, r2):
            u = u @ core
        else:
            inside = functional.linear(inside, core)
    if inside.dtype != result.dtype:  # an adapter in a wider dtype than its layer
        return result + functional.linear(inside, u).to(result.dtype)
    rows = result.reshape(-1, result.shape[-1])
    return torch.addmm(rows, inside.reshape(-1, inside.shape[-1]), u.mT).reshape(result.shape)
