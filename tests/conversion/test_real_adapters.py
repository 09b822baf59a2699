"""Real trained adapters: the error that is reported is the one that is there."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import lotr_tn as lt
from lotr_tn.linalg.ranks import ITEM_SIZES
from tests.conftest import real_data

ROOT = real_data()
REFUSED = {
    "bloom-legacy-merged": "MergedLinear",
    "qwen05b-mlx": "MLX",
    "ia3-opt350m": "IA3",
    "unilora-roberta": "UNILORA",
}
SYNTHETIC = "dialects"  # files of every format, wrong ones among them
FOUND = sorted(p.parent for p in ROOT.rglob("adapter_config.json")) if ROOT else []
FOLDERS = [f for f in FOUND if SYNTHETIC not in f.relative_to(ROOT or f).parts]
GOOD = [f for f in FOLDERS if f.name not in REFUSED]
pytestmark = pytest.mark.skipif(ROOT is None, reason="real adapters not found: set LOTR_REAL_DATA")
EPSILONS = (0.3, 0.1, 0.01, 1e-5)
CHECKPOINTS = [f for f in GOOD if f.parent.name == "roberta-pt-18ckpt"]
OTHERS = [f for f in GOOD if f not in CHECKPOINTS]
LARGE = 2**22  # entries of an update that takes seconds as a dense matrix
ASKED = [*product(OTHERS, EPSILONS), *zip(CHECKPOINTS, EPSILONS, strict=False)]
"""Each adapter with each error; the checkpoints of one run share the errors among them."""

ROUNDING = 1e-14  # where nothing is cut off, nothing is lost


def name_of(value: object) -> str:
    return f"{value.parent.name}-{value.name}" if isinstance(value, Path) else str(value)


def deltas(folder: Path) -> dict[str, np.ndarray]:
    """ΔW of every module by a plain float64 loop over the file, apart from the package."""
    return {key: b @ a for key, (b, a) in factors(folder).items()}


def factors(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The factors in float64, the scale in the first: all products at once may take gigabytes."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config.get("rank_pattern")
    assert not config.get("use_rslora")
    if (folder / "adapter_model.safetensors").exists():
        tensors = load_file(folder / "adapter_model.safetensors")
    else:
        import torch

        tensors = torch.load(folder / "adapter_model.bin", weights_only=True, map_location="cpu")
    found = {}
    for key, a in tensors.items():
        if key.endswith("lora_A.weight"):
            b = tensors[key.replace("lora_A", "lora_B")]
            scale = config["lora_alpha"] / config["r"]
            found[key.removesuffix(".lora_A.weight")] = (
                scale * b.double().numpy(),
                a.double().numpy(),
            )
    return found


def norm_of_product(b: np.ndarray, a: np.ndarray) -> float:
    """‖b a‖, of the dense product, or of triangles where that is large."""
    if b.shape[0] * a.shape[1] <= LARGE:
        return float(np.linalg.norm(b @ a))
    left, right = (np.linalg.qr(x, mode="r") for x in (b, a.T))
    return float(np.linalg.norm(left @ right.T))


@pytest.mark.parametrize(("folder", "epsilon"), ASKED, ids=name_of)
def test_the_reported_error_is_what_a_plain_loop_finds(folder, epsilon, tmp_path):
    conversion = lt.convert_adapter(lt.load_adapter(folder), lt.RelativeError(epsilon))
    assert conversion.met
    assert conversion.relative_error <= epsilon
    lt.save_adapter(conversion.adapter, tmp_path / "a.lotr.safetensors")
    export = lt.to_lora(lt.load_adapter(tmp_path / "a.lotr.safetensors"))
    lt.save_adapter(export.adapter, tmp_path / "again")
    before, after = factors(folder), factors(tmp_path / "again")
    assert set(before) == set(after)
    lost, whole = 0.0, 0.0
    for key, (b, a) in before.items():
        left, right = after[key]
        whole += norm_of_product(b, a) ** 2
        lost += norm_of_product(np.hstack([b, -left]), np.vstack([a, right])) ** 2
    found = (lost / whole) ** 0.5
    assert abs(found - conversion.relative_error) <= 1e-4 * conversion.relative_error + ROUNDING
    for group in conversion.groups:
        certificate = group.certificate
        assert certificate.lower_bound <= certificate.relative_error <= certificate.upper_bound


@pytest.mark.parametrize("folder", [*OTHERS, *CHECKPOINTS[:1]], ids=name_of)
def test_in_bits_they_take_a_fraction_and_lose_what_is_told(folder, tmp_path):
    adapter = lt.load_adapter(folder)
    made = lt.convert_adapter(adapter, lt.RelativeError(0.1), format="auto", coding="auto")
    assert made.adapter.coded
    assert 4 * made.bytes_after < made.bytes_before * 4 / ITEM_SIZES[adapter.dtype]
    lt.save_adapter(made.adapter, tmp_path / "a.lotr.safetensors")
    error = lt.compare_adapters(adapter, lt.load_adapter(tmp_path / "a.lotr.safetensors"))
    assert error.relative_error == pytest.approx(made.relative_error, rel=1e-6)
    assert made.relative_error <= 0.1


IN_SAFETENSORS = [f for f in GOOD if (f / "adapter_model.safetensors").exists()]


@pytest.mark.parametrize("folder", IN_SAFETENSORS, ids=name_of)
def test_with_nothing_cut_the_file_is_not_larger(folder, tmp_path):
    asked = {"format": "auto", "group_by": "auto"}
    made = lt.convert_adapter(lt.load_adapter(folder), lt.RelativeError(0), **asked)
    assert made.met
    lt.save_adapter(made.adapter, tmp_path / "a.lotr.safetensors")
    before = (folder / "adapter_model.safetensors").stat().st_size
    assert (tmp_path / "a.lotr.safetensors").stat().st_size <= before


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f.name in REFUSED], ids=name_of)
def test_what_is_no_plain_lora_is_refused_by_name(folder):
    with pytest.raises(lt.errors.LotrError, match=REFUSED[folder.name]):
        lt.load_adapter(folder)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("sam-vitb-lora/lw_lora_rank4_head.safetensors", "SAM_LoRA"),
        ("sd-pokemon-diffusers/pytorch_lora_weights.safetensors", "diffusers"),
        ("sd-cloneofsimo/lora_disney.safetensors", "cloneofsimo"),
        ("qwen05b-mlx/0000100_adapters.safetensors", "MLX"),
        ("roberta-mnli-loralib/roberta_base_lora_mnli.bin", "loralib"),
        ("sd-cloneofsimo/lora_pop.pt", "cloneofsimo"),
    ],
)
def test_other_formats_are_refused_by_name(file, name):
    with pytest.raises(lt.errors.LotrError, match=name):
        lt.load_adapter(ROOT / file)


def test_all_of_them_are_tried(data):
    assert len(FOLDERS) == len(GOOD) + len(REFUSED)
    assert len(CHECKPOINTS) == len(EPSILONS)
    assert len(GOOD) >= 9
