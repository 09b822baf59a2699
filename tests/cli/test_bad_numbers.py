"""NaN and overflow: every command ends with status 1 and one sentence, and writes nothing."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli import runs
from tests.cli.conftest import run_in

COMMANDS = {
    "inspect": "inspect {bad}",
    "analyze": "analyze {bad}",
    "analyze several": "analyze {good} {bad}",
    "convert": "convert {bad} --rel-error 0.1 -o out",
    "convert by format": "convert {bad} --format lotr --rank 2 -o out",
    "compare": "compare {bad} {good}",
    "compare, the other way": "compare {good} {bad}",
    "compare several": "compare {good} {bad} {good}/../good2",
    "merge": "merge {good} {bad} -o out",
    "merge ties": "merge {good} {bad} --method ties -o out",
    "export": "export {bad} -o out",
    "bank make": "bank make {good} {bad} --rel-error 0.1 -o out",
    "bank add": "bank add {bank} {bad}",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Good adapters, one that a test makes bad, and a bank of the good ones."""
    folder = tmp_path_factory.mktemp("made")
    for at, name in enumerate(("good", "good2", "bad")):
        runs.checkpoint(folder / name, 1000 + 500 * at)
    run_in(
        folder, "bank", "make", "good", "good2", "--rel-error", "0.1", "-o", "b.safetensors", "-q"
    )
    return folder


@pytest.fixture
def places(made, tmp_path):
    """Copies of them."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return {"good": "good", "bad": "bad", "bank": "b.safetensors"}


def with_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def with_tensor(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if "lora_B" in key)
    tensors[key] = change(tensors[key])
    save_file(tensors, path)


def entry(value, dtype=np.float32):
    def change(x):
        x = x.astype(dtype)
        x[3, 1] = value
        return x

    return change


NOT_NUMBERS = {
    "NaN in a tensor": lambda folder: with_tensor(folder, entry(np.nan)),
    "infinity in a tensor": lambda folder: with_tensor(folder, entry(-np.inf, np.float16)),
    "alpha is NaN": lambda folder: with_config(folder, lora_alpha=float("nan")),
    "alpha of a module is NaN": lambda folder: with_config(
        folder, alpha_pattern={"q_proj": float("nan")}
    ),
    "alpha overflows": lambda folder: with_config(folder, lora_alpha=1e400),
    "up times scale overflows": lambda folder: (
        with_tensor(folder, entry(1e300, np.float64)),
        with_config(folder, lora_alpha=1e30),
    ),
}


def sentence(result) -> str:
    """The one line of a command that failed."""
    status, out, err = result
    assert status == 1, (out, err)
    assert err.startswith("lotr: ")
    assert err.count("\n") == 1
    assert len(err) < 500
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_a_number_is_refused(lotr, tmp_path, places, command):
    before = {path.name for path in tmp_path.iterdir()}
    bank = (tmp_path / places["bank"]).read_bytes()
    for name, spoil in NOT_NUMBERS.items():
        for path in (tmp_path / "bad").iterdir():
            path.unlink()
        (tmp_path / "bad").rmdir()
        runs.checkpoint(tmp_path / "bad", 2000)
        spoil(tmp_path / "bad")
        if command == "inspect" and name == "up times scale overflows":
            continue  # it tells what the file holds, which are numbers
        sentence(lotr(*COMMANDS[command].format(**places).split()))
    assert {path.name for path in tmp_path.iterdir()} == before
    assert (tmp_path / places["bank"]).read_bytes() == bank


def test_a_scale_at_the_end_of_float32_is_computed_with(lotr, places, tmp_path):
    """Unrelated adapters are not told to be equal."""
    with_config(tmp_path / "bad", lora_alpha=1e39)
    status, out, _ = lotr("compare", "bad", "good", "--json")
    assert status == 0
    assert json.loads(out)["relative_error"] == pytest.approx(1)
    status, *_ = lotr("compare", "bad", "good", "--max-rel-error", "0.01")
    assert status == 3


@pytest.mark.parametrize("form", ["lotr", "shared-in", "lotr-low-rank", "truncated"])
def test_what_float32_cannot_hold_is_not_written(lotr, tmp_path, form):
    for name in "ab":
        folder = runs.checkpoint(tmp_path / name, 1000)
        path = folder / "adapter_model.safetensors"
        save_file({k: x * np.float32(1e25) for k, x in load_file(path).items()}, path)
    ranks = {"lotr": "2,2", "shared-in": "2", "lotr-low-rank": "2,2", "truncated": "2"}[form]
    result = lotr("convert", "a", "--format", form, "--rank", ranks, "-o", "out.safetensors")
    if result[0] == 0:  # factors that share the size between them fit
        assert form in ("truncated", "lotr-low-rank")
        status, out, _ = lotr("compare", "a", "out.safetensors", "--json")
        assert status == 0
        assert json.loads(out)["relative_error"] < 1
    else:
        assert "do not fit float32" in sentence(result)
        assert not (tmp_path / "out.safetensors").exists()


def test_float64_beyond_float32_is_written_and_read(lotr, tmp_path):
    folder = runs.checkpoint(tmp_path / "a", 1000)
    path = folder / "adapter_model.safetensors"
    large = {
        key: x.astype(np.float64) * (1e39 if "lora_B" in key else 1.0)
        for key, x in load_file(path).items()
    }
    save_file(large, path)
    assert lotr("convert", "a", "--rel-error", "0.3", "-o", "out.safetensors", "-q")[0] == 0
    status, out, _ = lotr("compare", "a", "out.safetensors", "--json")
    assert status == 0
    assert json.loads(out)["relative_error"] <= 0.3
    assert lotr("export", "out.safetensors", "-o", "back", "--dtype", "float64", "-q")[0] == 0
    status, out, _ = lotr("compare", "out.safetensors", "back", "--json")
    assert json.loads(out)["relative_error"] < 1e-6


def test_updates_that_cancel_are_zero(lotr, tmp_path):
    rng = np.random.default_rng(0)
    factors = {}
    for layer in range(runs.LAYERS):
        for kind, (m, n) in runs.SHAPES.items():
            x, y = rng.standard_normal((m, 2)), rng.standard_normal((2, n))
            factors[f"layers.{layer}.{kind}"] = np.hstack([x, -x]), np.vstack([y, y])
    runs.save(tmp_path / "z", factors)
    runs.checkpoint(tmp_path / "a", 1000)
    for one, other, error in (("z", "z", 0), ("a", "z", 1)):
        status, out, _ = lotr("compare", one, other, "--json")
        assert status == 0
        found = json.loads(out)
        assert found["relative_error"] == pytest.approx(error)
        assert found["cosine"] == 0
