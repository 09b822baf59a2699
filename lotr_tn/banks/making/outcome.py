"""What a joint conversion made: groups, what other ways would take, and the bank itself."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lotr_tn.analysis.forms import FORMS
from lotr_tn.banks.bank import Bank, Stacking
from lotr_tn.banks.file import bank_size
from lotr_tn.banks.making.clusters import Clusters
from lotr_tn.banks.making.parts import Made
from lotr_tn.banks.making.settling import excess
from lotr_tn.banks.making.survey import Survey


@dataclass(frozen=True)
class StackChoice:
    """What one way of stacking would take.

    Attributes:
        stacking: `adapters`, `layers` or `all`.
        stacks: how many stacks it makes.
        bytes: of the whole file, made this way; None where it was not made.
        note: why it was not made.
    """

    stacking: Stacking
    stacks: int
    bytes: int | None = None
    note: str | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """Groups of a bank, made."""

    groups: tuple[Made, ...]
    stacking: Stacking
    stackings: tuple[StackChoice, ...]
    routes: Mapping[str, str]
    bytes_separate: int | None
    note: str
    clusters: Clusters
    above: float = 0.0  # the largest error over what was asked for
    file: int = 0  # bytes of the whole file

    @property
    def rank(self) -> tuple[float, int]:
        """Smaller is better: the error is met, or else is near; and then bytes."""
        return excess(self.above), self.file

    @property
    def bytes(self) -> int:
        """Bytes of all their numbers."""
        return sum(made.bytes for made in self.groups)


def sized(survey: Survey, outcome: Outcome, asked: Mapping[str, Any]) -> Outcome:
    """With the bytes of the file."""
    return replace(outcome, file=bank_size(bank_of(survey, outcome, asked)))


def bank_of(survey: Survey, made: Outcome, asked: Mapping[str, Any]) -> Bank:
    """The bank of groups that were made; its tensors are still in the spool."""
    own = made.note == "shared" and not any(FORMS[one.format].shares for one in made.groups)
    explanation = {
        "chosen": "separate" if own else made.note,
        "bytes_separate": made.bytes_separate,
        "splits": [vars(split) for split in made.clusters.splits],
    }
    labels = made.clusters.labels
    adapters = [
        replace(adapter, cluster=int(label))
        for adapter, label in zip(survey.adapters, labels, strict=True)
    ]
    groups = [replace(one.group, cluster=int(labels[one.adapters[0]])) for one in made.groups]
    return Bank(
        tuple(adapters),
        {group.name: group for group in groups},
        tuple(survey.contents.tensors),
        asked,
        made.stacking,
        explanation,
    )
