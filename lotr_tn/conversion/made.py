"""Groups that a conversion has made, and which of two conversions is better."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lotr_tn._arrays import to_numpy
from lotr_tn.adapters.adapter import (
    Compressed,
    LoRAAdapter,
    LoRAGroup,
    LoTRAdapter,
    LoTRGroup,
    is_coded,
)
from lotr_tn.adapters.storage import AdapterRule, format_of, stored_ranks
from lotr_tn.analysis.choice import Choice
from lotr_tn.analysis.forms import FORMS
from lotr_tn.analysis.truncation import cut_parameters
from lotr_tn.conversion.outcome import GroupConversion
from lotr_tn.files.dialects.native import native_size
from lotr_tn.formats import Certificate
from lotr_tn.linalg.ranks import ITEM_SIZES, Budget
from lotr_tn.ops.arrays import arrays_of, with_arrays
from lotr_tn.ops.norms import layer_norms


@dataclass(frozen=True, eq=False)
class Made:
    """A group before and after, with the losses of cutting each layer's own rank."""

    group: LoRAGroup
    made: LoTRGroup | LoRAGroup
    tails: np.ndarray
    met: bool

    def named(self, name: str) -> "Made":
        """The same by another name."""
        group, made = replace(self.group, name=name), replace(self.made, name=name)
        return replace(self, group=group, made=made)

    @property
    def report(self) -> GroupConversion:
        """What making it cost and lost."""
        certificate, group = certificate_of(self.made), self.group
        truncated = cut_parameters(self.tails, group.shape, certificate.relative_error)
        return GroupConversion(
            name=group.name,
            shape=group.shape,
            parameters_before=group.stored,
            parameters_after=self.made.stored,
            parameters_truncated=truncated,
            certificate=certificate,
            ranks=tuple(stored_ranks(self.made)),
            bytes_before=group.stored * ITEM_SIZES[group.dtype],
            bytes_after=self.made.nbytes,
            modules=tuple(target.name for target in group.targets),
            met=self.met,
            format=format_of(self.made),
            coded=is_coded(self.made),
        )


def certificate_of(made: LoTRGroup | LoRAGroup) -> Certificate:
    """What was lost, of a group that was made."""
    certificate = made.certificate
    assert certificate is not None
    return certificate


def energy_of(made: LoTRGroup | LoRAGroup) -> float:
    """‖T‖²."""
    return float((certificate_of(made).norms ** 2).sum())


def chosen_group(group: LoRAGroup, choice: Choice) -> LoTRGroup | LoRAGroup:
    """The group in the form that was chosen for it."""
    if FORMS[choice.candidate.format].kept:
        return kept_as_is(group, choice.stack)
    return stored_group(group, choice.stack)


def chosen_size(
    adapter: LoRAAdapter,
    groups: Iterable[LoRAGroup],
    choices: Sequence[Choice],
    group_by: str,
    kept: Iterable[LoTRGroup | LoRAGroup] = (),
) -> int:
    """The bytes of the file of an adapter's groups, in the forms that were chosen for them."""
    made = [chosen_group(*pair) for pair in zip(groups, choices, strict=True)]
    found = {one.name: one for one in (*made, *kept)}
    return native_size(LoTRAdapter.of_lora(adapter, found, group_by))


def kept_as_is(group: LoRAGroup, stack: Compressed) -> LoRAGroup:
    """The group with its own factors, and a certificate that nothing is lost."""
    norms = to_numpy(layer_norms(stack))
    nothing = np.float64(0.0)
    certificate = Certificate(np.zeros_like(norms), norms, nothing, nothing, "as it is", 0)
    return LoRAGroup(group.name, group.modules, certificate)


def stored_group(group: LoRAGroup, stack: Compressed) -> LoTRGroup:
    """The group as a compressed stack on NumPy."""
    certificate = stack.certificate
    assert certificate is not None
    on_host = replace(
        certificate,
        distances=to_numpy(certificate.distances),
        norms=to_numpy(certificate.norms),
        lower=np.float64(float(certificate.lower)),
        upper=np.float64(float(certificate.upper)),
    )
    arrays = {name: to_numpy(array) for name, array in arrays_of(stack).items()}
    on_numpy = replace(with_arrays(stack, **arrays), certificate=on_host)
    return LoTRGroup(group.name, group.targets, on_numpy)


def rank_of(rule: AdapterRule, size: int, error: float, met: bool) -> tuple[float, ...]:
    """Smaller is better: met, a smaller file, and for a budget a smaller error first.

    Errors that differ by rounding alone are equal.
    """
    error = float(f"{error:.9e}")
    return (not met, error, size) if isinstance(rule, Budget) else (not met, size, error)
