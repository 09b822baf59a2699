"""The generators of many adapters: what they write loads, and is what their docstrings say."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lotr_tn as lt
from benchmarks.fleets import SHAPES, planted_modules, write_fleet, write_run

SIZES = {"rank": 3, "shared": 6}


def update(folder, name: str) -> np.ndarray:
    """One module's update by a plain product in float64."""
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    b, a = (tensors[f"{name}.lora_{side}.weight"].astype(np.float64) for side in "BA")
    return config["lora_alpha"] / config["r"] * b @ a


def test_a_fleet_loads_and_has_the_planted_spaces(tmp_path):
    folders = write_fleet(tmp_path, 5, shapes="tiny", noise=1e-3, **SIZES)
    assert [folder.name for folder in folders] == [f"adapter-{i:04d}" for i in range(5)]
    planted = planted_modules(SHAPES["tiny"], SIZES["shared"])
    assert len(planted) == 4
    for folder in folders:
        adapter = lt.load_adapter(folder)
        assert isinstance(adapter, lt.LoRAAdapter)
        assert len(adapter.modules) == 4
        for name, spaces in planted.items():
            found = update(folder, name)
            kept = spaces.u @ (spaces.u.T @ found @ spaces.v) @ spaces.v.T
            outside = np.linalg.norm(found - kept) / np.linalg.norm(found)
            assert 0.7e-3 < outside < 1.05e-3  # the noise's part inside the spaces is not seen
            assert np.linalg.matrix_rank(found, tol=1e-9) == 3


def test_the_noise_has_the_size_asked_for(tmp_path):
    pure, noisy = (
        write_fleet(tmp_path / str(noise), 2, shapes="tiny", noise=noise, **SIZES)
        for noise in (0.0, 1e-3)
    )
    for before, after in zip(pure, noisy, strict=True):
        for name in planted_modules(SHAPES["tiny"], 6):
            w = update(before, name)
            found = np.linalg.norm(update(after, name) - w) / np.linalg.norm(w)
            assert abs(found - 1e-3) < 1e-5


def test_a_fleet_is_the_same_again_and_no_two_adapters_are(tmp_path):
    first = write_fleet(tmp_path / "a", 3, shapes="tiny", seed=4, **SIZES)
    again = write_fleet(tmp_path / "b", 2, shapes="tiny", seed=4, **SIZES)
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in first]
    assert weights[:2] == [(folder / "adapter_model.safetensors").read_bytes() for folder in again]
    assert len(set(weights)) == 3
    other = write_fleet(tmp_path / "c", 1, shapes="tiny", seed=5, **SIZES)[0]
    assert (other / "adapter_model.safetensors").read_bytes() != weights[0]


@pytest.mark.parametrize(
    ("dtype", "stored", "close"), [("bfloat16", ml_dtypes.bfloat16, 8e-3), ("float16", "f2", 1e-3)]
)
def test_a_fleet_in_half_the_bytes(tmp_path, dtype, stored, close):
    half = write_fleet(tmp_path / "half", 1, shapes="tiny", dtype=dtype, **SIZES)[0]
    whole = write_fleet(tmp_path / "whole", 1, shapes="tiny", **SIZES)[0]
    tensors = load_file(half / "adapter_model.safetensors")
    assert {x.dtype for x in tensors.values()} == {np.dtype(stored)}
    lt.load_adapter(half)
    for name in planted_modules(SHAPES["tiny"], 6):
        w = update(whole, name)
        assert 0 < np.linalg.norm(update(half, name) - w) < close * np.linalg.norm(w)


def test_the_default_fleet_has_the_modules_of_the_model():
    shapes = dict(SHAPES["llama-3.2-1b"].shapes())
    assert len(shapes) == 32
    assert shapes["base_model.model.model.layers.15.self_attn.v_proj"] == (512, 2048)
    assert sum(8 * (m + n) for m, n in shapes.values()) * 4 == 3_407_872


def test_refusals_of_a_fleet(tmp_path):
    with pytest.raises(ValueError, match="unknown dtype 'int8'"):
        write_fleet(tmp_path, 1, shapes="tiny", dtype="int8")
    with pytest.raises(ValueError, match=r"has .* free"):
        write_fleet(tmp_path, 10**12, shapes="tiny")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def sources(tmp_path):
    """Three checkpoints of a run that drifts, each with a head of its own."""
    first = write_fleet(tmp_path / "fleet", 2, shapes="tiny", **SIZES)
    start, drift = (load_file(folder / "adapter_model.safetensors") for folder in first)
    made = []
    for number, share in ((10, 0.0), (30, 0.1), (100, 0.4)):
        folder = tmp_path / "sources" / f"checkpoint-{number}"
        folder.mkdir(parents=True)
        tensors = {key: x + np.float32(share) * drift[key] for key, x in start.items()}
        tensors["base_model.model.score.weight"] = np.full((2, 48), number, np.float32)
        save_file(tensors, folder / "adapter_model.safetensors")
        config = json.loads((first[0] / "adapter_config.json").read_text())
        config |= {"modules_to_save": ["score"], "task_type": "SEQ_CLS"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        made.append(folder)
    return made


def test_a_run_fills_the_widest_gaps(tmp_path, sources):
    run = write_run(tmp_path / "run", sources[::-1], steps=8)
    numbers = [int(folder.name.rpartition("-")[2]) for folder in run]
    assert numbers == [10, 20, 30, 44, 58, 72, 86, 100]
    for number, folder in zip(numbers, run, strict=True):
        assert len(lt.load_adapter(folder).modules) == 4
        head = load_file(folder / "adapter_model.safetensors")["base_model.model.score.weight"]
        assert np.allclose(head, number)
    kept = [folder for folder in run if folder.name in {source.name for source in sources}]
    for folder, source in zip(kept, sources, strict=True):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (folder / name).read_bytes() == (source / name).read_bytes()


def test_noise_of_a_run_is_each_factors_own(tmp_path, sources):
    pure = write_run(tmp_path / "pure", sources, steps=8, noise=0.0)
    noisy = write_run(tmp_path / "noisy", sources, steps=8, noise=0.02)
    draws = []
    for number in (1, 3):  # two that are made
        before, after = (
            load_file(run[number] / "adapter_model.safetensors") for run in (pure, noisy)
        )
        for key in (key for key in before if ".lora_" in key):
            change = after[key] - before[key]
            assert np.linalg.norm(change) / np.linalg.norm(before[key]) == pytest.approx(
                0.02, rel=1e-3
            )
        draws.append(change / np.linalg.norm(change))
    assert abs(np.vdot(*draws)) < 0.5
    again = write_run(tmp_path / "again", sources, steps=8, noise=0.02)
    weights = "adapter_model.safetensors"
    assert (again[1] / weights).read_bytes() == (noisy[1] / weights).read_bytes()


def test_a_run_that_wanders_stays_in_the_spaces_of_its_sources(tmp_path, sources):
    straight = write_run(tmp_path / "straight", sources, steps=4, noise=0.0)
    wandering = write_run(tmp_path / "wandering", sources, steps=4, noise=0.0, wander=0.1)
    ends = [load_file(source / "adapter_model.safetensors") for source in sources]
    before, after = (
        load_file(run[2] / "adapter_model.safetensors") for run in (straight, wandering)
    )
    assert wandering[2].name == "checkpoint-65"  # halfway between the second and the third
    for key in (key for key in before if ".lora_" in key):
        turn = (lambda x: x.T) if "lora_B" in key else (lambda x: x)
        change = turn(after[key] - before[key])
        assert np.linalg.norm(change) == pytest.approx(0.1 * np.linalg.norm(before[key]), rel=1e-3)
        space = np.linalg.qr(np.concatenate([turn(end[key]) for end in ends]).T)[0]
        inside = change @ space @ space.T
        assert np.linalg.norm(change - inside) < 1e-5 * np.linalg.norm(change)
    score = "base_model.model.score.weight"
    assert np.array_equal(before[score], after[score])


def test_refusals_of_a_run(tmp_path, sources):
    with pytest.raises(ValueError, match="no fewer steps than sources"):
        write_run(tmp_path / "run", sources, steps=2)
    with pytest.raises(ValueError, match="two sources"):
        write_run(tmp_path / "run", sources[:1], steps=5)
    with pytest.raises(ValueError, match="checkpoint-<number>"):
        write_run(tmp_path / "run", [*sources, tmp_path / "last"], steps=8)
    weights = sources[1] / "adapter_model.safetensors"
    turned = {k: -x if "lora_" in k else x for k, x in load_file(weights).items()}
    save_file(turned, weights)  # the same updates in another gauge
    with pytest.raises(ValueError, match="one gauge"):
        write_run(tmp_path / "run", sources, steps=8)


def test_a_run_of_real_checkpoints(tmp_path, data):
    numbers = (500, 2000, 5000, 8610)
    real = [data / "roberta-pt-18ckpt" / f"checkpoint-{number}" for number in numbers]
    run = write_run(tmp_path, real, steps=6)
    assert [folder.name for folder in run] == [
        f"checkpoint-{number}" for number in (500, 2000, 3500, 5000, 6805, 8610)
    ]
    adapters = [lt.load_adapter(folder) for folder in run[1:4]]
    near = lt.compare_adapters(adapters[0], adapters[1])
    far = lt.compare_adapters(adapters[0], adapters[2])
    assert 0.02 < near.relative_error < far.relative_error
