"""LoRA adapters to LoTR, group by group."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF, suits_float16, to_numpy
from lotr_tn.analysis.truncation import truncated_parameters
from lotr_tn.checkpoints.adapter import LoRAAdapter, LoRAGroup, LoTRAdapter, LoTRGroup
from lotr_tn.checkpoints.grouping import group_modules
from lotr_tn.decompose import hooi, hosvd, st_hosvd
from lotr_tn.errors import CheckpointError, FormatError, PrecisionWarning, RankError
from lotr_tn.formats import Certificate, LoRAStack, Tucker2
from lotr_tn.linalg.ranks import Budget, Energy, FixedRank, RankRule, RelativeError, as_rule

__all__ = ["METHODS", "Conversion", "GroupConversion", "convert_adapter"]

GroupRule: TypeAlias = FixedRank | RelativeError | Energy
Method: TypeAlias = Literal["hooi", "st-hosvd", "hosvd"]
METHODS: Mapping[str, Callable[..., Tucker2]] = MappingProxyType(
    {"hooi": hooi, "st-hosvd": st_hosvd, "hosvd": hosvd}
)

DTYPE_MARGIN = 1 / 32
"""A storage dtype is chosen for an error ε when its unit roundoff is at most this share of ε."""


@dataclass(frozen=True)
class GroupConversion:
    """What converting one group cost and lost.

    Attributes:
        name: the group.
        shape: (L, m, n).
        parameters_before: entries of its LoRA factors.
        parameters_after: entries of its shared factors and cores.
        parameters_truncated: entries that the cheapest per-layer rank truncation would need to
            reach the same relative error.
        certificate: the measured errors and their bounds.
        ranks: (r1, r2).
        modules: the modules' paths in stack order.
        met: whether the rank rule was met.
    """

    name: str
    shape: tuple[int, int, int]
    parameters_before: int
    parameters_after: int
    parameters_truncated: int
    certificate: Certificate
    ranks: tuple[int, int]
    modules: tuple[str, ...]
    met: bool


@dataclass(frozen=True)
class Conversion:
    """A converted adapter, and what each group cost and lost."""

    adapter: LoTRAdapter
    groups: tuple[GroupConversion, ...]

    @property
    def relative_error(self) -> float:
        """‖T − T̂‖ / ‖T‖ of all converted updates together."""
        lost = np.array([group.certificate.distance for group in self.groups])
        size = np.array([group.certificate.norm for group in self.groups])
        return float(np.linalg.norm(lost) / np.linalg.norm(size)) if size.any() else 0.0

    @property
    def met(self) -> bool:
        """Whether every group met the rank rule."""
        return all(group.met for group in self.groups)

    def total(self, field: str) -> int:
        """The sum over the groups of a count, such as `parameters_after`."""
        return sum(getattr(group, field) for group in self.groups)


def convert_adapter(
    adapter: LoRAAdapter,
    ranks: RankRule | int | tuple[int, int],
    *,
    method: Method = "hooi",
    group_by: str = "kind",
    dtype: str = "auto",
    backend: str = "numpy",
    device: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Conversion:
    """Convert a LoRA adapter to LoTR: each group of modules gets one pair of shared factors.

    Args:
        adapter: a LoRA adapter, as `load_adapter` gives it.
        ranks: the ranks, or the rule, of every group.
        method: `hooi`, `st-hosvd` or `hosvd`.
        group_by: `kind`, `shape` or a regular expression; see `group_modules`.
        dtype: storage dtype, or `auto`: the adapter's own where its rounding is at most 1/32 of
            the error asked for, else float32, else float64.
        backend: `numpy` or `torch`, which computes; the result is on NumPy.
        device: a device of the backend.
        progress: called with each group's name before it is converted.

    Returns:
        The adapter and the figures of each group.

    Raises:
        CheckpointError: the adapter is LoTR already.
        BackendError, RankError: as the decompositions raise them.

    Cost: that of the decomposition of each group; memory of one group's factors at a time, beside
    the result.
    """
    if not isinstance(adapter, LoRAAdapter):
        raise CheckpointError(
            f"{adapter.source} is a LoTR file already; export it to LoRA first to convert it anew"
        )
    rule = as_rule(ranks)
    if isinstance(rule, Budget):
        raise RankError(
            "a Budget is for one stack, and this adapter has several groups; give ranks, an error, "
            "or an energy"
        )
    chosen = _storage_dtype(adapter.dtype, rule) if dtype == "auto" else dtype
    groups: dict[str, LoTRGroup] = {}
    reports = []
    for name, group in group_modules(adapter, group_by).items():
        if progress is not None:
            progress(name)
        assert isinstance(group, LoRAGroup)
        source = group.to_stack(backend, device)
        stack = _compress_as(source, rule, METHODS[method], chosen, may_widen=dtype == "auto")
        groups[name] = LoTRGroup(name, group.targets, stack)
        reports.append(_report(group, source, stack, rule))
    origin = {"format": "peft-lora", "dtype": adapter.dtype, "group_by": group_by}
    converted = LoTRAdapter(groups, adapter.extras, adapter.config_text, origin)
    return Conversion(converted, tuple(reports))


def _storage_dtype(own: str, rule: GroupRule) -> str:
    if isinstance(rule, FixedRank):
        return own
    for dtype in (own, "float32"):
        if UNIT_ROUNDOFF[dtype] <= DTYPE_MARGIN * rule.epsilon:
            return dtype
    return "float64" if rule.epsilon or own == "float64" else "float32"


def _compress_as(
    source: LoRAStack,
    rule: GroupRule,
    decompose: Callable[..., Tucker2],
    dtype: str,
    *,
    may_widen: bool,
) -> Tucker2:
    """Compress, and where `may_widen`, again in float32 if float16 has no room for the cores."""
    try:
        stack = _compress(source, rule, decompose, dtype)
        if dtype != "float16" or not may_widen or all(map(suits_float16, stack.core)):
            return stack
    except FormatError:
        if not may_widen:
            raise
    return _compress(source, rule, decompose, "float32")


def _compress(
    source: LoRAStack, rule: GroupRule, decompose: Callable[..., Tucker2], dtype: str
) -> Tucker2:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)  # reported by `met`
        stack = decompose(source, rule, dtype=dtype)
    certificate = stack.certificate
    assert certificate is not None
    on_host = dataclasses.replace(
        certificate,
        distances=to_numpy(certificate.distances),
        norms=to_numpy(certificate.norms),
        lower=np.float64(float(certificate.lower)),
        upper=np.float64(float(certificate.upper)),
    )
    return Tucker2(to_numpy(stack.u), to_numpy(stack.core), to_numpy(stack.v), on_host)


def _report(
    group: LoRAGroup, source: LoRAStack, stack: Tucker2, rule: GroupRule
) -> GroupConversion:
    certificate = stack.certificate
    assert certificate is not None
    error = certificate.relative_error
    met = isinstance(rule, FixedRank) or rule.epsilon == 0 or error <= rule.epsilon
    return GroupConversion(
        name=group.name,
        shape=group.shape,
        parameters_before=sum(module.stored for module in group.modules),
        parameters_after=sum(array.size for array in (stack.u, stack.core, stack.v)),
        parameters_truncated=truncated_parameters(source, error),
        certificate=certificate,
        ranks=stack.ranks,
        modules=tuple(target.name for target in group.targets),
        met=met,
    )
