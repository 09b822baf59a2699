"""Tucker-2 with low-rank cores: a LoRA inside shared factors."""

from dataclasses import dataclass
from typing import final

from lotr_tn._arrays import Array, namespace_of
from lotr_tn.formats.certificate import Certificate
from lotr_tn.formats.checks import require_axes, require_equal, require_ranks, slices_of
from lotr_tn.formats.operators import Operators


@final
@dataclass(frozen=True, eq=False, repr=False)
class LowRankTucker2(Operators):
    """ΔW_l = U up_l down_l Vᵀ: shared factors, and a core of rank k_l for each layer.

    It stores m·r1 + n·r2 + K·(r1 + r2) numbers with K = k_1 + … + k_L. That beats Tucker-2 where
    the layers together need many directions and each of them needs few.

    Attributes:
        u: (m, r1), the output side.
        up: (r1, K), the cores' output factors side by side.
        down: (K, r2), the cores' input factors one below the other.
        v: (n, r2), the input side.
        ranks: (k_1, …, k_L); a rank may be 0.
        certificate: what was lost, where a decomposition made this stack; else None.

    Raises:
        FormatError: sizes disagree, or there is no layer.
        BackendError: the arrays differ in library, dtype or device.

    Examples:
        >>> import numpy as np
        >>> u, v = np.ones((5, 4)), np.ones((7, 6))
        >>> LowRankTucker2(u, np.ones((4, 3)), np.ones((3, 6)), v, ranks=(1, 2)).shape
        (2, 5, 7)
    """

    u: Array
    up: Array
    down: Array
    v: Array
    ranks: tuple[int, ...]
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", tuple(int(r) for r in self.ranks))
        namespace_of(u=self.u, up=self.up, down=self.down, v=self.v)
        require_axes("u", self.u, "(m, r1)")
        require_axes("up", self.up, "(r1, K)")
        require_axes("down", self.down, "(K, r2)")
        require_axes("v", self.v, "(n, r2)")
        require_equal("r1", ("u", self.u.shape[1]), ("up", self.up.shape[0]))
        require_equal("r2", ("v", self.v.shape[1]), ("down", self.down.shape[1]))
        require_ranks("K", self.up, self.down, self.ranks)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, m, n)."""
        return len(self.ranks), int(self.u.shape[0]), int(self.v.shape[0])

    @property
    def shared_ranks(self) -> tuple[int, int]:
        """(r1, r2)."""
        return int(self.u.shape[1]), int(self.v.shape[1])

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where each layer's rank terms lie on the axis K."""
        return slices_of(self.ranks)
