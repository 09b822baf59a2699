"""Adapters as they lie about: under other names, in parts, in a cache, or something else."""

import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import lotr_tn as lt
from lotr_tn.errors import CheckpointError, UnsupportedError
from lotr_tn.files.path_patterns import PathPatterns
from lotr_tn.files.places import located, name_of
from tests.files.test_refusals import CONFIG, P, factors, write

COMMIT = "c0ffee" + "0" * 34


def same(one, two):
    assert [m.target for m in one.modules] == [m.target for m in two.modules]
    for a, b in zip(one.modules, two.modules, strict=True):
        assert a.scale == b.scale
        assert np.array_equal(a.up, b.up)
        assert np.array_equal(a.down, b.down)
    assert {k: t.shape for k, t in one.extras.items()} == {
        k: t.shape for k, t in two.extras.items()
    }


HEAD = {f"{P}score.weight": np.ones((2, 3), np.float32)}


@pytest.mark.parametrize(
    ("renamed", "said"),
    [
        (lambda key: f"_orig_mod.{key}", "_orig_mod. taken off, which torch.compile"),
        (lambda key: key.replace("layers.0", "layers.0._orig_mod"), "torch.compile"),
        (lambda key: key.replace(P, f"{P}_fsdp_wrapped_module."), "FSDP"),
        (lambda key: f"module.{key}", "DDP"),
        (lambda key: key.replace(P, f"{P}module."), "DDP"),
        (lambda key: key.removeprefix(P), "base_model.model. put before names"),
        (lambda key: f"module._orig_mod.{key.removeprefix(P)}", "DDP"),
    ],
)
def test_names_that_trainers_change_are_read_under_pefts(tmp_path, renamed, said):
    tensors = factors() | HEAD
    good = lt.load_adapter(write(tmp_path / "good", tensors))
    found = lt.load_adapter(write(tmp_path / "odd", {renamed(k): v for k, v in tensors.items()}))
    same(found, good)
    assert list(found.extras) == list(HEAD)
    assert any(said in note for note in found.notes)
    assert good.notes == ()


def test_a_wrappers_name_that_the_targets_have_is_the_models_own(tmp_path):
    folder = write(tmp_path / "a", factors("module.q"), CONFIG | {"target_modules": ["module.q"]})
    assert lt.load_adapter(folder).modules[0].target.name == "module.q"


def test_a_key_that_two_wrapped_names_give_is_refused(tmp_path):
    tensors = factors() | {f"_orig_mod.{k}": v for k, v in factors(seed=1).items()}
    with pytest.raises(CheckpointError, match="same factor twice"):
        lt.load_adapter(write(tmp_path / "a", tensors))


@pytest.mark.parametrize("keys", [["lm_head.weight"], list(factors())], ids=["head", "all"])
def test_empty_tensors_are_named(tmp_path, keys):
    tensors = factors() | {f"{P}{key.removeprefix(P)}": np.zeros(0, np.float32) for key in keys}
    with pytest.raises(CheckpointError, match=r"is empty, of shape \(0,\), as DeepSpeed's ZeRO-3"):
        lt.load_adapter(write(tmp_path / "a", tensors))


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
def test_a_byte_order_mark_is_read_and_not_handed_on(tmp_path, mark):
    folder = write(tmp_path / "a")
    file = folder / "adapter_config.json"
    file.write_bytes(mark + file.read_bytes().replace(b"{", b"{\r\n"))
    adapter = lt.load_adapter(folder)
    made = lt.convert_adapter(adapter, lt.RelativeError(0)).adapter
    lt.save_adapter(made, tmp_path / "b.lotr.safetensors")
    text = lt.load_adapter(tmp_path / "b.lotr.safetensors").config_text
    assert json.loads(text) == CONFIG
    assert "\r\n" in text


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>" + bytes(99), "is a web page"),
        (b"\n <html><head></head></html>" + bytes(99), "is a web page"),
        (b"GGUF\x03\0\0\0" + bytes(200), "GGUF"),
        (b"PK\x03\x04" + bytes(200), "is a torch file"),
        (b"\x1f\x8b" + bytes(20), "gzip"),
        (b"", "not a complete safetensors file"),
    ],
)
def test_another_file_under_the_name_is_named(tmp_path, raw, said):
    folder = write(tmp_path / "a")
    (folder / "adapter_model.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=said):
        lt.load_adapter(folder)
    if said != "is a torch file":
        folder = write(tmp_path / "b")
        (folder / "adapter_config.json").write_bytes(raw or b"\0")
        with pytest.raises(CheckpointError, match=said if raw and raw[:1] != b"P" else "JSON"):
            lt.load_adapter(folder)


def test_a_model_a_configuration_alone_and_a_pipe_are_named(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    save_file({"layers.0.q.weight": np.ones((2, 2))}, model / "model.safetensors")
    (model / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"the config.json of a model"):
        lt.load_adapter(model)
    with pytest.raises(CheckpointError, match="weights of a model, not an adapter"):
        lt.load_adapter(write(tmp_path / "full", load_file(model / "model.safetensors")))
    alone = write(tmp_path / "alone")
    (alone / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"but their adapter_config\.json"):
        lt.load_adapter(alone)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        piped = write(tmp_path / f"piped-{name}")
        (piped / name).unlink()
        os.mkfifo(piped / name)
        with pytest.raises(CheckpointError, match=r"a pipe or a device|no file"):
            lt.load_adapter(piped)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ([torch.ones(2, 3), torch.ones(3, 2)], "cloneofsimo"),
        ({"unet.x.processor.to_k_lora.down.weight": torch.ones(2, 3)}, "diffusers file of 2023"),
        ({"unet.x.processor.to_k_lora.down.weight": torch.ones(2, 3)}, "attention processors"),
    ],
)
def test_image_adapters_are_named_without_being_sent_for_a_configuration(tmp_path, tensors, said):
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=said):
        lt.load_adapter(tmp_path / "x.pt")


def in_parts(folder, tensors):
    keys = list(tensors)
    where = {}
    for number, part in enumerate((keys[:3], keys[3:]), 1):
        name = f"adapter_model-{number:05d}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, folder / name)
        where |= dict.fromkeys(part, name)
    (folder / "adapter_model.safetensors").unlink()
    index = folder / "adapter_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def test_parts_are_read_by_their_index(tmp_path):
    tensors = factors() | factors("layers.1.q", seed=1) | HEAD
    good, folder = (write(tmp_path / name, tensors) for name in ("good", "parts"))
    index = in_parts(folder, tensors)
    same(lt.load_adapter(folder), lt.load_adapter(good))
    part = folder / "adapter_model-00001-of-00002.safetensors"
    with pytest.raises(CheckpointError, match=f"one part of an adapter.*name its folder {folder}"):
        lt.load_adapter(part)
    said = json.loads(index.read_text())
    for change, message in (
        ({next(iter(tensors)): "../good/adapter_model.safetensors"}, "is no file beside it"),
        ({next(iter(tensors)): "adapter_model-00002-of-00002.safetensors"}, "does not say"),
        ({"more": "adapter_model-00002-of-00002.safetensors"}, "names more, which no part holds"),
    ):
        index.write_text(json.dumps({"weight_map": said["weight_map"] | change}))
        with pytest.raises(CheckpointError, match=message):
            lt.load_adapter(folder)
    index.write_text(json.dumps(said))
    part.unlink()
    with pytest.raises(CheckpointError, match=r"the part adapter_model-00001.*is not there"):
        lt.load_adapter(folder)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The Hub's cache with one adapter, org/my-lora."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--org--my-lora"
    snapshot = repository / "snapshots" / COMMIT
    write(tmp_path / "plain")
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(tmp_path / "plain" / name, repository / "blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return repository


def test_a_repository_in_the_hubs_cache_stands_for_its_snapshot(cache, tmp_path):
    for path in (cache, "org/my-lora"):
        adapter = lt.load_adapter(path)
        same(adapter, lt.load_adapter(tmp_path / "plain"))
        assert name_of(adapter.source) == "my-lora"
    (cache / "snapshots" / "other").mkdir()
    assert located(cache).name == COMMIT
    (cache / "refs" / "main").unlink()
    with pytest.raises(CheckpointError, match=f"has the snapshots {COMMIT}, other: name one"):
        lt.load_adapter(cache)
    (cache / "snapshots" / "other").rmdir()
    assert located(cache).name == COMMIT


def test_a_name_that_is_not_in_the_cache_is_told_how_to_get(cache):
    with pytest.raises(CheckpointError, match=r"no such file.*hf download org/other$"):
        lt.load_adapter("org/other")


@pytest.mark.parametrize("path", ["x" * 300, "a\0b", "", "/" + "x/" * 3000, "a\udcffb"])
def test_paths_that_no_system_takes(path):
    with pytest.raises(CheckpointError):
        lt.load_adapter(path)


@pytest.mark.parametrize("size", [0, 64 << 20])
def test_a_file_that_is_changed_later_changes_no_adapter(tmp_path, monkeypatch, size):
    monkeypatch.setattr("lotr_tn.files.tensors.WHOLE", 1 if size == 0 else size)
    folder = write(tmp_path / "a")
    adapter = lt.load_adapter(folder)
    before = adapter.modules[0].up.copy()
    with open(folder / "adapter_model.safetensors", "r+b") as file:
        file.write(bytes(os.fstat(file.fileno()).st_size))
        file.truncate(10)
    assert np.array_equal(adapter.modules[0].up, before)


@pytest.mark.parametrize("mapped", [1, 1 << 30])
def test_a_file_that_changes_under_the_reader_is_refused(tmp_path, monkeypatch, mapped):
    import lotr_tn.files.tensors as module

    folder = write(tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    real = module.parse_header

    def meanwhile(raw, size):
        with open(file, "ab") as more:
            more.write(b"x")
        return real(raw, size)

    monkeypatch.setattr(module, "WHOLE", mapped)
    monkeypatch.setattr(module, "parse_header", meanwhile)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        lt.load_adapter(folder)


def pickled(folder, tensors):
    write(folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    return folder


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.ones(1, 1).expand(2, 2**33), "they repeat what they hold"),
        (torch.ones(2, 4).to_sparse(), "is sparse_coo, not a plain tensor"),
        (torch.empty(2, 4, device="meta"), "is meta, not a plain tensor"),
        (torch.ones(2, 4, dtype=torch.complex64).conj(), "dtype complex64"),
    ],
)
def test_tensors_of_torch_that_are_no_entries(tmp_path, tensor, said):
    tensors = {key: torch.from_numpy(value) for key, value in factors().items()}
    tensors[next(iter(tensors))] = tensor
    with pytest.raises(CheckpointError, match=said):
        lt.load_adapter(pickled(tmp_path / "a", tensors))


def test_strided_and_tied_tensors_of_torch_are_read(tmp_path):
    tensors = {key: torch.from_numpy(value.T.copy()).T for key, value in factors().items()}
    head = torch.ones(3, 50)
    tensors |= {f"{P}score.weight": head, f"{P}lm_head.weight": head, f"{P}e.weight": -head.conj()}
    found = lt.load_adapter(pickled(tmp_path / "a", tensors))
    assert np.array_equal(found.modules[0].up, factors()[f"{P}layers.0.q.lora_B.weight"])


def test_an_archive_of_zeros_is_refused_before_it_is_unpacked(tmp_path):
    folder = pickled(tmp_path / "a", {"x": torch.ones(2)})
    with zipfile.ZipFile(folder / "adapter_model.bin", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/9", bytes(1 << 20))
    with pytest.raises(CheckpointError, match="unpacks to 10"):
        lt.load_adapter(folder)


@pytest.mark.parametrize(
    ("change", "shapes", "said"),
    [
        ({}, ((8, 4), (5, 8)), "fused experts.*rank 8, 4 times the 2"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, ((8, 4), (5, 8)), "target_parameters"),
        ({}, ((3, 2, 4), (3, 5, 2)), r"fused experts.*\(3, 2, 4\)"),
    ],
)
def test_fused_experts_are_named_as_the_cause(tmp_path, change, shapes, said):
    keys = [f"{P}layers.0.mlp.experts.base_layer.lora_{side}.weight" for side in "AB"]
    experts = {key: np.ones(shape, np.float32) for key, shape in zip(keys, shapes, strict=True)}
    with pytest.raises(UnsupportedError, match=said):
        lt.load_adapter(write(tmp_path / "a", factors() | experts, CONFIG | change))


def test_experts_that_are_named_and_absent_do_no_harm(tmp_path):
    config = CONFIG | {"target_parameters": ["mlp.experts.down_proj"]}
    assert len(lt.load_adapter(write(tmp_path / "a", config=config)).modules) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_alpha": 10**400}, "lora_alpha must be a number"),
        ({"lora_alpha": 1e39}, "the scale 5e.38, more than float32"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be a number"),
        ({"r": 10**400}, "r must be a number"),
        ({"alpha_pattern": {"q": float("nan")}}, r"alpha_pattern\['q'\] must be a number"),
        ({"alpha_pattern": {"q": True}}, r"alpha_pattern\['q'\] must be a number"),
        *(({"rank_pattern": {"q": x}}, "must be a whole number") for x in (0, -2, 2.9, 2.0)),
        ({"rank_pattern": {"q": float("nan")}}, "must be a number"),
        ({"rank_pattern": {"a{1,99999999999}": 2}}, "is no regular expression"),
        ({"rank_pattern": {"(" * 500 + ")" * 500: 2}}, "is no regular expression"),
        ({"init_lora_weights": ["pissa"]}, "init_lora_weights"),
    ],
)
def test_scales_and_ranks_without_a_meaning(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        lt.load_adapter(write(tmp_path / "a", config=CONFIG | change))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"r": ' + "9" * 5000 + "}"])
def test_configurations_that_no_parser_takes(tmp_path, text):
    folder = write(tmp_path / "a")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"nests its values too deep|not valid JSON"):
        lt.load_adapter(folder)


def test_patterns_are_those_of_peft(tmp_path):
    from peft.utils.other import get_pattern_key

    patterns = [
        "q_proj",
        "layers.1.q_proj",
        r"^layers.1.q_proj",
        r"^a\.b.c",
        "",
        "q.proj",
        ".",
        "..",
        "(q|c)",
        r"a\.",
        "[a-c]",
        ".*",
        r"layers\.\d+\.q_proj",
        "b$",
        r"\-",
        "q_proj|v_proj",
        "q)|(v_proj",
    ]
    paths = [
        "a.b.c",
        "layers.1.q_proj",
        "m.layers.11.q_proj",
        "xq_proj",
        "q.proj",
        "a.",
        "q_proj\n",
        "v_proj",
    ]
    for begin in range(len(patterns)):
        chosen = {p: p for p in patterns[begin:] + patterns[:begin]}
        ours = PathPatterns(chosen, tmp_path)
        for path in paths:
            theirs = get_pattern_key(list(chosen), path)
            assert ours.first(path) == (theirs if theirs in chosen else None), (path, begin)
