"""CP: a sum of terms, each one direction out, one in, and a weight a layer. The form of LoRTA."""

from dataclasses import dataclass
from typing import final

from lotr_tn._arrays import Array, namespace_of
from lotr_tn.errors import FormatError
from lotr_tn.formats.certificate import Certificate
from lotr_tn.formats.checks import require_axes, require_equal
from lotr_tn.formats.format import Format


@final
@dataclass(frozen=True, eq=False, repr=False)
class CP(Format):
    """ΔW_l = A diag(w_l) Bᵀ: R directions on each side for all L layers, and R weights a layer.

    It stores R·(m + n + L) numbers. Any side may be a product of parts, such as heads and what is
    within a head, or layers and kinds of modules: `khatri_rao` makes it of them, and `lorta` a
    whole CP of the five factors of LoRTA.

    Attributes:
        a: (m, R), the output side.
        weights: (L, R), a row a layer; ΔW_l[i, j] = Σ_r a[i, r] weights[l, r] b[j, r].
        b: (n, R), the input side.
        certificate: what was lost, where a decomposition made this stack; else None.

    Raises:
        FormatError: sizes disagree, or there is no layer.
        BackendError: the arrays differ in library, dtype or device.

    Source: Hitchcock (1927); Carroll and Chang (1970), CANDECOMP; Harshman (1970), PARAFAC. As an
    adapter Hounie et al. (2024), LoRTA, arXiv 2410.04060.

    Examples:
        >>> import numpy as np
        >>> CP(np.ones((5, 2)), np.ones((7, 2)), np.ones((4, 2))).shape
        (7, 5, 4)
    """

    a: Array
    weights: Array
    b: Array
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        namespace_of(a=self.a, weights=self.weights, b=self.b)
        require_axes("a", self.a, "(m, R)")
        require_axes("weights", self.weights, "(L, R)")
        require_axes("b", self.b, "(n, R)")
        require_equal("R", ("a", self.a.shape[1]), ("weights", self.weights.shape[1]))
        require_equal("R", ("a", self.a.shape[1]), ("b", self.b.shape[1]))
        if self.weights.shape[0] == 0:
            raise FormatError("weights must hold at least one layer; found L = 0")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, m, n)."""
        return int(self.weights.shape[0]), int(self.a.shape[0]), int(self.b.shape[0])

    @property
    def rank(self) -> int:
        """The number of terms, R."""
        return int(self.a.shape[1])
