"""A stack of plain matrices, for small inputs and as the oracle of every other format."""

from dataclasses import dataclass
from typing import final

from lotr_tn._arrays import Array, namespace_of
from lotr_tn.errors import FormatError
from lotr_tn.formats.checks import require_axes
from lotr_tn.formats.operators import Operators


@final
@dataclass(frozen=True, eq=False, repr=False)
class Dense(Operators):
    """ΔW_l as it is.

    Attributes:
        w: (L, m, n).

    Raises:
        FormatError: w has not three axes, or there is no layer.
        BackendError: w is not an array of real floats.
    """

    w: Array

    def __post_init__(self) -> None:
        namespace_of(w=self.w)
        require_axes("w", self.w, "(L, m, n)")
        if self.w.shape[0] == 0:
            raise FormatError("w must hold at least one layer; found L = 0")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, m, n)."""
        return int(self.w.shape[0]), int(self.w.shape[1]), int(self.w.shape[2])
