"""What a path stands for: itself, or an adapter in the cache of the Hugging Face Hub."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lotr_tn.errors import CheckpointError, listed
from lotr_tn.files.tensors import reason

_REPOSITORY = re.compile(r"models--.+")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def located(path: Path) -> Path:
    """The file or folder that a path stands for.

    That is a snapshot for a repository's folder in the Hub's cache, and for a name such as
    `org/name` where nothing else has it and the cache does. Anything else stands for itself.

    Raises:
        CheckpointError: the system does not take the path, or the cache has no snapshot to choose,
            or does not have the name at all.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _in_cache(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path} ({reason(error)})") from None
    if _is_repository(path):
        return _snapshot(path)
    return path


def name_of(path: Path) -> str:
    """What an adapter is called by its path: its model, for a snapshot of the Hub's cache."""
    if path.is_file():
        return path.stem.removesuffix(".lotr")
    folder = path.resolve()
    repository = folder.parent.parent
    if folder.parent.name == "snapshots" and _REPOSITORY.fullmatch(repository.name):
        return repository.name.rpartition("--")[2]
    return folder.name


def told_apart(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The name of each of some adapters; the path of those of which another has the name."""
    times = Counter(names)
    return [path if times[name] > 1 else name for name, path in zip(names, paths, strict=True)]


def untaken(name: str, ending: str) -> str:
    """The first of `name + ending`, `name-2 + ending` and so on that is nothing here yet."""
    found, number = name + ending, 1
    while os.path.lexists(found):
        number += 1
        found = f"{name}-{number}{ending}"
    return found


def _is_repository(path: Path) -> bool:
    return bool(_REPOSITORY.fullmatch(path.resolve().name)) and (path / "snapshots").is_dir()


def _snapshot(repository: Path) -> Path:
    """The snapshot that refs/main names, or the only one."""
    main = repository / "refs" / "main"
    try:
        commit = main.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = ""
    folders = {p.name: p for p in sorted((repository / "snapshots").iterdir()) if p.is_dir()}
    if commit in folders:
        return folders[commit]
    if len(folders) == 1:
        return next(iter(folders.values()))
    what = f"has the snapshots {listed(list(folders))}: name one" if folders else "has no snapshot"
    raise CheckpointError(
        f"{repository} is a repository in the Hub's cache and {what}; as its main branch is not "
        "there, download it again with hf download to take that one"
    )


def _in_cache(path: Path) -> Path:
    """The snapshot of a Hub's name; the path itself where it is no such name."""
    name = str(path)
    if not _HUB_NAME.fullmatch(name) or path.parent.exists() or set(path.parts) & {".", ".."}:
        return path
    first = ""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE

        repository = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
        if _is_repository(repository):
            return _snapshot(repository)
    except ImportError:
        first = "pip install huggingface_hub && "
    raise CheckpointError(
        f"{path}: no such file or folder here, and nothing of that name in the cache of the "
        f"Hugging Face Hub; if it is an adapter there, download it with: {first}hf download {name}"
    )
