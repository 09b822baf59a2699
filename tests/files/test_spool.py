"""Arrays that were put aside come back, from a file that nobody sees."""

import os
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from lotr_tn.errors import CheckpointError
from lotr_tn.files.spool import Slot, Spool
from tests.banks.kills import run_killed_at

rng = np.random.default_rng(0)
ARRAYS = [
    rng.standard_normal((3, 5)),
    rng.standard_normal((4, 2, 7)).astype(np.float32),
    rng.standard_normal((6, 5)).astype(ml_dtypes.bfloat16),
    rng.standard_normal((5, 6)).astype(np.float16).T,
    np.arange(12, dtype=np.int64).reshape(3, 4)[::-1, ::2],
    np.array([True, False, True]),
    np.float32(1.5).reshape(()),
    np.zeros((0, 4), np.float32),
    rng.standard_normal(3).astype(">f4"),
]


def test_arrays_come_back(tmp_path):
    with Spool(tmp_path) as spool:
        slots = [spool.put(array) for array in ARRAYS]
        for slot, array in reversed(list(zip(slots, ARRAYS, strict=True))):
            back = spool.get(slot)
            assert back.dtype == array.dtype.newbyteorder("=")
            assert back.shape == slot.shape == array.shape
            np.testing.assert_array_equal(back.astype(np.float64), array.astype(np.float64))
            assert back.flags.writeable
            assert back.flags.owndata
    assert [slot.dtype for slot in slots[:4]] == ["float64", "float32", "bfloat16", "float16"]
    assert slots[1] == Slot(120, (4, 2, 7), "float32")


@pytest.mark.parametrize("size", [1, 7, 120, 1000])
def test_chunks_are_the_bytes(tmp_path, size):
    with Spool(tmp_path) as spool:
        slots = [spool.put(array) for array in ARRAYS[:4]]
        for slot, array in zip(slots, ARRAYS, strict=False):
            chunks = []
            for chunk in spool.chunks(slot, size):
                chunks.append(chunk)
                spool.put(ARRAYS[0])  # the place in the file is nobody's
            assert b"".join(chunks) == array.tobytes()
            assert all(chunk.nbytes == size for chunk in chunks[:-1])


def test_nothing_has_a_name(tmp_path):
    with Spool(tmp_path) as spool:
        spool.put(ARRAYS[0])
        if sys.platform != "win32":
            assert os.listdir(tmp_path) == []
    assert os.listdir(tmp_path) == []


def test_memory_is_that_of_what_is_held(tmp_path):
    with Spool(tmp_path) as spool:
        slots = [spool.put(np.full(1 << 18, i, np.float64)) for i in range(8)]  # 2 MB each
        tracemalloc.start()
        try:
            for i, slot in enumerate(slots):
                assert spool.get(slot)[-1] == i
            assert 2_000_000 < tracemalloc.get_traced_memory()[1] < 2_500_000
            tracemalloc.reset_peak()
            assert sum(chunk.nbytes for chunk in spool.chunks(slots[0], 1 << 16)) == 1 << 21
            assert tracemalloc.get_traced_memory()[1] < 400_000
        finally:
            tracemalloc.stop()


def test_what_cannot_be_stored(tmp_path):
    with Spool(tmp_path) as spool, pytest.raises(CheckpointError, match="dtype complex128 cannot"):
        spool.put(np.zeros(2, np.complex128))
    with pytest.raises(CheckpointError, match=r"cannot make a temporary file in .*no.*choose"):
        Spool(tmp_path / "no")


def test_a_slot_of_another_spool(tmp_path):
    with (
        Spool(tmp_path) as spool,
        pytest.raises(CheckpointError, match="ends 400 bytes too early"),
    ):
        spool.get(Slot(0, (10, 10), "float32"))


FULL_DISK = """
    import resource, signal, sys
    from pathlib import Path
    import numpy as np
    from lotr_tn.files.spool import Spool
    from lotr_tn.errors import CheckpointError

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    with Spool(Path(sys.argv[1])) as spool:
        first = spool.put(np.arange(2000, dtype=np.float64))
        try:
            spool.put(np.zeros(1000))
        except CheckpointError as error:
            assert "cannot put 8000 bytes aside" in str(error), error
            assert "free some space" in str(error), error
            assert error.__cause__ is None
        else:
            raise AssertionError("the disk was not full")
        last = spool.put(np.ones(400))
        assert last.offset == 16_000
        assert (spool.get(first) == np.arange(2000)).all()
        assert (spool.get(last) == 1).all()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file size are POSIX")
def test_a_full_disk(tmp_path):
    assert run_killed_at(FULL_DISK, [tmp_path], 0)
