"""Writing all or nothing: beside the target first, flushed, then renamed over it."""

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from lotr_tn.errors import CheckpointError
from lotr_tn.files.exchange import exchange

LONGEST_NAME = 200
"""Bytes of a name to which more is added while the file is written; most systems take 255."""

FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}
"""What a system says where there is no room."""

Writer = Callable[[Path], object]


@dataclass(frozen=True)
class Target:
    """Something that is to come to a path, known by the inode that it has already."""

    path: Path
    identity: tuple[int, int]


_TARGETS: ContextVar[list[Target] | None] = ContextVar("_TARGETS", default=None)


@contextmanager
def noted() -> Iterator[list[Target]]:
    """A list of all that is written meanwhile, each target before it is put in place."""
    targets: list[Target] = []
    token = _TARGETS.set(targets)
    try:
        yield targets
    finally:
        _TARGETS.reset(token)


def in_place(target: Target) -> bool:
    """Whether what was made for a path is there."""
    try:
        return _identity(target.path) == target.identity
    except OSError:
        return False


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _note(path: Path, partial: Path) -> None:
    if (targets := _TARGETS.get()) is not None:
        targets.append(Target(path, _identity(partial)))


def refuse_existing(path: Path, *, force: bool) -> None:
    """Refuse a target that exists, unless it may be replaced."""
    try:
        exists, has_folder = path.exists(), path.parent.is_dir()
    except (OSError, ValueError) as error:  # a name that the system does not take
        raise _failed(path, error) from None
    if exists and not force:
        raise CheckpointError(
            f"{path} exists; name another destination, or replace it with force=True"
        )
    if not has_folder:
        raise CheckpointError(f"the folder {path.parent} does not exist; create it first")


def write_file(path: Path, write: Writer, *, force: bool) -> None:
    """Let `write` make a file beside `path`, then rename it to `path`; all or nothing.

    A file that is replaced hands its permissions on, and a link stays a link. One that appears at
    `path` only while `write` is at work is another's, and is not replaced. What killed runs left
    there is removed.
    """
    path = _behind_links(path)
    _mend(path)
    refuse_existing(path, force=force)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name a file to write")
    existed = os.path.lexists(path)
    partial = _beside(path, "partial")
    with _cleaned_up(path, partial):
        write(partial)
        if path.exists():
            shutil.copymode(path, partial)
        else:
            _open_to_readers(partial)
        _flush(partial)
        _note(path, partial)
        if existed:
            os.replace(partial, path)
        else:
            _name_first(partial, path)
    _flush_names(path.parent)


def write_folder(path: Path, writers: Mapping[str, Writer], *, force: bool) -> None:
    """Let `writers` make the files of a folder beside `path`, then put the folder in its place.

    Other files of a folder that is replaced are kept, and a link to a folder stays a link. At every
    moment the old folder or the new one is at `path`, where the system can exchange two names; on
    others a run that is killed between two renames leaves the old one beside `path`, and the next
    that writes there puts it back. Raises as `write_file`.
    """
    path = _behind_links(path)
    _mend(path)
    refuse_existing(path, force=force)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; name a folder to write")
    partial = _beside(path, "partial")
    with _cleaned_up(path, partial):
        if path.exists():
            shutil.copytree(path, partial)
        else:
            partial.mkdir()
        for name, write in writers.items():
            (partial / name).unlink(missing_ok=True)
            write(partial / name)
            _open_to_readers(partial / name)
            _flush(partial / name)
        _flush(partial)
        _note(path, partial)
        if not path.exists():
            os.replace(partial, path)
        elif not exchange(partial, path):
            _replace_in_two(partial, path)
    _flush_names(path.parent)


def _behind_links(path: Path) -> Path:
    """What a link points at: that is replaced, whoever else points at it."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def _replace_in_two(partial: Path, path: Path) -> None:
    """Replace a folder by two renames; the first is taken back where the second fails."""
    old = _beside(path, "old")
    os.replace(path, old)
    try:
        os.replace(partial, path)
    except BaseException:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path, kind: str) -> Path:
    """A name that no other writer has: it tells the process, and the machine that it runs on."""
    return path.with_name(f".{_label(path)}.{os.getpid()}-{_host()}.{secrets.token_hex(4)}.{kind}")


def _label(path: Path) -> str:
    """A file's name, or a digest of one so long that nothing can be added to it."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= LONGEST_NAME else hashlib.sha256(name).hexdigest()[:16]


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:4]


def _mend(path: Path) -> None:
    """Clear away what killed runs have left beside a path; put back a folder moved aside."""
    if sys.platform == "win32" or not os.path.isdir(path.parent):
        return
    left = re.compile(
        rf"\.{re.escape(_label(path))}\.(\d+)-{_host()}\.[0-9a-f]{{8}}\.(partial|old)"
    )
    with suppress(OSError):
        for entry in list(path.parent.iterdir()):
            match = left.fullmatch(entry.name)
            if match is None or _is_alive(int(match[1])):
                continue
            if match[2] == "old" and not os.path.lexists(path):
                os.replace(entry, path)
            else:
                _remove(entry)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _name_first(partial: Path, path: Path) -> None:
    """Rename a file to a path where nothing is; the system sees to it where it has links."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise CheckpointError(_APPEARED.format(path)) from None
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise CheckpointError(_APPEARED.format(path)) from None
        os.replace(partial, path)


_APPEARED = (
    "{} was made by another process while this one was writing it; nothing was changed: name "
    "another destination, or replace it with force=True"
)


@contextmanager
def _cleaned_up(path: Path, partial: Path) -> Iterator[None]:
    """Remove what was begun when anything goes wrong, and name the target in the error."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _failed(path, error) from None
    finally:
        _remove(partial)


def _failed(path: Path, error: Exception) -> CheckpointError:
    """What is said of a target that is as it was."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    full = isinstance(error, OSError) and error.errno in FULL
    advice = "free some space or choose another place" if full else "choose another place"
    return CheckpointError(f"cannot write {path} ({reason}); nothing was changed: {advice}")


def _remove(path: Path) -> None:
    """Remove a file or a folder; what cannot be removed stays for a later run to clear away."""
    try:
        _try_to_remove(path)
    finally:
        if os.path.lexists(path):  # it was interrupted, or failed this once
            _try_to_remove(path)


def _try_to_remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _open_to_readers(path: Path) -> None:
    """Give a new file the permissions that the user's mask asks for; writers may not."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _flush(path: Path) -> None:
    """Have the system write a file's or a folder's data to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_names(folder: Path) -> None:
    """Have the system write a folder's names to the disk, if it can: the target is whole by now."""
    with suppress(OSError):
        _flush(folder)
