"""A whole adapter through `lotr convert`: time, memory, and where the time goes."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

import lotr_tn as lt
from benchmarks.measure import report
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.files.tensors import write_safetensors

LLAMA_7B = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (11008, 4096),
    "mlp.up_proj": (11008, 4096),
    "mlp.down_proj": (4096, 11008),
}
SMALL = {name: (m // 64, n // 64) for name, (m, n) in LLAMA_7B.items()}
SIZES = {"full": (LLAMA_7B, 32, 16, 64), "smoke": (SMALL, 4, 4, 6)}

CONVERT = """
import json, resource, sys, time
begun = time.perf_counter()
from lotr_tn.cli import main
sys.argv = ["lotr", "convert", sys.argv[1], "--rank", sys.argv[3], "-o", sys.argv[2], "-q"]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
try:  # the high-water mark of this program alone; getrusage's begins with the parent's
    lines = open("/proc/self/status").read().splitlines()
    peak = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": time.perf_counter() - begun, "peak": peak}))
"""


def make_adapter(folder: Path, shapes: dict[str, tuple[int, int]], layers: int, rank: int) -> None:
    """A PEFT LoRA of random factors in bfloat16."""
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(layers):
        for name, (m, n) in shapes.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            for side, shape in (("A", (rank, n)), ("B", (m, rank))):
                entries = rng.standard_normal(shape, dtype=np.float32) / shape[1] ** 0.5
                tensors[f"{key}.lora_{side}.weight"] = RawTensor.of(
                    entries.astype(ml_dtypes.bfloat16)
                )
    folder.mkdir()
    write_safetensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(shapes),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def run(size: str) -> None:
    """Convert in a process of its own, then the same steps one by one."""
    shapes, layers, rank, target = SIZES[size]
    with tempfile.TemporaryDirectory() as temporary:
        source, out = Path(temporary) / "lora", Path(temporary) / "a.lotr.safetensors"
        make_adapter(source, shapes, layers, rank)
        done = subprocess.run(
            [sys.executable, "-c", CONVERT, str(source), str(out), str(target)],
            capture_output=True,
            text=True,
            check=True,
        )
        whole = json.loads(done.stdout)
        steps = _steps(source, Path(temporary) / "b.lotr.safetensors", target)
        read, written = (source / "adapter_model.safetensors").stat().st_size, out.stat().st_size
    rows = [
        [name, f"{seconds:.2f}", f"{seconds / sum(steps.values()):.0%}"]
        for name, seconds in steps.items()
    ]
    rows.append(["whole command, own process", f"{whole['seconds']:.2f}", ""])
    rows.append(["peak memory of that process", f"{whole['peak'] / 1e9:.2f} GB", ""])
    report(
        "adapter",
        f"lotr convert --rank {target}: {len(shapes)} kinds x {layers} layers, rank {rank}, "
        f"bfloat16, {read / 1e6:.0f} MB -> {written / 1e6:.0f} MB",
        ["Step", "Seconds", "Share"],
        rows,
        {"steps": steps, "read": read, "written": written, **whole},
    )


def _steps(source: Path, out: Path, target: int) -> dict[str, float]:
    """Seconds of reading, converting each part, and writing."""
    from lotr_tn.analysis.truncation import truncated_parameters

    seconds = {}

    def clock(name: str, begun: float) -> None:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun

    begun = time.perf_counter()
    adapter = lt.load_adapter(source)
    assert isinstance(adapter, lt.LoRAAdapter)
    clock("read and check", begun)
    for group in lt.group_modules(adapter).values():
        begun = time.perf_counter()
        stack = group.stack
        assert isinstance(stack, lt.LoRAStack)
        clock("stack and widen", begun)
        begun = time.perf_counter()
        result = lt.hooi(stack, target, dtype="bfloat16")
        clock("HOOI and certificate", begun)
        begun = time.perf_counter()
        assert result.certificate is not None
        truncated_parameters(stack, result.certificate.relative_error)
        clock("cost of truncation instead", begun)
    converted = lt.convert_adapter(adapter, target).adapter
    begun = time.perf_counter()
    lt.save_adapter(converted, out)
    clock("write and flush", begun)
    return seconds
