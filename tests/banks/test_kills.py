"""Whatever ends a change of a bank, the old bank or the new one is there, whole and usable."""

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import pytest

from benchmarks.fleets import write_fleet
from lotr_tn import RelativeError, load_adapter
from lotr_tn.adapters.as_lora import to_lora
from lotr_tn.banks.changing.appending import add_adapters
from lotr_tn.banks.changing.compacting import compact_bank
from lotr_tn.banks.changing.editing import drop_adapters, rename_adapter
from lotr_tn.banks.file import load_bank, verify_bank
from lotr_tn.banks.making.conversion import make_bank
from lotr_tn.errors import CheckpointError
from lotr_tn.files import locking
from tests.banks.kills import LOTR, kills, run_killed_at

pytestmark = pytest.mark.skipif(
    locking.fcntl is None or sys.platform == "win32", reason="signals and locks are POSIX"
)

START = """
    import sys
    from pathlib import Path
    from lotr_tn import RelativeError, load_adapter
    from lotr_tn.banks.changing.appending import add_adapters
    from lotr_tn.banks.changing.compacting import compact_bank
    from lotr_tn.banks.making.conversion import make_bank
    from lotr_tn.banks.changing.editing import drop_adapters, rename_adapter

    bank, fleet = sys.argv[1], Path(sys.argv[2])
    adapters = {folder.name: load_adapter(folder) for folder in sorted(fleet.iterdir())}
"""


def program(last):
    return START + " " * 4 + last


PLAIN = (
    "stack='adapters', format='lotr'"  # no choice to be made, so that each of many runs is short
)
PLAIN_OPTIONS = ("--stack", "adapters", "--format", "lotr")
CONVERT = program(f"make_bank(adapters, bank, RelativeError(0.05), {PLAIN})")


@dataclass(frozen=True)
class Change:
    """A way to change a bank of adapter-0000 to -0002, where -0003 is at hand; and what it has."""

    script: str
    args: tuple[str, ...] | None  # of the command; None for a program of functions
    names: tuple[int | str, ...]


CHANGES = {
    "convert": Change(
        program(f"make_bank(adapters, bank, RelativeError(0.02), force=True, {PLAIN})"),
        None,
        (0, 1, 2, 3),
    ),
    "append": Change(
        program("add_adapters(bank, {'adapter-0003': adapters['adapter-0003']})"),
        None,
        (0, 1, 2, 3),
    ),
    "drop": Change(program("drop_adapters(bank, ['adapter-0001'])"), None, (0, 2)),
    "rename": Change(
        program("rename_adapter(bank, 'adapter-0001', 'other')"), None, (0, "other", 2)
    ),
    "compact": Change(program("compact_bank(bank, rule=RelativeError(0.4))"), None, (0, 1, 2)),
    "lotr bank add": Change(
        LOTR, ("bank", "add", "BANK", "FLEET/adapter-0003", "-q"), (0, 1, 2, 3)
    ),
    "lotr bank make": Change(
        LOTR,
        (
            "bank",
            "make",
            "FLEET",
            "--rel-error",
            "0.02",
            "-o",
            "BANK",
            "--force",
            "-q",
            *PLAIN_OPTIONS,
        ),
        (0, 1, 2, 3),
    ),
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills") / "fleet"
    write_fleet(folder, 4, shapes="tiny", rank=2, shared=5, noise=0.01)
    return folder


@pytest.fixture(scope="module")
def old(fleet, tmp_path_factory):
    """The bytes of a bank of the first three adapters."""
    path = tmp_path_factory.mktemp("old") / "bank.safetensors"
    first = sorted(fleet.iterdir())[:3]
    make_bank({f.name: load_adapter(f) for f in first}, path, RelativeError(0.05))
    return path.read_bytes()


@pytest.fixture
def path(tmp_path):
    (tmp_path / "banks").mkdir()
    return tmp_path / "banks" / "bank.safetensors"


def arguments(change, path, fleet):
    if change.args is None:
        return [str(path), str(fleet)]
    return [
        argument.replace("BANK", str(path)).replace("FLEET", str(fleet)) for argument in change.args
    ]


def named(parts):
    return tuple(part if isinstance(part, str) else f"adapter-{part:04d}" for part in parts)


def is_sound(path, names):
    """A bank that opens, whose bytes are those that were written, and that gives its adapters."""
    bank = load_bank(path)
    assert bank.names == tuple(names)
    assert verify_bank(path) == []
    for name in names:
        assert len(to_lora(bank[name]).adapter.modules) == 4
    return True


def litter(path):
    """What lies beside a bank, all of it under names that say so."""
    found = [name for name in os.listdir(path.parent) if name != path.name]
    assert all(name.startswith(f".{path.name}.") for name in found)
    assert all(name.endswith(".partial") for name in found)
    return found


@pytest.mark.parametrize("name", CHANGES)
def test_a_bank_is_the_old_or_the_new_one(name, old, fleet, path):
    change = CHANGES[name]
    args, names = arguments(change, path, fleet), named(change.names)
    path.write_bytes(old)
    assert run_killed_at(change.script, args, 0)
    new = path.read_bytes()
    assert new != old
    assert is_sound(path, names)
    assert litter(path) == []
    seen = []
    for point in kills(change.script, args, lambda: path.write_bytes(old)):
        found = path.read_bytes()
        seen.append(found == new)
        if found != new:
            assert found == old
        if point and found == old and point % 8 == 1:
            # another try, amid all that the killed ones have left behind
            assert run_killed_at(change.script, args, 0)
            assert path.read_bytes() == new
    assert seen == sorted(seen), "it appears at one moment"
    assert seen[0] is False
    assert seen[-2] is True, "killed after it had its name"
    assert len(seen) > 6
    assert litter(path) == [], "the last run cleared away what the killed ones had left"
    path.write_bytes(old)
    assert is_sound(path, named((0, 1, 2)))


def test_a_first_bank_is_there_whole_or_not_at_all(fleet, path):
    assert run_killed_at(CONVERT, [path, fleet], 0)
    new, seen = path.read_bytes(), []
    names = named((0, 1, 2, 3))
    assert is_sound(path, names)
    for point in kills(CONVERT, [path, fleet], lambda: path.unlink(missing_ok=True)):
        seen.append(path.exists())
        if seen[-1]:
            assert path.read_bytes() == new
        elif point % 8 == 1:
            assert run_killed_at(CONVERT, [path, fleet], 0)
            assert path.read_bytes() == new
        litter(path)
    assert seen == sorted(seen)
    assert seen[0] is False
    assert seen[-2] is True


HOLDER = textwrap.dedent(START) + textwrap.dedent("""
    def wait(name):
        print("held", flush=True)
        sys.stdin.readline()

    add_adapters(bank, {"adapter-0003": adapters["adapter-0003"]}, progress=wait)
""")

BUSY = r"^\S+bank\.safetensors is being changed by another process; try again when [a-z ]+$"


def test_a_second_writer_is_refused_and_readers_see_the_old_bank(old, fleet, path):
    path.write_bytes(old)
    last = load_adapter(fleet / "adapter-0002")
    others = [
        lambda: add_adapters(path, {"another": last}),
        lambda: drop_adapters(path, ["adapter-0001"]),
        lambda: rename_adapter(path, "adapter-0001", "other"),
        lambda: compact_bank(path),
        lambda: make_bank({"another": last}, path, RelativeError(0.05), force=True),
    ]
    before = load_bank(path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), str(fleet)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for other in others:
            with pytest.raises(CheckpointError, match=BUSY):
                other()
        assert path.read_bytes() == old
        assert is_sound(path, named((0, 1, 2)))
        assert holder.communicate("\n", timeout=60) == ("", None)
        assert holder.returncode == 0
    finally:
        holder.kill()
        holder.communicate()
    assert is_sound(path, named((0, 1, 2, 3)))
    assert len(to_lora(before["adapter-0000"]).adapter.modules) == 4, "a reader keeps the old file"
    add_adapters(path, {"another": last})
    assert is_sound(path, (*named((0, 1, 2, 3)), "another"))
    assert litter(path) == []


def test_a_killed_writer_holds_no_lock(old, fleet, path):
    path.write_bytes(old)
    assert not run_killed_at(CHANGES["append"].script, [path, fleet], 3)
    rename_adapter(path, "adapter-0001", "other")
    assert is_sound(path, named((0, "other", 2)))


FULL_DISK = """
import resource, signal, sys
from lotr_tn.errors import CheckpointError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
room = int(sys.argv[-1])
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
try:
    PROGRAM
except CheckpointError as error:
    text = str(error)
    assert text.startswith("cannot "), text
    assert "free some space" in text, text
    assert len(text.splitlines()) == 1, text
else:
    raise AssertionError("there was room enough")
"""


def on_a_full_disk(script):
    lines = textwrap.dedent(script).strip().replace("\n", "\n    ")
    return FULL_DISK.replace("PROGRAM", lines)


@pytest.mark.parametrize("room", [0, 1, 4096, 5000])
@pytest.mark.parametrize("name", ["convert", "append", "drop", "compact"])
def test_a_full_disk_leaves_the_old_bank(name, room, old, fleet, path):
    path.write_bytes(old)
    assert len(old) > 5000
    assert run_killed_at(on_a_full_disk(CHANGES[name].script), [path, fleet, room], 0)
    assert path.read_bytes() == old
    assert litter(path) == []


@pytest.mark.parametrize("room", [0, 4096, 5000])
def test_a_full_disk_makes_no_first_bank(room, fleet, path):
    assert run_killed_at(on_a_full_disk(CONVERT), [path, fleet, room], 0)
    assert os.listdir(path.parent) == []


def test_what_a_killed_one_left_is_cleared_away_by_the_next(old, fleet, path):
    path.write_bytes(old)
    assert not run_killed_at(CHANGES["append"].script, [path, fleet], 8)
    assert len(litter(path)) == 1
    add_adapters(path, {"adapter-0003": load_adapter(fleet / "adapter-0003")})
    assert is_sound(path, named((0, 1, 2, 3)))
    assert litter(path) == []
