"""Tucker-1: one factor shared by all layers, on one side only."""

from dataclasses import dataclass
from typing import Literal, final

from lotr_tn._arrays import Array, namespace_of
from lotr_tn.errors import FormatError, OptionError
from lotr_tn.formats.certificate import Certificate
from lotr_tn.formats.checks import require_axes, require_equal
from lotr_tn.formats.operators import Operators

SharedSide = Literal["in", "out"]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Tucker1(Operators):
    """One factor for all layers on one side, and each layer's own factor on the other.

    `side="in"`: ΔW_l = own_l sharedᵀ, with V = shared (n, r) and own (L, m, r).
    `side="out"`: ΔW_l = shared own_lᵀ, with U = shared (m, r) and own (L, n, r).

    It stores n·r + L·m·r numbers (or m·r + L·n·r). That beats Tucker-2 where layers are few, or
    where the shared side is much the wider one.

    Attributes:
        shared: (n, r) for side "in", (m, r) for side "out".
        own: (L, m, r) for side "in", (L, n, r) for side "out".
        side: which side the layers share, "in" or "out".
        certificate: what was lost, where a decomposition made this stack; else None.

    Raises:
        FormatError: sizes disagree, or there is no layer.
        OptionError: side is neither "in" nor "out".
        BackendError: the arrays differ in library, dtype or device.

    Source: Tucker (1966); one shared side is also known as Tucker-1.

    Examples:
        >>> import numpy as np
        >>> Tucker1(np.ones((4, 2)), np.ones((7, 5, 2)), "in").shape
        (7, 5, 4)
    """

    shared: Array
    own: Array
    side: SharedSide = "in"
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        namespace_of(shared=self.shared, own=self.own)
        if self.side not in ("in", "out"):
            raise OptionError(f'side must be "in" or "out"; found {self.side!r}')
        wide, long = ("n", "m") if self.side == "in" else ("m", "n")
        require_axes("shared", self.shared, f"({wide}, r)")
        require_axes("own", self.own, f"(L, {long}, r)")
        require_equal("r", ("shared", self.shared.shape[1]), ("own", self.own.shape[2]))
        if self.own.shape[0] == 0:
            raise FormatError("own must hold at least one layer; found L = 0")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, m, n)."""
        layers, own, shared = *self.own.shape[:2], self.shared.shape[0]
        m, n = (own, shared) if self.side == "in" else (shared, own)
        return int(layers), int(m), int(n)

    @property
    def rank(self) -> int:
        """The number of shared directions, r."""
        return int(self.shared.shape[1])
