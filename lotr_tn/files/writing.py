"""Writing all or nothing: beside the target first, flushed, then renamed over it."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lotr_tn.errors import CheckpointError

__all__ = ["refuse_existing", "write_file", "write_folder"]

Writer = Callable[[Path], object]


def refuse_existing(path: Path, *, force: bool) -> None:
    """Refuse a target that exists, unless it may be replaced."""
    if path.exists() and not force:
        raise CheckpointError(
            f"{path} exists; name another destination, or replace it with --force"
        )
    if not path.parent.is_dir():
        raise CheckpointError(f"the folder {path.parent} does not exist; create it first")


def write_file(path: Path, write: Writer, *, force: bool) -> None:
    """Let `write` make a file beside `path`, then rename it to `path`.

    A file that is replaced hands its permissions on. One that appears at `path` only while
    `write` is at work is another's, and is not replaced.

    Raises:
        CheckpointError: the target exists and `force` is false, it appeared meanwhile, or writing
            failed; the target is then what it was before.
    """
    refuse_existing(path, force=force)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name a file to write")
    existed = os.path.lexists(path)
    partial = _beside(path)
    with _cleaned_up(path, partial):
        write(partial)
        if path.exists():
            shutil.copymode(path, partial)
        else:
            _open_to_readers(partial)
        _flush(partial)
        if existed:
            os.replace(partial, path)
        else:
            _name_first(partial, path)
        _flush(path.parent)


def write_folder(path: Path, writers: Mapping[str, Writer], *, force: bool) -> None:
    """Let `writers` make the files of a folder beside `path`, then rename the folder to `path`.

    Other files of a folder that is replaced are kept. Raises as `write_file`.
    """
    refuse_existing(path, force=force)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; name a folder to write")
    partial, old = _beside(path), path.with_name(f".{path.name}.{os.getpid()}.old")
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
        if path.exists():
            os.replace(path, old)
        os.replace(partial, path)
        _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A name that no other writer has, and none that was killed has left behind."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")


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
    else:
        os.unlink(partial)


_APPEARED = (
    "{} was made by another process while this one was writing it; nothing was changed: name "
    "another destination, or replace it with --force"
)


@contextmanager
def _cleaned_up(path: Path, partial: Path) -> Iterator[None]:
    """Remove what was begun when anything goes wrong, and name the target in the error."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CheckpointError(
            f"cannot write {path} ({reason}); nothing was changed: free some space or choose "
            "another place"
        ) from None
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


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
