"""One writer at a time, for files that are changed in place: read, written anew, renamed over."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lotr_tn.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TRIES = 2
"""A writer that was waited for may just have renamed a new file over the one that was opened."""


@contextmanager
def exclusive(path: Path) -> Iterator[Path]:
    """Hold the only right to change a file, from reading it until its successor has its name.

    The lock is advisory, is on the file itself, and ends with the process, however that ends:
    nothing is left behind. Readers do not need it, since a file is only ever replaced as a whole.
    Yields the path of the file, links followed: what is to be read, and replaced.
    """
    if fcntl is None:
        raise CheckpointError(
            f"{path} cannot be changed in place, since this system has no file locks; write a new "
            "file instead"
        )
    real = path.resolve()
    descriptor = _locked(path, real)
    try:
        yield real
    finally:
        os.close(descriptor)


def _locked(path: Path, real: Path) -> int:
    """A descriptor that holds the lock of the file that has the name now."""
    for _ in range(TRIES):
        descriptor = _opened(path, real)
        try:
            _lock(path, descriptor)
            if _is_named(descriptor, real):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise CheckpointError(_busy(path))


def _opened(path: Path, real: Path) -> int:
    try:
        return os.open(real, os.O_RDWR | os.O_CLOEXEC)  # some file systems lock only for writing
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be changed ({error.strerror or error}); make it writable, or copy it "
            "to another place"
        ) from None


def _lock(path: Path, descriptor: int) -> None:
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CheckpointError(_busy(path)) from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be locked ({error.strerror or error}); copy it to a local disk and "
            "change it there"
        ) from None


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)


def _busy(path: Path) -> str:
    return f"{path} is being changed by another process; try again when that has finished"
