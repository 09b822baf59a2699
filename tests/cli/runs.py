"""Small adapters of one base as PEFT writes them, and what they are in plain arithmetic."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

SHAPES = {"q_proj": (40, 24), "v_proj": (20, 24)}
LAYERS, RANK, ALPHA = 2, 4, 8
MODULES = LAYERS * len(SHAPES)


def save(
    folder: Path,
    factors: dict[str, tuple[np.ndarray, np.ndarray]],
    *,
    base: str = "tiny",
    extras: dict[str, np.ndarray] | None = None,
) -> Path:
    """A PEFT folder of factors (up, down) by module."""
    tensors = {f"base_model.model.{key}": value for key, value in (extras or {}).items()}
    for name, (up, down) in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.astype(np.float32)
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "base_model_name_or_path": base,
        "target_modules": list(SHAPES),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def checkpoint(folder: Path, step: int, *, run: int = 0, **more) -> Path:
    """A checkpoint of a run: the directions of all lie in two sets of `RANK` that the run has."""
    rng = np.random.default_rng(run)
    factors = {}
    for layer in range(LAYERS):
        for kind, (m, n) in SHAPES.items():
            ups = rng.standard_normal((2, m, RANK))
            down = rng.standard_normal((RANK, n))
            angle = step / 4000
            up = np.cos(angle) * ups[0] + np.sin(angle) * ups[1]
            factors[f"layers.{layer}.{kind}"] = step / 1000 * up, down
    return save(folder, factors, **more)


def history(folder: Path, *steps: int, **more) -> list[Path]:
    """Checkpoints of one run."""
    return [checkpoint(folder / f"checkpoint-{step}", step, **more) for step in steps]


def stranger(folder: Path, seed: int, **more) -> Path:
    """An adapter that has nothing in common with any other."""
    rng = np.random.default_rng([99, seed])
    factors = {
        f"layers.{layer}.{kind}": (rng.standard_normal((m, RANK)), rng.standard_normal((RANK, n)))
        for layer in range(LAYERS)
        for kind, (m, n) in SHAPES.items()
    }
    return save(folder, factors, **more)


def deltas(folder: Path) -> dict[str, np.ndarray]:
    """ΔW of every module by a plain float64 product of what is in the file."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    found = {}
    for key, down in tensors.items():
        if key.endswith("lora_A.weight"):
            up = tensors[key.replace("lora_A", "lora_B")]
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            found[name] = scale * up.astype(np.float64) @ down.astype(np.float64)
    return found


def gap(found: Path, wanted: Path) -> float:
    """‖ΔW − ΔŴ‖ / ‖ΔW‖ of two PEFT folders, all modules together."""
    a, b = deltas(found), deltas(wanted)
    assert a.keys() == b.keys()
    lost = sum(((a[name] - b[name]) ** 2).sum() for name in b)
    return float(np.sqrt(lost / sum((b[name] ** 2).sum() for name in b)))
