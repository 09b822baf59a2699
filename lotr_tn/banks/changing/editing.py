"""Adapters of a bank dropped and renamed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lotr_tn._arguments import door
from lotr_tn.banks.bank import Bank
from lotr_tn.banks.coded import CODED
from lotr_tn.banks.file import load_bank, save_bank
from lotr_tn.banks.group import ADAPTER, Part
from lotr_tn.errors import CheckpointError
from lotr_tn.files.bank_tensor import BankTensor
from lotr_tn.files.locking import exclusive


@dataclass(frozen=True, eq=False)
class Edited:
    """A bank that was changed.

    Attributes:
        bank: the bank, opened again.
        bytes_before: of the file.
        bytes_after: of the file.
    """

    bank: Bank
    bytes_before: int
    bytes_after: int


@door
def drop_adapters(path: str | Path, names: Sequence[str]) -> Edited:
    """Remove adapters from a bank; the others come out as before, bit for bit.

    Their cores and what only they hold beside updates are removed. Bases stay as they are: what
    they could do without, `compact_bank` finds.

    Args:
        path: the bank; it is replaced when everything is written, and meanwhile locked.
        names: the adapters, not all of the bank's.

    Raises:
        CheckpointError: there is no such adapter, none would be left, or the bank is being changed
            by another process.

    Cost: the file is copied.
    """
    return _edited(path, lambda bank: _without(bank, names))


@door
def rename_adapter(path: str | Path, old: str, new: str) -> Edited:
    """Give an adapter of a bank another name.

    Args:
        path: the bank; it is replaced when everything is written, and meanwhile locked.
        old: its name.
        new: its new name.

    Raises:
        CheckpointError: there is no such adapter, the new name is taken, or the bank is being
            changed by another process.

    Cost: the file is copied.
    """
    return _edited(path, lambda bank: _renamed(bank, old, new))


def _edited(path: str | Path, change: Callable[[Bank], Bank]) -> Edited:
    with exclusive(Path(path)) as real:
        size = real.stat().st_size
        save_bank(change(load_bank(real)), real, force=True)
    return Edited(load_bank(path), size, Path(path).stat().st_size)


def _renamed(bank: Bank, old: str, new: str) -> Bank:
    place = bank.place(old)
    if new in bank.names:
        raise CheckpointError(
            f"{bank.source} holds an adapter {new!r} already; choose another name"
        )
    if not new:
        raise CheckpointError(f"the new name of {old!r} is empty; give it a name")
    adapters = list(bank.adapters)
    adapters[place] = replace(adapters[place], name=new)
    return replace(bank, adapters=tuple(adapters))


def _without(bank: Bank, names: Sequence[str]) -> Bank:
    gone = {bank.place(name) for name in names}
    kept = np.array([at for at in range(len(bank)) if at not in gone], dtype=np.int64)
    if not kept.size:
        raise CheckpointError(
            f"{bank.source} would hold no adapter any more; delete the file instead"
        )
    groups = {}
    for name, group in bank.groups.items():
        parts = [_part_without(part, kept) for part in group.parts]
        if left := tuple(part for part in parts if len(part.index)):
            groups[name] = replace(group, parts=left)
    adapters = [bank.adapters[at] for at in kept]
    used = sorted({at for one in adapters for at in (one.config, *one.extras.values())})
    new = {at: place for place, at in enumerate(used)}  # contents are numbered anew
    renumbered = []
    for one in adapters:
        extras = {key: new[at] for key, at in one.extras.items()}
        renumbered.append(replace(one, config=new[one.config], extras=extras))
    contents = tuple(bank.contents[at] for at in used)
    return replace(bank, adapters=tuple(renumbered), groups=groups, contents=contents)


def _part_without(part: Part, kept: np.ndarray) -> Part:
    stay = np.isin(part.index[:, ADAPTER], kept)
    index = part.index[stay].copy()
    index[:, ADAPTER] = np.searchsorted(kept, index[:, ADAPTER])
    if stay.all():
        return replace(part, index=index)
    tensors = {CODED: part.layers.kept(stay).tensor} if part.is_coded else _kept_rows(part, stay)
    return replace(part, tensors=tensors, index=index, figures=part.figures[stay])


def _kept_rows(part: Part, stay: np.ndarray) -> dict[str, BankTensor]:
    terms = np.concatenate(
        [np.arange(a, b) for a, b, s in zip(part.ends[:-1], part.ends[1:], stay, strict=True) if s]
        or [np.zeros(0, dtype=np.int64)]
    )
    return {
        name: tensor.rows(terms if part.per_term(name) else np.flatnonzero(stay))
        for name, tensor in part.tensors.items()
    }
