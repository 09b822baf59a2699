"""A stack of LoRA updates with ragged ranks."""

from dataclasses import dataclass
from typing import final

from lotr_tn._arrays import Array, namespace_of
from lotr_tn.formats.certificate import Certificate
from lotr_tn.formats.checks import require_axes, require_ranks, slices_of
from lotr_tn.formats.operators import Operators


@final
@dataclass(frozen=True, eq=False, repr=False)
class LoRAStack(Operators):
    """ΔW_l = up_l down_l for L layers of one shape, each with its own rank.

    Attributes:
        up: (m, R), the output factors side by side, R = r_1 + … + r_L.
        down: (R, n), the input factors one below the other.
        ranks: (r_1, …, r_L); a rank may be 0.
        certificate: what was lost, where a truncation made this stack; else None.

    Raises:
        FormatError: sizes disagree, or there is no layer.
        BackendError: up and down differ in library, dtype or device.

    Source: Hu et al. (2021), LoRA: up is B (times its scale), down is A.

    Examples:
        >>> import numpy as np
        >>> stack = LoRAStack(np.ones((5, 3)), np.ones((3, 4)), ranks=(1, 2))
        >>> stack.shape
        (2, 5, 4)
    """

    up: Array
    down: Array
    ranks: tuple[int, ...]
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", tuple(int(r) for r in self.ranks))
        namespace_of(up=self.up, down=self.down)
        require_axes("up", self.up, "(m, R)")
        require_axes("down", self.down, "(R, n)")
        require_ranks("R", self.up, self.down, self.ranks)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, m, n)."""
        return len(self.ranks), int(self.up.shape[0]), int(self.down.shape[1])

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where each layer's rank terms lie on the axis R."""
        return slices_of(self.ranks)
