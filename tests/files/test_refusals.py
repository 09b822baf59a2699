"""Bad input: one clear sentence, nothing written, nothing run."""

import json
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import lotr_tn as lt
from lotr_tn.errors import CheckpointError, UnsupportedError

P = "base_model.model."
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}


def factors(name="layers.0.q", m=5, n=4, r=2, seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"{P}{name}.lora_A.weight": rng.standard_normal((r, n)).astype(np.float32),
        f"{P}{name}.lora_B.weight": rng.standard_normal((m, r)).astype(np.float32),
    }


def write(folder, tensors=None, config=None):
    folder.mkdir(exist_ok=True)
    save_file(factors() if tensors is None else tensors, folder / "adapter_model.safetensors")
    text = json.dumps(CONFIG if config is None else config)
    (folder / "adapter_config.json").write_text(text)
    return folder


def test_the_good_one_is_read(tmp_path):
    adapter = lt.load_adapter(write(tmp_path / "a"))
    assert adapter.modules[0].scale == 2
    assert adapter.modules[0].target.name == "layers.0.q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_alpha": None}, "no lora_alpha"),
        ({"r": None}, "no r, so the scale"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number; found '8'"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a number"),
        ({"r": 0}, "r must be a whole number above 0"),
        ({"r": 2.5}, "r must be a whole number above 0"),
        ({"r": 3}, "has rank 2, but adapter_config.json gives it 3"),
        ({"rank_pattern": {"q": 4}}, "gives it 4"),
        ({"rank_pattern": {"(": 4}}, "is no regular expression"),
        ({"rank_pattern": [1]}, "rank_pattern must be an object"),
        ({"alpha_pattern": {"q": "x"}}, r"alpha_pattern\['q'\] must be a number"),
        ({"peft_type": None}, "no peft_type"),
    ],
)
def test_configurations_without_a_meaning(tmp_path, change, message):
    config = {k: v for k, v in (CONFIG | change).items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        lt.load_adapter(write(tmp_path / "a", config=config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora: DoRA's"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'.*save_pretrained"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"use_qalora": True}, "QALoRA"),
        ({"enable_lora": [True, False, True]}, "MergedLinear"),
        ({"use_bdlora": {"x": 1}}, "use_bdlora"),
        ({"kasa_config": {"x": 1}}, "KaSA"),
        ({"peft_type": "IA3"}, "describes an adapter of type IA3; needed peft_type LORA"),
        ({"peft_type": "UNILORA"}, "UNILORA"),
    ],
)
def test_refused_features_are_named(tmp_path, change, message):
    with pytest.raises(UnsupportedError, match=message):
        lt.load_adapter(write(tmp_path / "a", config=CONFIG | change))


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_plain_inits_are_taken(tmp_path, init):
    lt.load_adapter(write(tmp_path / "a", config=CONFIG | {"init_lora_weights": init}))


def edited(change):
    tensors = factors()
    change(tensors)
    return tensors


A, B = f"{P}layers.0.q.lora_A.weight", f"{P}layers.0.q.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(A), "has only .*lora_B.weight; needed both"),
        (lambda t: t.pop(B), "has only .*lora_A.weight; needed both"),
        (lambda t: t.update({A: np.full((2, 4), np.nan, np.float32)}), "NaN or infinite"),
        (lambda t: t.update({B: np.full((5, 2), np.inf, np.float16)}), "NaN or infinite"),
        (lambda t: t.update({A: np.ones((3, 4), np.float32)}), r"lora_A of shape \(3, 4\)"),
        (lambda t: t.update({A: np.ones((2, 4, 1), np.float32)}), "needed"),
        (lambda t: t.update({A: np.ones(4, np.float32)}), "needed"),
        (lambda t: t.update({A: np.ones((2, 0), np.float32)}), "is empty, of shape"),
        (lambda t: t.update({A: np.ones((2, 4), np.int32)}), "dtype int32"),
        (lambda t: t.update({"stray": np.ones(2, np.float32)}), "unknown key 'stray'"),
        (
            lambda t: t.update({P + "q.lora_C.weight": np.ones(2, np.float32)}),
            "unknown key .*lora_C",
        ),
        (
            lambda t: t.update({P + "layers.0.q.lora_magnitude_vector": np.ones(5, np.float32)}),
            "DoRA",
        ),
        (
            lambda t: t.update({P + "layers.0.q.lora_B.bias": np.ones(5, np.float32)}),
            "bias on lora_B",
        ),
        (lambda t: t.update({P + "q.hada_w1_a": np.ones(2, np.float32)}), "another method"),
        (
            lambda t: t.update({P + "layers.0.q.lora_A.b.weight": np.ones((2, 4), np.float32)}),
            "same factor twice",
        ),
        (
            lambda t: t.update(
                {
                    k.replace("layers.0.q", "layers.1.q").replace(".weight", ".b.weight"): v
                    for k, v in factors().items()
                }
            ),
            "mixes adapters",
        ),
        (lambda t: t.clear(), "nothing to convert"),
    ],
)
def test_broken_files(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        lt.load_adapter(write(tmp_path / "a", tensors=edited(change)))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "kohya-ss"),
        ("lora_te1_text_model.lora_up.weight", "kohya-ss"),
        ("unet.down.lora.down.weight", "diffusers"),
        ("unet:0:up", "cloneofsimo"),
        ("model.layers.0.self_attn.q_proj.lora_a", "MLX"),
        ("w_a_000", "SAM_LoRA"),
        ("roberta.query.lora_A", "loralib"),
    ],
)
def test_foreign_formats_are_recognised_with_and_without_a_config(tmp_path, key, name):
    folder = write(tmp_path / "a", tensors={key: np.ones((2, 2), np.float32)})
    with pytest.raises(CheckpointError, match=f"looks like .*{name}"):
        lt.load_adapter(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=f"looks like .*{name}"):
        lt.load_adapter(folder / "adapter_model.safetensors")


def test_no_config(tmp_path):
    folder = write(tmp_path / "a")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_config.json beside it.*same folder"):
        lt.load_adapter(folder)


def test_config_that_is_no_json_object(tmp_path):
    folder = write(tmp_path / "a")
    for text, message in (("{", "not valid JSON"), ("[1]", "holds a list")):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            lt.load_adapter(folder)
    (folder / "adapter_config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="cannot read"):
        lt.load_adapter(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"lora_parameters": {}}))
    with pytest.raises(UnsupportedError, match="MLX"):
        lt.load_adapter(folder)


def test_missing_and_empty_places(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        lt.load_adapter(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no adapter_model.safetensors"):
        lt.load_adapter(tmp_path)


@pytest.mark.parametrize("cut", [0, 4, 8, 40, 200, -1])
def test_truncated_safetensors(tmp_path, cut):
    folder = write(tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        lt.load_adapter(folder)


def test_headers_that_lie(tmp_path):
    folder = write(tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    for change in (
        {"shape": [3, 4]},
        {"data_offsets": [0, 10**9]},
        {"dtype": "F64"},
        {"dtype": "X9"},
    ):
        lying = {k: dict(v) for k, v in header.items()}
        lying[A] |= change
        text = json.dumps(lying).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
        with pytest.raises(CheckpointError, match="not a complete safetensors file"):
            lt.load_adapter(folder)
    file.write_bytes(struct.pack("<Q", 2**62) + whole[8:])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        lt.load_adapter(folder)


class Bomb:
    def __reduce__(self):
        return (open, ("ran.txt", "w"))


def bin_folder(tmp_path):
    folder = write(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    return folder, folder / "adapter_model.bin"


def test_a_pickle_that_would_run_code_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, file = bin_folder(tmp_path)
    torch.save({A: Bomb()}, file)
    with pytest.raises(CheckpointError, match="can run code"):
        lt.load_adapter(folder)
    file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        lt.load_adapter(folder)
    assert not (tmp_path / "ran.txt").exists()


def test_broken_pickles(tmp_path):
    folder, file = bin_folder(tmp_path)
    torch.save({k: torch.from_numpy(v) for k, v in factors().items()}, file)
    whole = file.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        file.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError):
            lt.load_adapter(folder)
    torch.save([torch.ones(2)], file)
    with pytest.raises(CheckpointError, match="holds a list"):
        lt.load_adapter(folder)
    torch.save({A: torch.ones(2, 4, dtype=torch.complex128)}, file)
    with pytest.raises(CheckpointError, match="complex128"):
        lt.load_adapter(folder)


def test_pickles_without_torch(tmp_path, monkeypatch):
    folder, file = bin_folder(tmp_path)
    torch.save({k: torch.from_numpy(v) for k, v in factors().items()}, file)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(
        CheckpointError, match=r"torch is not installed; install 'lotr-tn\[torch\]'"
    ):
        lt.load_adapter(folder)


@pytest.fixture
def native(tmp_path):
    conversion = lt.convert_adapter(lt.load_adapter(write(tmp_path / "a")), (1, 1))
    file = tmp_path / "a.lotr.safetensors"
    lt.save_adapter(conversion.adapter, file)
    return file


def rewrite(file, change):
    from safetensors import safe_open

    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    tensors, header = (
        {k: v.copy() for k, v in load_file(file).items()},
        json.loads(metadata["lotr"]),
    )
    change(tensors, header)
    save_file(tensors, file, metadata={"lotr": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, h: h.update(schema=9), "schema 9; this version reads those up to 2"),
        (lambda t, h: h.pop("groups"), "it lacks 'groups'"),
        (lambda t, h: h["groups"]["q"].pop("modules"), "it lacks 'modules'"),
        (lambda t, h: h["groups"]["q"].update(shape=[1, 7, 4]), "is said to be"),
        (lambda t, h: h["groups"]["q"].update(modules=[]), "names 0 modules for 1 layers"),
        (lambda t, h: t.pop("groups.q.core"), "no tensor groups.q.core"),
        (
            lambda t, h: t.update({"groups.q.u": np.ones((5, 3), np.float32)}),
            "sense .axis r1",
        ),
        (lambda t, h: t.update({"groups.q.u": np.full((5, 1), np.nan, np.float32)}), "NaN"),
        (lambda t, h: t.update({"stray": np.ones(2)}), "unknown key 'stray'"),
    ],
)
def test_damaged_native_files(native, change, message):
    rewrite(native, change)
    with pytest.raises(CheckpointError, match=message):
        lt.load_adapter(native)


def test_wrong_direction(native, tmp_path):
    lotr = lt.load_adapter(native)
    with pytest.raises(CheckpointError, match="is a LoTR file already"):
        lt.convert_adapter(lotr, 2)
    with pytest.raises(CheckpointError, match=r"must end in .safetensors"):
        lt.save_adapter(lotr, tmp_path / "a.bin")


def test_comparing_different_adapters(native, tmp_path):
    other = lt.load_adapter(write(tmp_path / "b", tensors=factors("layers.1.q")))
    with pytest.raises(CheckpointError, match=r"only the first adapter updates layers.0.q"):
        lt.compare_adapters(lt.load_adapter(native), other)
    wide = lt.load_adapter(write(tmp_path / "c", tensors=factors(m=6)))
    with pytest.raises(CheckpointError, match=r"\(5, 4\) in one adapter and \(6, 4\)"):
        lt.compare_adapters(lt.load_adapter(native), wide)


@pytest.mark.parametrize("name", ["adapters.safetensors", "pytorch_lora_weights.safetensors"])
def test_folders_of_other_tools_are_named(tmp_path, name):
    save_file({"unet.down.lora.down.weight": np.ones((2, 2), np.float32)}, tmp_path / name)
    with pytest.raises(CheckpointError, match="looks like a diffusers file"):
        lt.load_adapter(tmp_path)
    save_file(factors(), tmp_path / name)
    with pytest.raises(CheckpointError, match=f"to read {name}, name the file itself"):
        lt.load_adapter(tmp_path)
