"""Packed configurations: any text comes back, and no damaged one is believed or takes memory."""

import base64
import json
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn.errors import CheckpointError
from lotr_tn.files import packing
from lotr_tn.files.container import read_container, write_digested
from lotr_tn.files.packing import LONGEST, PREFIX, PRESET, is_packed, packed, unpacked

TEXTS = (
    "",
    "{}",
    PRESET.decode(),
    '{"r": 8}' * 100,
    "ä€😀\n\t\x00\x7f",
    "\ud800",
    PREFIX + "not packed",
)


def raw(data: bytes) -> str:
    """Bytes as a packed text has them."""
    return PREFIX + base64.b85encode(data).decode()


def compressed(plain: bytes) -> bytes:
    work = zlib.compressobj(9, zdict=PRESET)
    return work.compress(plain) + work.flush()


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back(text):
    assert is_packed(packed(text))
    assert unpacked(packed(text)) == text


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(), max_size=300))
def test_any_text_comes_back_in_characters_of_json(text):
    made = packed(text)
    assert unpacked(made) == text
    assert json.dumps(made) == f'"{made}"'
    assert made.isascii()


def test_what_configurations_say_takes_next_to_nothing():
    config = PRESET.decode()
    assert len(packed(config)) < len(config) / 20


@pytest.mark.parametrize("more", [0, 1])
def test_the_longest_text(monkeypatch, more):
    monkeypatch.setattr(packing, "LONGEST", 1000)
    text = "x" * (1000 + more)
    made = packed(text)
    assert is_packed(made) is not bool(more)
    assert (unpacked(made) if is_packed(made) else made) == text


@pytest.mark.parametrize(
    "wrong",
    [
        raw(b""),
        raw(b"no zlib"),
        raw(zlib.compress(b"{}")[:-1] + b"?"),
        raw(compressed(b'{"r": 8}')[:-2]),
        raw(compressed(b'{"r": 8}') + b"more"),
        raw(compressed(b"\xff\xfe")),
        PREFIX + " " + packed("{}").removeprefix(PREFIX),
        PREFIX + "ä",
    ],
)
def test_damage_is_refused(wrong):
    with pytest.raises(ValueError, match=r"cannot be decompressed|is cut short"):
        unpacked(wrong)


def test_every_changed_character_is_refused():
    made = packed('{"r": 8, "lora_alpha": 16, "base_model_name_or_path": "example/one"}')
    for at in range(len(PREFIX), len(made)):
        changed = "0" if made[at] != "0" else "1"
        with pytest.raises(ValueError, match=r"cannot be decompressed|is cut short"):
            unpacked(made[:at] + changed + made[at + 1 :])


def test_a_bomb_takes_the_memory_of_the_longest_text(monkeypatch):
    longest = 1 << 20
    assert longest < LONGEST
    monkeypatch.setattr(packing, "LONGEST", longest)
    bomb = raw(compressed(bytes(32 * longest)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"more than {longest} bytes"):
            unpacked(bomb)
        assert tracemalloc.get_traced_memory()[1] < 6 * longest
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("wrong", [raw(b"no zlib"), raw(compressed(b"[]"))])
def test_a_file_with_such_a_configuration_is_refused(demo_adapter, tmp_path, wrong):
    path = tmp_path / "a.lotr.safetensors"
    made = lt.convert_adapter(lt.load_adapter(demo_adapter), lt.RelativeError(0.5))
    lt.save_adapter(made.adapter, path)
    file = read_container(path, "lotr")
    header = json.loads(file.text)
    assert (
        unpacked(header["source"]["config"]) == (demo_adapter / "adapter_config.json").read_text()
    )
    header["source"]["config"] = wrong
    entries = {name: file.entry(name) for name in file.tensors}
    write_digested(path, entries, json.dumps(header), force=True, key="lotr")
    with pytest.raises(CheckpointError, match=r"the configuration .*; restore the file") as refusal:
        lt.load_adapter(path)
    assert len(str(refusal.value)) < 500


def test_a_configuration_that_is_too_long_to_be_packed_is_kept(demo_adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "LONGEST", 100)
    adapter = lt.load_adapter(demo_adapter)
    made = lt.convert_adapter(adapter, lt.RelativeError(0.5)).adapter
    lt.save_adapter(made, tmp_path / "a.lotr.safetensors")
    assert lt.load_adapter(tmp_path / "a.lotr.safetensors").config_text == adapter.config_text
