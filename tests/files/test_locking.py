"""One writer at a time, and no trace of it."""

import os
import subprocess
import sys

import pytest

from lotr_tn.errors import CheckpointError
from lotr_tn.files import locking
from lotr_tn.files.locking import exclusive

posix = pytest.mark.skipif(locking.fcntl is None, reason="locks of files are POSIX")

HOLDER = """
import os, sys
from pathlib import Path
from lotr_tn.files.locking import exclusive

def tell(word):
    print(word, flush=True)
    sys.stdin.readline()

path = Path(sys.argv[1])
with exclusive(path):
    tell("held")
    (path.parent / "new").write_text(path.read_text() + ", then by another process")
    os.replace(path.parent / "new", path)
    tell("renamed")
tell("released")
"""


class Holder:
    """Another process, which goes on when it is told to."""

    def __init__(self, path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def says(self):
        return self.process.stdout.readline().strip()

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def path(tmp_path):
    (tmp_path / "bank").write_text("written")
    return tmp_path / "bank"


BUSY = r"bank is being changed by another process; try again when that has finished"


@posix
def test_the_second_of_two_processes_is_refused(path):
    with Holder(path) as other:
        assert other.says() == "held"
        with pytest.raises(CheckpointError, match=BUSY), exclusive(path):
            pass
        other.go_on()
        assert other.says() == "renamed"
        other.go_on()
        assert other.says() == "released"
        with exclusive(path) as held:
            assert held.read_text() == "written, then by another process"
    assert os.listdir(path.parent) == ["bank"]


@posix
def test_the_first_is_not_disturbed_by_the_second(path):
    with exclusive(path), Holder(path) as other:
        assert other.process.wait(60) == 1, "refused"
    with Holder(path) as other:
        assert other.says() == "held"


@posix
def test_a_killed_process_holds_nothing(path):
    with Holder(path) as other:
        assert other.says() == "held"
    with exclusive(path):
        pass


@posix
def test_one_who_opened_the_old_file_takes_the_new_one(path, monkeypatch):
    lock = locking.fcntl.flock
    calls = []

    def renamed_before(descriptor, how):
        if not calls:
            with exclusive_by_another(path, lock):
                (path.parent / "new").write_text("new")
                os.replace(path.parent / "new", path)
        calls.append(descriptor)
        lock(descriptor, how)

    monkeypatch.setattr(locking.fcntl, "flock", renamed_before)
    with exclusive(path):
        assert len(calls) == 2
        with open(path) as file, pytest.raises(BlockingIOError):
            lock(file, locking.fcntl.LOCK_EX | locking.fcntl.LOCK_NB)


def exclusive_by_another(path, lock):
    """A lock that is held while it is open, and was released before the caller asks."""
    file = open(path)  # noqa: SIM115
    lock(file, locking.fcntl.LOCK_EX | locking.fcntl.LOCK_NB)
    return file


@posix
@pytest.mark.parametrize("gone", [True, False])
def test_one_who_never_gets_the_file_that_has_the_name(path, monkeypatch, gone):
    def renamed_again(_descriptor, _how):
        (path.parent / "new").write_text("new")
        os.replace(path.parent / "new", path)
        if gone:
            path.unlink()

    monkeypatch.setattr(locking.fcntl, "flock", renamed_again)
    with pytest.raises(CheckpointError, match="no such file" if gone else BUSY), exclusive(path):
        pass


@posix
def test_nested_locks_are_refused_and_all_descriptors_closed(path):
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        with exclusive(path):
            with pytest.raises(CheckpointError, match=BUSY), exclusive(path):
                pass
            with pytest.raises(CheckpointError, match=BUSY), exclusive(path):
                pass
        with pytest.raises(KeyError), exclusive(path):
            raise KeyError
    assert len(os.listdir("/dev/fd")) == before


@posix
def test_locks_follow_links(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    with exclusive(link) as held:
        assert held == path.resolve()
        with pytest.raises(CheckpointError, match=BUSY), exclusive(path):
            pass


@posix
def test_what_cannot_be_locked(path, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="none: no such file"), exclusive(tmp_path / "none"):
        pass
    with pytest.raises(CheckpointError, match="cannot be changed"), exclusive(tmp_path):
        pass

    def no_locks(*_args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locking.fcntl, "flock", no_locks)
    with (
        pytest.raises(CheckpointError, match=r"cannot be locked \(No locks available\); copy it"),
        exclusive(path),
    ):
        pass


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write everything")
def test_files_that_may_not_be_written(path):
    path.chmod(0o444)
    with pytest.raises(CheckpointError, match="make it writable"), exclusive(path):
        pass


def test_systems_without_locks(path, monkeypatch):
    monkeypatch.setattr(locking, "fcntl", None)
    with pytest.raises(CheckpointError, match=r"no file locks; write a new file"), exclusive(path):
        pass
