"""A bank made anew from what it holds, with the errors of both steps accounted for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.adapters.adapter import LoRAAdapter
from lotr_tn.adapters.as_lora import to_lora
from lotr_tn.adapters.storage import other_dtypes_for
from lotr_tn.analysis.forms import FORMS, Options, auto_forms
from lotr_tn.banks.bank import Bank, Stacking
from lotr_tn.banks.file import bank_size, load_bank, save_bank
from lotr_tn.banks.group import ADAPTER, DISTANCE, DRIFT, MODULE, NORM, RANK, BankGroup, Part
from lotr_tn.banks.making.conversion import STACKINGS
from lotr_tn.banks.making.joint import Job
from lotr_tn.banks.making.outcome import bank_of
from lotr_tn.banks.making.survey import survey_of
from lotr_tn.errors import OptionError
from lotr_tn.files.locking import exclusive
from lotr_tn.files.spool import Spool
from lotr_tn.linalg.ranks import RelativeError
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.stacking import take_layers

LEAST = 4
"""Unit roundoffs of the storage dtype that an adapter without any error left may drift, relative to
its norm: bases cannot be written anew for less."""


@dataclass(frozen=True, eq=False)
class Compacted:
    """A bank that was made anew.

    Attributes:
        bank: the bank, opened again.
        bytes_before: of the file.
        bytes_after: of the file; the same where nothing was gained, and nothing was changed.
        met: whether every adapter's accumulated bound keeps to the error.
    """

    bank: Bank
    bytes_before: int
    bytes_after: int
    met: bool


@door
def compact_bank(
    path: str | Path,
    *,
    rule: RelativeError | None = None,
    progress: Callable[[str], None] | None = None,
) -> Compacted:
    """Find bases and ranks anew for what a bank holds, after many appends and drops.

    The originals are gone, so an adapter's error is bounded, not measured: it is at most its error
    when it was stored, which was measured, and what compacting moved it since, which is measured
    too. Both are stored, and their sum is kept to the error asked for. An adapter that has used up
    its error may only drift by rounding, four unit roundoffs of the storage dtype.

    Args:
        path: the bank; it is replaced when everything is written, and meanwhile locked.
        rule: the error that each adapter may have in all; the one that the bank was made for where
            left out. A larger one makes a smaller bank.
        progress: called with the name of each adapter and stack.

    Raises:
        OptionError: no error was given, and the bank was not made for one.
        CheckpointError: the bank is damaged, or being changed by another process.

    Cost: that of a joint conversion of all adapters.
    """
    with exclusive(Path(path)) as real:
        bank = load_bank(real)
        rule = bank.error_asked(rule, "its adapters may have in all")
        before = real.stat().st_size
        with Spool(real.parent) as spool:
            # from now on the bank is for the larger of both errors
            error = max(float(bank.asked.get("relative_error") or 0.0), rule.epsilon)
            asked = {**bank.asked, "relative_error": error}
            made = replace(_made_anew(bank, rule, spool, progress), asked=asked)
            if bank_size(made) < before:
                save_bank(made, real, force=True)
    after = load_bank(path)
    worst = max(after.figures(name).bound for name in after.names)
    met = worst <= rule.epsilon + LEAST * UNIT_ROUNDOFF[after.dtype]
    return Compacted(after, before, Path(path).stat().st_size, met)


class _Expanded(Mapping[str, LoRAAdapter]):
    """The adapters of a bank as LoRAs in float64, one at a time."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank

    def __getitem__(self, name: str) -> LoRAAdapter:
        return to_lora(self.bank[name], ranks="minimal", dtype="float64").adapter

    def __iter__(self) -> Iterator[str]:
        return iter(self.bank)

    def __len__(self) -> int:
        return len(self.bank)


def _made_anew(
    bank: Bank, rule: RelativeError, spool: Spool, progress: Callable[[str], None] | None
) -> Bank:
    if not rule.epsilon:
        raise OptionError("compacting at an error of 0 changes nothing; ask for a larger one")
    survey = survey_of(_Expanded(bank), spool, packs=bank.in_bits, any_base=True, progress=progress)
    allowed = _allowed_drift(bank, rule.epsilon)
    energies = (allowed / rule.epsilon) ** 2
    # not as they are: expanded, they are large
    forms = tuple(form for form in auto_forms() if not FORMS[form].kept)
    norms, each = bank.norms, np.full(len(bank), rule.epsilon)
    least = np.divide(allowed, norms, out=each, where=norms > 0).min()
    narrower = other_dtypes_for(bank.dtype, RelativeError(float(least)))
    options = Options(forms, bank.dtype, others=narrower)
    clusters = bool(bank.asked.get("cluster", True))
    none = 0, 0
    job = Job(
        survey,
        energies,
        rule,
        True,
        options,
        "auto",
        none,
        "kind",
        clusters,
        bank.asked,
        progress,
        "auto" if bank.in_bits else "none",
    )
    # the way of the first adapters need not be the best of all that came since
    ways: tuple[Stacking, ...] = (
        bank.stacking,
        *(way for way in STACKINGS if way != bank.stacking),
    )
    anew = bank_of(survey, job.made(ways), bank.asked)
    pairs = zip(bank.adapters, anew.adapters, strict=True)
    adapters = tuple(replace(adapter, cluster=new.cluster) for adapter, new in pairs)
    return _with_drift(bank, replace(anew, adapters=adapters, contents=bank.contents))


def _allowed_drift(bank: Bank, epsilon: float) -> np.ndarray:
    """(N,) how far each adapter may move: what its bound leaves of the error, or rounding."""
    norms = bank.norms
    bounds = np.array([bank.figures(name).bound for name in bank.names]) * norms
    floor = LEAST * UNIT_ROUNDOFF[bank.dtype] * norms
    return np.maximum((epsilon * norms - bounds) * (1 - 1e-6), floor)


def _with_drift(old: Bank, new: Bank) -> Bank:
    """The new bank with the old one's figures, and how far every layer moved beside."""
    known: dict[tuple[int, str], np.ndarray] = {}
    ranks: dict[tuple[int, str], int] = {}
    for group, part in old.parts:
        for row, key in enumerate(_layers(group, part)):
            known[key], ranks[key] = part.figures[row], int(part.index[row, RANK])
    moved = {module: _moves(old, new, module) for module in new.modules}

    def with_drift(group: BankGroup, part: Part) -> Part:
        keys = _layers(group, part)
        index, figures = part.index.copy(), part.figures.copy()
        index[:, RANK] = [ranks[key] for key in keys]
        was = np.array([known[key] for key in keys])
        figures[:, [DISTANCE, NORM]] = was[:, [DISTANCE, NORM]]
        figures[:, DRIFT] = was[:, DRIFT] + [moved[module][place] for place, module in keys]
        return replace(part, index=index, figures=figures)

    groups = {
        name: replace(group, parts=tuple(with_drift(group, part) for part in group.parts))
        for name, group in new.groups.items()
    }
    return replace(new, groups=groups)


def _layers(group: BankGroup, part: Part) -> list[tuple[int, str]]:
    """The adapter and module of every layer."""
    pairs = part.index[:, [ADAPTER, MODULE]].tolist()
    return [(place, group.modules[module][0]) for place, module in pairs]


def _moves(old: Bank, new: Bank, module: str) -> dict[int, float]:
    """How far each adapter's update of a module moved."""
    (before, owners), (after, others) = old.exact_stack(module), new.exact_stack(module)
    order = [owners.index(name) for name in others]
    distances = np.asarray(layer_distances(take_layers(before, order), after))
    return {old.place(name): float(d) for name, d in zip(others, distances, strict=True)}
