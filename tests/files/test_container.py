"""A container is safetensors, is written in one pass, and knows when it is damaged."""

import hashlib
import json
import os
import struct
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.errors import CheckpointError
from lotr_tn.files import container as module
from lotr_tn.files.container import (
    Entry,
    is_container,
    read_container,
    verify_container,
    write_container,
    write_digested,
)
from lotr_tn.files.spool import Spool
from lotr_tn.files.tensors import read_safetensors, write_safetensors

rng = np.random.default_rng(0)
ARRAYS = {
    "half": rng.standard_normal((3, 5)).astype(np.float16),
    "flags": np.array([True, False, True]),
    'Ünï·code "quoted" \\ name': rng.standard_normal((2, 3, 4)).astype(np.float32),
    "brain": rng.standard_normal((5, 1)).astype(ml_dtypes.bfloat16),
    "double": rng.standard_normal(3),
    "none": np.zeros((0, 4), np.float32),
    "one": np.float32(1.5).reshape(()),
    "turned": rng.standard_normal((4, 3)).astype(np.float32).T,
    "whole": np.arange(4, dtype=np.int64),
}
TEXT = json.dumps({"schema": 1, "adapters": ["ä", "b\\", '"', "\n", "日本"]}, ensure_ascii=False)


def entries(arrays=ARRAYS):
    return {name: Entry.of_array(array) for name, array in arrays.items()}


def meaning(container):
    tensors = {
        name: (tensor.code, tensor.shape, tensor.data.tobytes())
        for name, tensor in container.tensors.items()
    }
    return container.text, container.checksums, tensors


def split(raw):
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    checksums = write_container(path, entries(), TEXT)
    container = read_container(path)
    assert container.path == path
    assert container.text == TEXT
    assert container.checksums == checksums
    assert set(container.tensors) == set(ARRAYS) == set(checksums)
    for name, array in ARRAYS.items():
        tensor = container.tensors[name]
        assert tensor.shape == array.shape
        assert tensor.data.tobytes() == array.tobytes()
        assert checksums[name] == hashlib.sha256(array.tobytes()).hexdigest()
    assert verify_container(container) == []
    assert is_container(path)


def test_the_safetensors_library_reads_it(tmp_path):
    path = tmp_path / "a.safetensors"
    write_container(path, entries(), TEXT)
    loaded = load_file(path)
    assert set(loaded) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    assert set(metadata) == {"lotr_bank", "checksums", "digest"}
    assert metadata["lotr_bank"] == TEXT


def test_tensors_lie_aligned_without_holes(tmp_path):
    path = tmp_path / "a.safetensors"
    write_container(path, entries(), TEXT)
    header, data = split(path.read_bytes())
    assert (path.stat().st_size - len(data)) % 8 == 0
    header.pop("__metadata__")
    end = 0
    for name, entry in header.items():
        assert entry["data_offsets"][0] == end
        assert end % ARRAYS[name].itemsize == 0
        end = entry["data_offsets"][1]
    assert end == len(data)
    assert list(header) == sorted(ARRAYS, key=lambda name: -ARRAYS[name].itemsize)


def test_entries_of_one_width_keep_their_order(tmp_path):
    names = ["b", "a", "c", "B"]
    write_container(tmp_path / "a", entries({n: np.ones(3) for n in names}), "")
    assert list(read_container(tmp_path / "a").tensors) == names


def test_no_tensors_and_no_text(tmp_path):
    assert write_container(tmp_path / "a", {}, "") == {}
    container = read_container(tmp_path / "a")
    assert (container.text, container.tensors, container.checksums) == ("", {}, {})


def test_the_same_input_gives_the_same_bytes(tmp_path):
    write_container(tmp_path / "a", entries(), TEXT)
    write_container(tmp_path / "b", entries(), TEXT)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_kind_of_entry(tmp_path):
    write_container(tmp_path / "first", entries(), TEXT)
    first = read_container(tmp_path / "first")
    with Spool(tmp_path) as spool:
        given = {
            "spooled": Entry.of_slot(spool, spool.put(ARRAYS["brain"])),
            "copied": first.entry("brain"),
            "raw": Entry.of_raw(RawTensor.of(ARRAYS["brain"])),
            "given": Entry("BF16", (5, 1), lambda: [ARRAYS["brain"].tobytes()]),
            "foreign": Entry.of_array(ARRAYS["double"].astype(">f8")),
        }
        write_container(tmp_path / "second", given, "")
    second = read_container(tmp_path / "second")
    for name in ("spooled", "copied", "raw", "given"):
        assert second.tensors[name].code == "BF16"
        assert second.tensors[name].data.tobytes() == ARRAYS["brain"].tobytes()
    assert second.tensors["foreign"].data.tobytes() == ARRAYS["double"].tobytes()


def test_codes_that_are_not_of_numpy_are_copied(tmp_path):
    tensors = {
        "four": RawTensor("F4", (3, 4), np.arange(6, dtype=np.uint8)),
        "eight": RawTensor("F8_E4M3", (5,), np.arange(5, dtype=np.uint8)),
        "wide": RawTensor("C64", (2,), np.arange(16, dtype=np.uint8)),
    }
    write_container(tmp_path / "source", {n: Entry.of_raw(t) for n, t in tensors.items()}, "")
    source = read_safetensors(tmp_path / "source")[0]
    write_container(tmp_path / "a", {n: Entry.of_raw(t) for n, t in source.items()}, "")
    found = read_container(tmp_path / "a").tensors
    assert list(found) == ["wide", "eight", "four"]
    for name, tensor in tensors.items():
        assert (found[name].code, found[name].shape) == (tensor.code, tensor.shape)
        assert found[name].data.tobytes() == tensor.data.tobytes()


@pytest.mark.parametrize("given", [b"", b"123", b"12345"])
def test_an_entry_of_the_wrong_size_is_refused(tmp_path, given):
    entry = Entry("F32", (1,), lambda: [given])
    with pytest.raises(CheckpointError, match=rf"tensor x came with {len(given)} bytes.*needs 4;"):
        write_digested(tmp_path / "a", {"x": entry}, "", force=False)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "a"
    with pytest.raises(CheckpointError, match="dtype complex128 cannot be stored"):
        Entry.of_array(np.zeros(1, np.complex128))
    with pytest.raises(CheckpointError, match="no tensor can be called __metadata__"):
        write_container(path, entries({"__metadata__": np.zeros(1)}), "")
    with pytest.raises(CheckpointError, match=r"'\\udcff' in a name or description"):
        write_container(path, {}, "a\udcff")
    monkeypatch.setattr(module, "LONGEST_HEADER", 1000)
    with pytest.raises(CheckpointError, match=r"reads at most 1000; write several smaller"):
        write_container(path, {}, "a" * 1000)
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        write_container(path, {}, "")
    assert path.read_text() == "mine"


def test_the_longest_header_is_that_of_the_library(tmp_path):
    path = tmp_path / "a.safetensors"
    for length, complaint in (
        (module.LONGEST_HEADER, "invalid"),
        (module.LONGEST_HEADER + 1, "large"),
    ):
        path.write_bytes(struct.pack("<Q", length))
        os.truncate(path, length + 8)  # zeros that take no room
        with pytest.raises(CheckpointError, match=rf"safetensors file \(.*header.*{complaint}"):
            is_container(path)


def test_what_is_a_container(tmp_path):
    small = tmp_path / "small.safetensors"
    write_container(small, entries(), TEXT)
    assert is_container(small)
    other = tmp_path / "other.safetensors"
    write_safetensors(other, {"a": RawTensor.of(np.ones(2))}, {"lotr": "{}"})
    assert not is_container(other)
    with pytest.raises(CheckpointError, match=r"other.safetensors is not a bank, or its header is"):
        read_container(other)
    write_safetensors(other, {"a": RawTensor.of(np.ones(2))}, {})
    assert not is_container(other)
    with pytest.raises(CheckpointError, match="is not a bank"):
        read_container(other)
    assert not is_container(tmp_path)
    assert not is_container(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"none.safetensors: no such file"):
        read_container(tmp_path / "none.safetensors")
    small.with_suffix(".bin").write_bytes(small.read_bytes())
    assert not is_container(small.with_suffix(".bin"))


def test_writing_takes_the_memory_of_a_chunk(tmp_path):
    array = np.arange(1 << 21, dtype=np.float64)  # 16 MB
    write_container(
        tmp_path / "first", {"a": Entry.of_array(array), "b": Entry.of_array(array)}, ""
    )
    first = read_container(tmp_path / "first")
    with Spool(tmp_path) as spool:
        given = {
            "array": Entry.of_array(array),
            "copied": first.entry("b"),
            "spooled": Entry.of_slot(spool, spool.put(array)),
        }
        tracemalloc.start()
        try:
            write_container(tmp_path / "second", given, "")
            assert verify_container(read_container(tmp_path / "second")) == []
            assert tracemalloc.get_traced_memory()[1] < 3 * module.CHUNK
        finally:
            tracemalloc.stop()


def resident(path):
    """The bytes of a mapped file that are in this process's memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    found = 0
    for line in lines:
        if line.endswith(str(path)):
            found += int(next(row for row in lines if row.startswith("Rss:")).split()[1]) * 1024
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux for resident pages")
def test_pages_of_a_mapped_file_are_let_go(tmp_path):
    path = tmp_path / "first"
    array = np.arange(1 << 21, dtype=np.float64)
    write_container(path, {"small": Entry.of_array(ARRAYS["half"]), "a": Entry.of_array(array)}, "")
    container = read_container(path)
    assert container.tensors["a"].array()[-1] == array[-1]
    most = max(resident(path) for _ in container.entry("a").chunks())
    assert most < 2 * module.CHUNK
    assert verify_container(container) == []
    assert resident(path) < 2 * module.CHUNK
    assert container.tensors["a"].array().sum() == array.sum()
    assert resident(path) > 4 * module.CHUNK, "the measure sees pages"


def test_changes_of_a_mapped_copy_are_kept(tmp_path):
    (tmp_path / "a").write_bytes(bytes(10_000))
    data = np.memmap(tmp_path / "a", np.uint8, mode="c")
    data[:] = 1
    entry = Entry.of_array(data)
    for _ in range(2):
        assert b"".join(entry.chunks()) == b"\1" * 10_000


def test_a_replaced_file_stays_readable_where_it_is_open(tmp_path):
    path = tmp_path / "a.safetensors"
    write_digested(path, entries(), TEXT, force=False)
    old = read_container(path)
    wanted = meaning(old)
    kept = {name: old.entry(name) for name in list(ARRAYS)[2:]}
    write_digested(path, kept, "new", force=True)  # from the file that it replaces
    assert meaning(old) == wanted
    new = read_container(path)
    assert new.text == "new"
    assert new.checksums == {name: old.checksums[name] for name in new.tensors}
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_an_existing_target_needs_force(tmp_path):
    path = tmp_path / "a"
    path.write_text("mine")
    with pytest.raises(CheckpointError, match="exists; name another destination"):
        write_digested(path, entries(), TEXT, force=False)
    assert path.read_text() == "mine"


def without_links(*_args):
    raise OSError(1, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("force", [True, False])
def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch, links, force):
    path = tmp_path / "a.safetensors"
    if not links:
        monkeypatch.setattr(os, "link", without_links)

    def other():
        path.write_text("mine")
        yield bytes(4)

    with pytest.raises(CheckpointError, match=r"a.safetensors was made by another process"):
        write_digested(path, {"x": Entry("F32", (1,), other)}, "", force=force)
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["a.safetensors"]
    path.unlink()
    write_digested(path, entries(), TEXT, force=force)
    assert verify_container(read_container(path)) == []
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_two_writers_of_one_process_number_do_not_share_a_partial_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_digested(path, {}, "old", force=False)

    def other():
        write_digested(path, entries(), "inner", force=True)
        assert read_container(path).text == "inner"
        yield bytes(4)

    write_digested(path, {"x": Entry("F32", (1,), other)}, "outer", force=True)
    container = read_container(path)
    assert container.text == "outer"
    assert list(container.tensors) == ["x"]
    assert verify_container(container) == []
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX")
def test_permissions_stay(tmp_path):
    path = tmp_path / "a"
    write_digested(path, entries(), TEXT, force=False)
    path.chmod(0o600)
    write_digested(path, entries(), "new", force=True)
    assert path.stat().st_mode & 0o777 == 0o600
