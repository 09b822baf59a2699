"""What an analysis found: groups, ways of stacking, and what each form would cost and lose."""

from dataclasses import dataclass

from lotr_tn._shown import Shown, lines_of
from lotr_tn.adapters.question import Rule
from lotr_tn.adapters.stackings import StackedGroup
from lotr_tn.analysis.candidates import Candidate, Subject, joint_error
from lotr_tn.analysis.choice import Choice
from lotr_tn.analysis.clustering import Clustering
from lotr_tn.analysis.division import bounded
from lotr_tn.analysis.forms import LORA, FormatName
from lotr_tn.analysis.subspaces import Overlaps
from lotr_tn.errors import printable
from lotr_tn.inspection.bits import BitsCurve


@dataclass(frozen=True, eq=False)
class GroupAnalysis:
    """One stack of modules.

    Attributes:
        stacked: its modules and labels.
        subject: its coordinates and curves.
        choice: the format chosen for it, and the others.
        overlaps: of its layers' subspaces.
        clustering: which layers belong together, at this group's error.
    """

    stacked: StackedGroup
    subject: Subject
    choice: Choice
    overlaps: Overlaps
    clustering: Clustering

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, m, n)."""
        return self.stacked.group.shape


@dataclass(frozen=True)
class StackingCost:
    """What one way of stacking all modules would store, with the best format for each stack.

    Attributes:
        stacking: its name.
        label: the same in words.
        stacks: how many stacks it makes.
        parameters: numbers stored; None where it was not measured.
        bytes: of the file, everything in it counted.
        relative_error: of all updates together, measured.
        chosen: whether the groups of the analysis are stacked this way.
        note: why it was not measured.
    """

    stacking: str
    label: str
    stacks: int
    parameters: int | None = None
    bytes: int | None = None
    relative_error: float | None = None
    chosen: bool = False
    note: str | None = None


@dataclass(frozen=True)
class BankCost:
    """What one bank of several adapters takes, each of them within the error asked for.

    Attributes:
        bytes: of the file.
        update_bytes: of the numbers of all its stacks.
        parameters: these numbers.
        relative_error: of the worst adapter, or of all together where that was asked.
        stacking: `adapters`, `layers` or `all`.
        met: whether the error is kept to.
    """

    bytes: int
    update_bytes: int
    parameters: int
    relative_error: float
    stacking: str
    met: bool


@dataclass(frozen=True, eq=False)
class BitsCost:
    """What an adapter takes whose groups are held in bits where that takes less.

    Attributes:
        bytes: of the file.
        update_bytes: of its updates.
        relative_error: of all updates together, measured.
        curves: what it would take at other errors, by one step for all updates, and what each group
            would by a step of its own; None where there is nothing to code.
    """

    bytes: int
    update_bytes: int
    relative_error: float
    curves: tuple[BitsCurve, ...] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Analysis(Shown):
    """Adapters of one base, before anything is converted.

    Attributes:
        sources: where they were read from.
        base_model: the base that their configuration names.
        question: what was asked.
        dtype: in which all candidates but the LoRA as it is would be stored.
        groups: the stacks, by the best way of stacking where there are several adapters.
        stackings: all ways of stacking.
        path: for growing budgets the best candidate of every group.
        met: whether the question can be met.
        bound: where a budget or an error is divided over the groups, what no other choice of
            formats and ranks goes below: the relative error for a budget, the bytes for an error.
        seconds: it took.
        bank: of several adapters and an error, the bank that `lotr bank make` writes.
        lotr_sources: those of the sources that are LoTR already, which are looked at as LoRA.
        in_bits: of one adapter, the file that `coding="auto"` makes, where that was asked for.
    """

    sources: tuple[str, ...]
    base_model: str | None
    question: Rule
    dtype: str
    groups: tuple[GroupAnalysis, ...]
    stackings: tuple[StackingCost, ...]
    path: tuple[tuple[Candidate, ...], ...]
    met: bool
    seconds: float
    bound: float | None = None
    bank: BankCost | None = None
    lotr_sources: tuple[str, ...] = ()
    in_bits: BitsCost | None = None

    def __repr__(self) -> str:
        modules = sum(group.shape[0] for group in self.groups)
        of = f"{len(self.sources)} adapters" if len(self.sources) > 1 else "an adapter"
        return lines_of(
            f"Analysis({modules} modules of {of}, {self.parameters:,} parameters, {self.question})",
            (
                f"{printable(group.stacked.group.name)}: {group.choice.candidate.format}"
                for group in self.groups
            ),
        )

    @property
    def bound_forms(self) -> tuple[FormatName, ...]:
        """The forms that the bound covers."""
        return () if self.bound is None else bounded(self.groups[0].subject.curves)

    @property
    def parameters(self) -> int:
        """Numbers that the LoRAs store."""
        return sum(group.subject.stored for group in self.groups)

    @property
    def bytes(self) -> int:
        """Bytes that these take."""
        return sum(
            group.subject.bytes_of(LORA.name, group.subject.stored, self.dtype)
            for group in self.groups
        )

    @property
    def written(self) -> int:
        """Bytes of the file that holds what is recommended: updates, header and all else."""
        (chosen,) = (way for way in self.stackings if way.chosen)
        assert chosen.bytes is not None
        return chosen.bytes

    @property
    def relative_error(self) -> float:
        """Of all updates together, with the candidates chosen."""
        return joint_error(
            [group.choice.candidate for group in self.groups],
            [group.subject for group in self.groups],
        )
