"""Several adapters that a user names: each under its own name, read when it is asked for."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final
from weakref import WeakValueDictionary

from lotr_tn.adapters.adapter import Adapter
from lotr_tn.adapters.paths import map_prefix
from lotr_tn.adapters.stackings import natural
from lotr_tn.banks.bank import Bank
from lotr_tn.banks.file import is_bank, load_bank
from lotr_tn.doors.loading import load_adapter, place_in_bank
from lotr_tn.errors import CheckpointError, OptionError, listed
from lotr_tn.files.places import located, name_of, told_apart
from lotr_tn.files.weights import CONFIG, WEIGHTS, weights_in

LONGEST_NAME = 200
"""Bytes of a folder's name; most file systems take 255, and while it is written it has more."""


@final
class NamedAdapters(Mapping[str, Adapter]):
    """Adapters by name from `files`, read when they are asked for; none is held."""

    def __init__(self, files: Sequence[Path], read: Mapping[str, Callable[[], Adapter]]) -> None:
        self.files = tuple(dict.fromkeys(files))
        self._read = dict(read)
        self._in_use: WeakValueDictionary[str, Adapter] = WeakValueDictionary()

    def __getitem__(self, name: str) -> Adapter:
        known = self._in_use.get(name)
        if known is None:
            known = self._in_use[name] = self._read[name]()
        return known

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def __contains__(self, name: object) -> bool:
        return name in self._read


def named_adapters(
    paths: Sequence[Path],
    names: Sequence[str] | None = None,
    *,
    prefixes: Mapping[str, str] | None = None,
) -> NamedAdapters:
    """The adapters of some files or folders, by name, in the order of the paths.

    A bank stands for all its adapters, and a folder of adapter folders for these, in their natural
    order: checkpoint-500 before checkpoint-2000. A name is the folder's, the file's without its
    endings, or the one in the bank; where several have one name, each is named by its path as it
    was typed. Of a bank the header is read; an adapter is read when it is asked for, with its
    modules' paths under other `prefixes`, given by the old ones.
    """
    banks: dict[Path, Bank] = {}  # one for all its adapters, so that they share its bases
    sources = [source for path in paths for source in _sources(path, banks)]
    plain = [source.name for source in sources]
    if names is not None:
        chosen = _chosen(names, plain)
    else:
        chosen = told_apart(plain, [source.typed for source in sources])
    read: dict[str, Callable[[], Adapter]] = {}
    for source, name in zip(sources, chosen, strict=True):
        if name in read:
            raise CheckpointError(f"{name} is named twice; name every adapter once")
        read[name] = partial(_mapped, source.read, prefixes) if prefixes else source.read
    return NamedAdapters([source.file for source in sources], read)


def adapters_at(path: Path) -> list[Adapter]:
    """The adapter of a path, or all adapters of a bank or of a folder of adapter folders."""
    return [source.read() for source in _sources(path, {})]


def _mapped(read: Callable[[], Adapter], prefixes: Mapping[str, str]) -> Adapter:
    return map_prefix(read(), prefixes)


@dataclass(frozen=True)
class _Source:
    """One adapter that a path stands for."""

    name: str
    typed: str  # its name where another adapter has the same
    file: Path
    read: Callable[[], Adapter]


def _sources(path: Path, banks: dict[Path, Bank]) -> Iterator[_Source]:
    place = (path, None) if is_bank(path) else place_in_bank(path)
    if place is None:
        path = located(path)
        for inner in _inner(path) or (path,):
            yield _Source(name_of(inner), str(inner), inner, partial(load_adapter, inner))
        return
    file, one = place
    if file not in banks:
        banks[file] = load_bank(file)
    bank = banks[file]
    for name in bank.names if one is None else (one,):
        bank.place(name)
        yield _Source(name, f"{file}/{name}", file, partial(bank.load, name))


def is_collection(path: Path) -> bool:
    """Whether a path stands for any number of adapters: a bank, or a folder of adapter folders."""
    return is_bank(path) or bool(_inner(path))


def _inner(path: Path) -> list[Path]:
    """The adapters in a folder that is none itself, in their natural order."""
    if not path.is_dir() or weights_in(path) is not None or (path / CONFIG).exists():
        return []
    found = {weights.parent for name in WEIGHTS for weights in path.glob(f"*/{name}")}
    shown = [folder for folder in found if not folder.name.startswith(".")]
    return sorted(shown, key=lambda folder: natural(folder.name))


def _chosen(names: Sequence[str], plain: Sequence[str]) -> list[str]:
    if len(names) != len(plain):
        raise OptionError(
            f"found {len(names)} names for {len(plain)} adapters; name all of them, in this order: "
            f"{listed(plain)}"
        )
    for name, times in Counter(names).items():
        if times > 1 or not name:
            raise OptionError(
                f"the name {name!r} is given {times} times; give every adapter a name of its own"
                if name
                else "an adapter cannot have an empty name; leave no name empty"
            )
    return list(names)


def folder_names(names: Sequence[str]) -> dict[str, str]:
    """A name for a folder of each adapter, which every file system takes, all different.

    Examples:
        >>> folder_names(["run/a", "run:a", ".."])
        {'run/a': 'run-a', 'run:a': 'run-a-2', '..': 'adapter'}
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        plain = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]+', "-", name).strip(" .-")
        plain = plain.encode()[:LONGEST_NAME].decode(errors="ignore").rstrip(" .") or "adapter"
        folder, number = plain, 1
        while (key := unicodedata.normalize("NFC", folder).casefold()) in taken:
            number += 1
            folder = f"{plain}-{number}"
        taken.add(key)
        found[name] = folder
    return found
