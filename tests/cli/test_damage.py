"""A flipped bit in a file that a command reads: status 1 and a sentence, never other numbers."""

import json
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

import lotr_tn as lt
from lotr_tn.doors.sources import named_adapters

SHAPES = {"q_proj": (12, 10), "v_proj": (8, 10)}


def peft_folder(folder, seed):
    """Two layers of two kinds and a head."""
    rng, tensors = np.random.default_rng(seed), {}
    for layer in range(2):
        for kind, (m, n) in SHAPES.items():
            base = f"base_model.model.layers.{layer}.{kind}"
            tensors[f"{base}.lora_A.weight"] = rng.standard_normal((2, n), np.float32)
            tensors[f"{base}.lora_B.weight"] = rng.standard_normal((m, 2), np.float32)
    tensors["base_model.model.score.weight"] = np.ones((2, 3), np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "b"}
    config["target_modules"] = list(SHAPES)
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with adapters, a native file and a bank."""
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("one", "two", "later")):
        peft_folder(root / ("later" if name == "later" else f"run/{name}"), seed)
    one = lt.load_adapter(root / "run/one")
    assert isinstance(one, lt.LoRAAdapter)
    conversion = lt.convert_adapter(one, lt.RelativeError(0.3))
    lt.save_adapter(conversion.adapter, root / "n.lotr.safetensors")
    run = named_adapters([root / "run"])
    lt.banks.make_bank(run, root / "bank.lotr.safetensors", lt.RelativeError(0.3), format="lotr")
    return root


def flip(path, part):
    """Flip a bit in the last entry of the first tensor whose name has a part; gives the name."""
    raw = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    name = next(name for name in header if part in name and name != "__metadata__")
    raw[8 + length + header[name]["data_offsets"][1] - 2] ^= 1
    path.write_bytes(raw)
    return name


def tensors_of(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return [name for name in json.loads(raw[8 : 8 + length]) if name != "__metadata__"]


NATIVE = [
    "inspect n.lotr.safetensors",
    "analyze n.lotr.safetensors",
    "export n.lotr.safetensors -o out",
    "compare run/one n.lotr.safetensors",
    "compare n.lotr.safetensors run/one",
    "merge n.lotr.safetensors run/two -o out",
    "bank make n.lotr.safetensors run/two -o out.lotr.safetensors --rel-error 0.3",
    "bank add bank.lotr.safetensors n.lotr.safetensors",
]
BANK = [
    "bank export bank.lotr.safetensors one -o out",
    "bank export bank.lotr.safetensors --all -o out",
    "bank merge bank.lotr.safetensors -o out",
    "bank add bank.lotr.safetensors later",
    "bank drop bank.lotr.safetensors two",
    "bank rename bank.lotr.safetensors two three",
    "bank compact bank.lotr.safetensors --rel-error 0.8",
    "bank verify bank.lotr.safetensors",
    "bank make bank.lotr.safetensors later -o out.lotr.safetensors --rel-error 0.5",
    "inspect bank.lotr.safetensors/one",
    "analyze bank.lotr.safetensors/one",
    "export bank.lotr.safetensors/one -o out",
    "compare run/one bank.lotr.safetensors/one",
    "compare run bank.lotr.safetensors",
    "merge bank.lotr.safetensors/one later -o out",
]
HEADER = ["bank show bank.lotr.safetensors", "inspect bank.lotr.safetensors"]


def refused(lotr, command, source):
    before = {path: path.read_bytes() for path in source.parent.glob("*.safetensors")}
    status, out, err = lotr(*command.split())
    assert (status, out) == (1, ""), command
    assert "is damaged" in err, command
    assert err.count("\n") == 1
    assert len(err) < 500
    after = {path: path.read_bytes() for path in source.parent.glob("*.safetensors")}
    assert after == before, "nothing was written"
    if (source.parent / "out").exists():  # of several adapters those before are whole, and told
        whole = [lt.load_adapter(folder) for folder in (source.parent / "out").iterdir()]
        assert f"{len(whole)} of 2 adapters were written to out" in err
        shutil.rmtree(source.parent / "out")
    assert not list(source.parent.glob(".*")), "nothing is left"


@pytest.mark.parametrize(
    ("command", "file", "part"),
    [(command, "n.lotr.safetensors", "groups.") for command in NATIVE]
    + [(command, "bank.lotr.safetensors", ".core") for command in BANK]
    + [(command, "bank.lotr.safetensors", ".outputs.") for command in BANK]
    + [(command, "bank.lotr.safetensors", "figures") for command in [*BANK, *HEADER]],
)
def test_a_flipped_bit_ends_every_command(lotr, made, tmp_path, command, file, part):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    name = flip(tmp_path / file, part)
    assert part in name
    refused(lotr, command, tmp_path / file)


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("n.lotr.safetensors", "export n.lotr.safetensors -o out"),
        ("bank.lotr.safetensors", "bank export bank.lotr.safetensors --all -o out"),
        ("bank.lotr.safetensors", "bank rename bank.lotr.safetensors two three"),
    ],
)
def test_a_flipped_bit_in_any_tensor_is_seen(lotr, made, tmp_path, file, command):
    for name in tensors_of(made / file):
        shutil.copytree(made, tmp_path, dirs_exist_ok=True)
        flip(tmp_path / file, name)
        refused(lotr, command, tmp_path / file)


def test_files_without_digests_are_read_and_said_to_have_none(lotr, made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "n.lotr.safetensors"
    status, out, _ = lotr("inspect", file)
    assert status == 0
    assert "Digests" not in out
    assert json.loads(lotr("inspect", file, "--json")[1])["digests"] is True
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    for key in ("digest", "checksums"):  # one without the other is damage
        metadata = {k: v for k, v in header["__metadata__"].items() if k != key}
        text = json.dumps(header | {"__metadata__": metadata}).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data)
        refused(lotr, "inspect n.lotr.safetensors", file)
    metadata = {"lotr": header["__metadata__"]["lotr"]}
    text = json.dumps(header | {"__metadata__": metadata}).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    status, out, _ = lotr("inspect", file)
    assert status == 0
    assert "Digests         none" in out
    assert json.loads(lotr("inspect", file, "--json")[1])["digests"] is False
    assert json.loads(lotr("inspect", "run/one", "--json")[1])["digests"] is None
