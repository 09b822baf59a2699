"""Planes of bytes, packed: what goes in comes out, and nothing else does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotr_tn.coding import lossless
from lotr_tn.coding.lossless import WIDTHS, pack, unpack
from lotr_tn.errors import FormatError

counts = st.lists(st.tuples(st.sampled_from(WIDTHS), st.integers(0, 40)), max_size=6)


def sizes_of(parts):
    return [(width, len(data)) for width, data in parts]


@given(counts, st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 16, lossless.BLOCK]))
def test_what_goes_in_comes_out(counts, seed, block):
    rng = np.random.default_rng(seed)
    parts = [(width, rng.integers(0, 256, count * width, np.uint8)) for width, count in counts]
    with pytest.MonkeyPatch.context() as patch:  # large parts in pieces, small ones together
        patch.setattr(lossless, "BLOCK", block)
        data = np.frombuffer(pack(parts), np.uint8)
        found = unpack(data, sizes_of(parts))
    for (_, part), other in zip(parts, found, strict=True):
        assert np.array_equal(part, other)


def floats(count):
    return np.random.default_rng(0).standard_normal(count).astype(np.float32).view(np.uint8)


def test_floats_take_less():
    part = floats(50_000)
    assert len(pack([(4, part)])) < 0.87 * len(part)


def test_what_stands_for_too_much_is_left_as_it_is():
    assert pack([(4, np.zeros(1 << 20, np.uint8))]) is None


@pytest.mark.parametrize("change", ["a flip", "an end", "nothing", "less asked", "more asked"])
def test_damage_is_refused(change):
    part = floats(1000)
    data, size = pack([(4, part)]), len(part)
    changed = {"a flip": bytes([data[0] ^ 1]) + data[1:], "an end": data[:-9], "nothing": b""}
    asked = size + {"less asked": -4, "more asked": 4}.get(change, 0)
    with pytest.raises(FormatError, match="damaged"):
        unpack(np.frombuffer(changed.get(change, data), np.uint8), [(4, asked)])


def test_a_hostile_stream_allocates_nothing(monkeypatch):
    monkeypatch.setattr(np, "empty", None)
    with pytest.raises(FormatError, match="damaged"):
        unpack(np.zeros(100, np.uint8), [(4, 1 << 40)])


def test_a_stream_of_this_version_is_read_for_ever():
    """Made when this was written; other versions of the packer may make other streams."""
    rows = np.arange(12, dtype="<f4").view(np.uint8)
    data = bytes.fromhex(GOLDEN)
    found = unpack(np.frombuffer(data, np.uint8), [(4, 48), (2, 6)])
    assert np.array_equal(found[0], rows)
    assert found[1].tobytes() == b"abcdef"


GOLDEN = "28b52ffd0048150100d0000080004080a0c0e000102030003f40414141416163656264660200405035c002"
