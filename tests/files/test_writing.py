"""All or nothing: a full disk, a kill, or an existing target leave what was there."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from lotr_tn.errors import CheckpointError
from lotr_tn.files import writing
from lotr_tn.files.writing import write_file, write_folder
from tests.banks.kills import kills


def text(content):
    return lambda path: path.write_text(content)


def listing(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_a_file_appears_whole(tmp_path):
    write_file(tmp_path / "a", text("new"), force=False)
    assert (tmp_path / "a").read_text() == "new"
    assert listing(tmp_path) == ["a"]
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


def test_existing_targets_need_force(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(CheckpointError, match=r"exists.*force=True"):
        write_file(tmp_path / "a", text("new"), force=False)
    assert (tmp_path / "a").read_text() == "old"
    write_file(tmp_path / "a", text("new"), force=True)
    assert (tmp_path / "a").read_text() == "new"


def test_places_that_cannot_be(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist; create it first"):
        write_file(tmp_path / "no" / "a", text("new"), force=False)
    (tmp_path / "d").mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        write_file(tmp_path / "d", text("new"), force=True)
    (tmp_path / "f").write_text("old")
    with pytest.raises(CheckpointError, match="is a file"):
        write_folder(tmp_path / "f", {"a": text("new")}, force=True)


def failing(path):
    path.write_text("half")
    raise OSError(28, "No space left on device")


def test_a_failed_file_leaves_the_old_one(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(CheckpointError, match=r"No space left on device.*nothing was changed"):
        write_file(tmp_path / "a", failing, force=True)
    assert (tmp_path / "a").read_text() == "old"
    assert listing(tmp_path) == ["a"]


def test_an_interrupt_cleans_up(tmp_path):
    def interrupted(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a", interrupted, force=False)
    assert listing(tmp_path) == []


def test_a_folder_appears_whole(tmp_path):
    write_folder(tmp_path / "d", {"a": text("1"), "b": text("2")}, force=False)
    assert listing(tmp_path) == ["d", "d/a", "d/b"]
    with pytest.raises(CheckpointError, match="exists"):
        write_folder(tmp_path / "d", {"a": text("3")}, force=False)


def test_a_replaced_folder_keeps_other_files(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").write_text("kept")
    (tmp_path / "d" / "a").write_text("old")
    write_folder(tmp_path / "d", {"a": text("new")}, force=True)
    assert (tmp_path / "d" / "mine").read_text() == "kept"
    assert (tmp_path / "d" / "a").read_text() == "new"
    assert listing(tmp_path) == ["d", "d/a", "d/mine"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("old")
    with pytest.raises(CheckpointError, match="nothing was changed"):
        write_folder(tmp_path / "d", {"a": text("new"), "b": failing}, force=True)
    assert (tmp_path / "d" / "a").read_text() == "old"
    assert listing(tmp_path) == ["d", "d/a"]


REPLACE = """
    import sys
    from pathlib import Path
    from lotr_tn.files import writing

    if sys.argv[2] == "in two":
        writing.exchange = lambda one, other: False
    texts = {name: (lambda file: file.write_text("new")) for name in "ab"}
    writing.write_folder(Path(sys.argv[1]), texts, force=True)
"""


@pytest.fixture
def folder(tmp_path):
    """A folder in one of its own, with what it held."""
    (tmp_path / "in" / "d").mkdir(parents=True)
    return tmp_path / "in" / "d"


def hold(folder, content):
    folder.mkdir(exist_ok=True)
    for name in "ab":
        (folder / name).write_text(content)


def held(folder):
    return {name: (folder / name).read_text() for name in "ab"}


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize("way", ["exchanged", "in two"])
def test_a_folder_is_the_old_or_the_new_one_at_every_kill(folder, way):
    seen = []
    for point in kills(REPLACE, [folder, way], lambda: hold(folder, "old")):
        if not folder.exists():  # between two renames, where names cannot be exchanged
            assert way == "in two"
            with pytest.raises(CheckpointError, match="exists"):  # even a run that is refused
                write_folder(folder, {"a": text("x")}, force=False)
        seen.append(held(folder))
        assert seen[-1] in (dict.fromkeys("ab", "old"), dict.fromkeys("ab", "new"))
        if point:
            write_folder(folder, {"a": text("x"), "b": text("x")}, force=True)
            assert listing(folder.parent) == ["d", "d/a", "d/b"], "nothing is left behind"
    assert {found["a"] for found in seen} == {"old", "new"}


def test_a_folder_that_cannot_be_put_in_place_is_taken_back(folder, monkeypatch):
    hold(folder, "old")
    true_replace = os.replace

    def replace(source, target):
        if target == folder and str(source).endswith(".partial"):
            raise OSError(28, "No space left on device")
        true_replace(source, target)

    monkeypatch.setattr(writing, "exchange", lambda one, other: False)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(CheckpointError, match="nothing was changed"):
        write_folder(folder, {"a": text("new")}, force=True)
    assert held(folder) == dict.fromkeys("ab", "old")
    assert listing(folder.parent) == ["d", "d/a", "d/b"]


@pytest.mark.parametrize("existing", [False, True])
def test_what_is_in_place_is_never_told_as_failed(tmp_path, monkeypatch, existing):
    """A folder's names may not be flushed on every file system."""
    if existing:
        (tmp_path / "a").write_text("old")
    true_fsync = os.fsync

    def fsync(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(22, "Invalid argument")
        true_fsync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_file(tmp_path / "a", text("new"), force=existing)
    assert (tmp_path / "a").read_text() == "new"


def test_a_link_to_a_folder_stays_a_link(tmp_path, folder):
    hold(folder, "old")
    (tmp_path / "link").symlink_to(folder)
    write_folder(tmp_path / "link", {"a": text("new")}, force=True)
    assert (tmp_path / "link").is_symlink()
    assert held(folder) == {"a": "new", "b": "old"}


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "a")
    for content in ("new", "newer"):  # where nothing is yet, too
        write_file(tmp_path / "link", text(content), force=True)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / "a").read_text() == content
    assert listing(tmp_path) == ["link", "there", "there/a"]


def test_a_name_as_long_as_the_system_takes(tmp_path):
    name = "a" * 250
    for content in ("new", "newer"):
        write_file(tmp_path / name, text(content), force=True)
        assert (tmp_path / name).read_text() == content
    write_folder(tmp_path / ("d" * 250), {"a": text("1")}, force=True)
    assert listing(tmp_path) == [name, "d" * 250, "d" * 250 + "/a"]
    with pytest.raises(CheckpointError, match="too long"):
        write_file(tmp_path / ("a" * 300), text("new"), force=True)


FULL_DISK = """
    import resource, signal, sys
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    sys.argv = ["lotr", *sys.argv[1:]]
    from lotr_tn.cli import main
    main()
"""


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file size are POSIX")
def test_a_full_disk_on_the_command_line(tmp_path, demo_adapter):
    target = tmp_path / "out" / "a.lotr.safetensors"
    target.parent.mkdir()
    done = run(FULL_DISK, "convert", demo_adapter, "--rank", "8", "-o", target)
    assert done.returncode == 1
    assert "nothing was changed" in done.stderr
    assert done.stderr.count("\n") == 1
    assert listing(target.parent) == []
    target.write_text("old")
    assert (
        run(FULL_DISK, "convert", demo_adapter, "--rank", "8", "-o", target, "--force").returncode
        == 1
    )
    assert target.read_text() == "old"


KILLED = """
    import os, signal, sys
    from lotr_tn.files import writing
    import lotr_tn.files.tensors as tensors
    def flush_and_die(path):
        os.kill(os.getpid(), signal.SIGKILL)
    writing._flush = flush_and_die
    sys.argv = ["lotr", *sys.argv[1:]]
    from lotr_tn.cli import main
    main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_a_kill_in_the_middle_of_writing(tmp_path, demo_adapter):
    target = tmp_path / "a.lotr.safetensors"
    target.write_text("old")
    done = run(KILLED, "convert", demo_adapter, "--rank", "8", "-o", target, "--force")
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"


def test_adapters_are_written_whole_or_not(tmp_path, demo_adapter, monkeypatch):
    import lotr_tn as lt

    conversion = lt.convert_adapter(lt.load_adapter(demo_adapter), (4, 4))
    lt.save_adapter(conversion.adapter, tmp_path / "a.lotr.safetensors")
    before = (tmp_path / "a.lotr.safetensors").read_bytes()
    lt.save_adapter(conversion.adapter, tmp_path / "a.lotr.safetensors", force=True)
    assert (tmp_path / "a.lotr.safetensors").read_bytes() == before, (
        "the same adapter, the same bytes"
    )
    again = lt.load_adapter(tmp_path / "a.lotr.safetensors")
    lt.save_adapter(again, tmp_path / "a.lotr.safetensors", force=True)  # over the file it maps
    assert lt.compare_adapters(conversion.adapter, again).relative_error < 1e-12
    assert np.isfinite(again.groups["q_proj"].stack.u).all()
