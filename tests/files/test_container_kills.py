"""Whatever happens while a bank is written, the old one or the new one is there, whole."""

import os
import sys

import numpy as np
import pytest

from lotr_tn.files.container import (
    Entry,
    read_container,
    verify_container,
    write_digested,
)
from lotr_tn.files.locking import exclusive
from tests.banks.kills import kills, run_killed_at

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")

ARRAYS = {
    "a": np.arange(3000, dtype=np.float32),
    "b": np.arange(5, dtype=np.float64),
    "c": np.arange(9000, dtype=np.float16),
}

CREATE = """
    import sys
    from pathlib import Path
    import numpy as np
    from lotr_tn.files.container import Entry, write_digested

    arrays = np.load(sys.argv[1])
    entries = {name: Entry.of_array(arrays[name]) for name in arrays}
    write_digested(Path(sys.argv[2]), entries, "new", force=False)
"""

APPEND = """
    import sys
    from pathlib import Path
    import numpy as np
    from lotr_tn.files.container import Entry, read_container, write_digested
    from lotr_tn.files.locking import exclusive
    from lotr_tn.files.spool import Spool

    with exclusive(Path(sys.argv[1])) as path, Spool(path.parent) as spool:
        old = read_container(path)
        entries = {name: old.entry(name) for name in old.tensors}
        entries["more"] = Entry.of_slot(spool, spool.put(np.arange(4000.0)))
        write_digested(path, entries, "more", force=True)
"""


@pytest.fixture
def source(tmp_path):
    np.savez(tmp_path / "source.npz", **ARRAYS)
    return tmp_path / "source.npz"


@pytest.fixture
def path(tmp_path):
    (tmp_path / "banks").mkdir()
    return tmp_path / "banks" / "a.safetensors"


def write_old(path):
    entries = {name: Entry.of_array(array) for name, array in ARRAYS.items()}
    write_digested(path, entries, "old", force=path.exists())


def is_whole(path, text, names):
    container = read_container(path)
    assert container.text == text
    assert set(container.tensors) == set(names)
    assert verify_container(container) == []
    for name, array in ARRAYS.items():
        assert container.tensors[name].data.tobytes() == array.tobytes()
    return True


def litter(path):
    return [name for name in os.listdir(path.parent) if name != path.name]


def test_a_new_file_is_there_whole_or_not_at_all(source, path):
    seen = []
    for point in kills(CREATE, [source, path], lambda: path.unlink(missing_ok=True)):
        seen.append(path.exists() and is_whole(path, "new", ARRAYS))
        assert all(name.endswith(".partial") for name in litter(path))
        if point:
            write_old(path)
            assert is_whole(path, "old", ARRAYS), "litter does not disturb a later write"
            assert litter(path) == [], "which clears it away"
    assert seen == sorted(seen), "it appears at one moment"
    assert seen[0] is False
    assert seen[-2] is True, "killed after it had its name"
    assert len(seen) > 12
    assert litter(path) == []


def test_a_changed_file_is_the_old_or_the_new_one(path):
    write_old(path)
    old = path.read_bytes()
    seen = []
    for point in kills(APPEND, [path], lambda: path.write_bytes(old)):
        is_new = path.read_bytes() != old
        seen.append(is_new)
        is_whole(path, "more" if is_new else "old", [*ARRAYS, "more"] if is_new else ARRAYS)
        with exclusive(path):
            pass  # the lock has gone with its holder
        if point:
            assert run_killed_at(APPEND, [path], 0), "try again"
            is_whole(path, "more", [*ARRAYS, "more"])
    assert seen == sorted(seen)
    assert seen[0] is False
    assert seen[-2] is True
    assert len(seen) > 12
    assert all(name.endswith(".partial") for name in litter(path))


FULL_DISK = """
    import resource, signal, sys

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[-1]), int(sys.argv[-1])))
    from lotr_tn.errors import CheckpointError

    try:
        PROGRAM
    except CheckpointError as error:
        assert str(error).startswith("cannot "), error
        assert "free some space" in str(error), error
    else:
        raise AssertionError("the disk was not full")
"""


def limited(program):
    return FULL_DISK.replace("PROGRAM", program.strip().replace("\n", "\n    "))


SIZES = (0, 1, 100, 4096, 20_000, 30_000)


@pytest.mark.parametrize("size", SIZES)
def test_a_full_disk_makes_no_file(source, path, size):
    assert run_killed_at(limited(CREATE), [source, path, size], 0)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("size", [*SIZES, 62_000])
def test_a_full_disk_leaves_the_old_file(path, size):
    write_old(path)
    old = path.read_bytes()
    assert run_killed_at(limited(APPEND), [path, size], 0)
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


IN_PLACE = """
    import sys
    from pathlib import Path
    Path(sys.argv[1]).write_text("newer")
"""


def test_kills_see_a_program_that_writes_in_place(tmp_path):
    path = tmp_path / "a"
    found = [path.read_text() for _ in kills(IN_PLACE, [path], lambda: path.write_text("old"))]
    assert found == ["", "ne", "newer"]


def test_kills_report_a_program_that_fails(tmp_path):
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_killed_at("1 / 0", [], 0)
    with pytest.raises(AssertionError, match="exit 3"):
        run_killed_at("raise SystemExit(3)", [], 5)
    with pytest.raises(AssertionError, match="writes nothing"):
        list(kills("pass", []))
    assert run_killed_at("raise SystemExit(0)", [], 5)
