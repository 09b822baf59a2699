"""Tensor trains: a chain of small cores in place of every matrix."""

import itertools
import math
from dataclasses import dataclass
from typing import final

from lotr_tn._arrays import Array, namespace_of
from lotr_tn.errors import FormatError
from lotr_tn.formats.certificate import Certificate
from lotr_tn.formats.checks import require_axes
from lotr_tn.formats.format import Format

Sides = tuple[tuple[int, ...], tuple[int, ...]]
"""Sizes of the legs of the rows, and of those of the columns."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class TensorTrain(Format):
    """ΔW_l[i, j] = G¹_l[i_1, j_1] G²_l[i_2, j_2] … Gᴷ_l[i_K, j_K], a product of small matrices.

    Core k has a leg of size o_k, a digit of the row index, and one of size n_k, a digit of the
    column index; a leg of size 1 is none. With the out legs before the in legs (or behind them)
    each layer is a LoRA whose rank is the bond in the middle, as TT-LoRA has it. Where cores have
    both, it is a matrix product operator (MPO), and has full rank.

    Layers have trains of their own; a core of leading size 1 is the same in all of them. A layer
    of lower bonds than the others is filled up with zeros.

    Attributes:
        cores: each (L or 1, r_{k-1}, o_k, n_k, r_k), with r_0 = r_K = 1; a bond may be 0.
        out_order: the cores in the order in which their out legs make the row index, the slowest
            digit first; that of the train where left out.
        in_order: the same of the in legs and the column index.
        certificate: what was lost, where a decomposition made this stack; else None.

    Raises:
        FormatError: there is no core, sizes of neighbours disagree, or an order is none.
        BackendError: the cores differ in library, dtype or device.

    Source: Oseledets (2011), tensor trains; TT-LoRA (arXiv 2408.01008), MPOP (arXiv 2106.02205).

    Examples:
        >>> import numpy as np
        >>> shapes = (3, 1, 4, 1, 2), (3, 2, 5, 1, 2), (3, 2, 1, 6, 1)
        >>> train = TensorTrain(tuple(map(np.ones, shapes)))
        >>> train.shape, train.ranks, train.out, train.into
        ((3, 20, 6), (2, 2), (4, 5), (6,))
    """

    cores: tuple[Array, ...]
    out_order: tuple[int, ...] = ()
    in_order: tuple[int, ...] = ()
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cores", tuple(self.cores))
        if not self.cores:
            raise FormatError("cores must hold at least one core; found none")
        namespace_of(**{f"cores.{k}": core for k, core in enumerate(self.cores)})
        for k, core in enumerate(self.cores):
            require_axes(f"cores.{k}", core, "(L, r, out, in, r')")
        self._require_chain()
        for name in ("out_order", "in_order"):
            given = tuple(int(k) for k in getattr(self, name))
            order = given or tuple(range(len(self.cores)))
            if sorted(order) != list(range(len(self.cores))):
                raise FormatError(
                    f"{name} must name each of {len(self.cores)} cores once; found {order}"
                )
            object.__setattr__(self, name, order)

    def _require_chain(self) -> None:
        bonds = [1, *self.ranks, 1]
        for k, (core, (left, right)) in enumerate(
            zip(self.cores, itertools.pairwise(bonds), strict=True)
        ):
            found = int(core.shape[1]), int(core.shape[4])
            if found != (left, right):
                raise FormatError(
                    f"cores.{k} must have the bonds ({left}, {right}) of its neighbours; found "
                    f"{found}"
                )
        layers = {int(core.shape[0]) for core in self.cores}
        if len(layers - {1}) > 1 or 0 in layers:
            raise FormatError(
                f"cores must have one number of layers, or 1 where all share; found "
                f"{sorted(layers)}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, m, n)."""
        layers = max(int(core.shape[0]) for core in self.cores)
        m, n = (math.prod(int(core.shape[axis]) for core in self.cores) for axis in (2, 3))
        return layers, m, n

    @property
    def ranks(self) -> tuple[int, ...]:
        """The bonds r_1 … r_{K-1} between the cores."""
        return tuple(int(core.shape[4]) for core in self.cores[:-1])

    @property
    def legs(self) -> tuple[tuple[int, int], ...]:
        """(o_k, n_k) of every core."""
        return tuple((int(core.shape[2]), int(core.shape[3])) for core in self.cores)

    @property
    def out(self) -> tuple[int, ...]:
        """The digits of the row index, the slowest first."""
        return tuple(self.legs[k][0] for k in self.out_order if self.legs[k][0] != 1)

    @property
    def into(self) -> tuple[int, ...]:
        """The digits of the column index, the slowest first."""
        return tuple(self.legs[k][1] for k in self.in_order if self.legs[k][1] != 1)

    @property
    def middle(self) -> int | None:
        """How many cores stand before the bond between out legs and in legs; None if none does.

        Of several the one of the smallest bond.
        """
        sides = [(o != 1, n != 1) for o, n in self.legs]
        bonds = (1, *self.ranks, 1)
        apart = [
            cut
            for cut in range(len(sides) + 1)
            if not (_any(sides[:cut], 0) and _any(sides[:cut], 1))
            and not (_any(sides[cut:], 0) and _any(sides[cut:], 1))
            and not (_any(sides[:cut], 0) and _any(sides[cut:], 0))
            and not (_any(sides[:cut], 1) and _any(sides[cut:], 1))
        ]
        return min(apart, key=lambda cut: bonds[cut], default=None)


def _any(sides: list[tuple[bool, bool]], side: int) -> bool:
    return any(each[side] for each in sides)
