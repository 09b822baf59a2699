"""What a conversion made, cost and lost."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lotr_tn._shown import Shown, lines_of
from lotr_tn.adapters.adapter import LoTRAdapter
from lotr_tn.analysis.forms import FormatName
from lotr_tn.errors import printable
from lotr_tn.formats import Certificate


@dataclass(frozen=True)
class GroupConversion:
    """What converting one group cost and lost.

    Attributes:
        name: the group.
        shape: (L, m, n).
        parameters_before: entries of its LoRA factors.
        parameters_after: entries stored for it.
        parameters_truncated: entries that the cheapest per-layer rank truncation would need to
            reach the same relative error.
        certificate: the measured errors and their bounds.
        ranks: (r1, r2) of a LoTR, and with low-rank cores then each core's; r of one shared side;
            else each layer's rank.
        bytes_before: of its LoRA factors.
        bytes_after: of what is stored for it.
        modules: the modules' paths in stack order.
        met: whether the rank rule was met.
        format: in which it is stored.
        coded: whether it is stored in bits.
    """

    name: str
    shape: tuple[int, int, int]
    parameters_before: int
    parameters_after: int
    parameters_truncated: int
    certificate: Certificate
    ranks: tuple[int, ...]
    bytes_before: int
    bytes_after: int
    modules: tuple[str, ...]
    met: bool
    format: FormatName = "lotr"
    coded: bool = False


@dataclass(frozen=True, repr=False)
class Conversion(Shown):
    """A converted adapter, and what each group cost and lost.

    Attributes:
        adapter: the adapter.
        groups: the figures of each group.
        met: whether the rule was met.
        bound: where a budget or an error was divided over the groups, what no other division of
            the same groups goes below: the relative error for a budget, the bytes for an error;
            else None.
        bound_unit: `relative error` or `bytes`.
        bound_forms: the forms that the bound covers.
    """

    adapter: LoTRAdapter
    groups: tuple[GroupConversion, ...]
    met: bool = True
    bound: float | None = None
    bound_unit: Literal["bytes", "relative error"] | None = None
    bound_forms: tuple[FormatName, ...] = ()

    def __repr__(self) -> str:
        before, after = self.total("parameters_before"), self.total("parameters_after")
        met = "" if self.met else ", not what was asked"
        head = f"relative error {self.relative_error:.3g}, {before:,} -> {after:,} parameters{met}"
        return lines_of(
            f"Conversion({head})",
            (
                f"{printable(group.name)}: {group.format}{', coded' * group.coded}, "
                f"ranks {group.ranks}, "
                f"relative error {group.certificate.relative_error:.3g}"
                for group in self.groups
            ),
        )

    @property
    def relative_error(self) -> float:
        """‖T − T̂‖ / ‖T‖ of all converted updates together."""
        lost = np.array([group.certificate.distance for group in self.groups])
        size = np.array([group.certificate.norm for group in self.groups])
        return float(np.linalg.norm(lost) / np.linalg.norm(size)) if size.any() else 0.0

    @property
    def bytes_before(self) -> int:
        """Bytes of the LoRA factors of all groups."""
        return sum(group.bytes_before for group in self.groups)

    @property
    def bytes_after(self) -> int:
        """Bytes of what is stored for all groups, without header and other tensors."""
        return sum(group.bytes_after for group in self.groups)

    def total(self, field: str) -> int:
        """The sum over the groups of a count, such as `parameters_after`."""
        return sum(getattr(group, field) for group in self.groups)
