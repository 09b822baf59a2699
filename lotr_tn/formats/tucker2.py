"""Tucker-2: the form of LoTR."""

from dataclasses import dataclass
from typing import final

from lotr_tn._arrays import Array, namespace_of
from lotr_tn.errors import FormatError
from lotr_tn.formats.certificate import Certificate
from lotr_tn.formats.checks import require_axes, require_equal
from lotr_tn.formats.operators import Operators


@final
@dataclass(frozen=True, eq=False, repr=False)
class Tucker2(Operators):
    """ΔW_l = U G_l Vᵀ: two factors shared by all L layers, and one small core each.

    Attributes:
        u: (m, r1), the output side.
        core: (L, r1, r2), one core G_l a layer; ΔW_l[i, j] = Σ_pq u[i, p] core[l, p, q] v[j, q].
        v: (n, r2), the input side.
        certificate: what was lost, where a decomposition made this stack; else None.

    Raises:
        FormatError: sizes disagree, or there is no layer.
        BackendError: the arrays differ in library, dtype or device.

    Source: Bershatsky et al. (2024), LoTR, arXiv 2402.01376.

    Examples:
        >>> import numpy as np
        >>> Tucker2(np.ones((5, 2)), np.ones((7, 2, 3)), np.ones((4, 3))).shape
        (7, 5, 4)
    """

    u: Array
    core: Array
    v: Array
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        namespace_of(u=self.u, core=self.core, v=self.v)
        require_axes("u", self.u, "(m, r1)")
        require_axes("core", self.core, "(L, r1, r2)")
        require_axes("v", self.v, "(n, r2)")
        require_equal("r1", ("u", self.u.shape[1]), ("core", self.core.shape[1]))
        require_equal("r2", ("v", self.v.shape[1]), ("core", self.core.shape[2]))
        if self.core.shape[0] == 0:
            raise FormatError("core must hold at least one layer; found L = 0")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, m, n)."""
        return int(self.core.shape[0]), int(self.u.shape[0]), int(self.v.shape[0])

    @property
    def ranks(self) -> tuple[int, int]:
        """(r1, r2)."""
        return int(self.core.shape[1]), int(self.core.shape[2])
