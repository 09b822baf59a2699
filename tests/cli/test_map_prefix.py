"""`--map-prefix`, and adapters of nothing in common, on every command that takes several."""

import numpy as np
import pytest

import lotr_tn as lt
from tests.cli import runs
from tests.cli.conftest import of_json

OLD, NEW = "model.language_model.layers", "model.layers"


def save(folder, prefix, seed, kinds=("q_proj", "v_proj")):
    rng = np.random.default_rng(seed)
    factors = {
        f"{prefix}.{layer}.{kind}": (rng.standard_normal((9, 4)), rng.standard_normal((4, 7)))
        for layer in range(2)
        for kind in kinds
    }
    return runs.save(folder, factors)


@pytest.fixture
def paths(tmp_path):
    """Two adapters of the same modules; a third, which is the second under the first's paths."""
    save(tmp_path / "one", NEW, 1)
    save(tmp_path / "other", OLD, 2)
    save(tmp_path / "wanted", NEW, 2)
    save(tmp_path / "mlp", NEW, 3, kinds=("up_proj",))
    return tmp_path


COMMANDS = {
    "merge": ("merge", "one", "other", "-o", "out"),
    "bank make": ("bank", "make", "one", "other", "-o", "out.safetensors", "--rel-error", 0.1),
    "bank add": ("bank", "add", "bank.safetensors", "other"),
    "analyze": ("analyze", "one", "other"),
    "compare": ("compare", "one", "other"),
    "compare many": ("compare", "one", "wanted", "other"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_prefix_apart_is_said_and_mapped(lotr, paths, name):
    made = ("bank", "make", "one", "-o", "bank.safetensors", "--rel-error", 0.1, "-q")
    assert lotr(*made)[0] == 0
    before = sorted(paths.iterdir()), (paths / "bank.safetensors").read_bytes()
    command = COMMANDS[name]
    status, out, err = lotr(*command)
    assert (status, out) == (1, "")
    assert f"--map-prefix {OLD}={NEW}" in " ".join(err.split())
    assert err.count("\n") == 1
    assert len(err) < 500
    assert before == (sorted(paths.iterdir()), (paths / "bank.safetensors").read_bytes())
    mapped = of_json(lotr(*command, "--map-prefix", f"{OLD}={NEW}", "--json"))
    if name == "bank add":
        assert lotr("bank", "export", "bank.safetensors", "other", "-o", "out", "-q")[0] == 0
        assert runs.gap(paths / "out", paths / "wanted") <= 0.1
        return
    wanted = tuple("wanted" if word == "other" else word for word in command)
    if name == "compare many":
        wanted = ("compare", "one", "wanted", "copy")
        save(paths / "copy", NEW, 2)
    else:
        wanted = tuple(
            {"out": "again", "out.safetensors": "again.safetensors"}.get(w, w) for w in wanted
        )
    same = of_json(lotr(*wanted, "--json"))
    for key in ("relative_error", "cosine", "params", "params_after", "smallest"):
        assert mapped.get(key) == same.get(key), key
    if name == "merge":
        assert runs.gap(paths / "out", paths / "again") < 1e-12


@pytest.mark.parametrize("name", [name for name in COMMANDS if "compare" not in name])
def test_nothing_in_common_is_refused(lotr, paths, name):
    made = ("bank", "make", "one", "-o", "bank.safetensors", "--rel-error", 0.1, "-q")
    assert lotr(*made)[0] == 0
    command = ("mlp" if word == "other" else word for word in COMMANDS[name])
    status, out, err = lotr(*command)
    assert (status, out) == (1, "")
    assert "no module in common" in err
    assert not (paths / "out").exists()
    assert not (paths / "out.safetensors").exists()


def test_a_weight_of_zero_takes_no_part(lotr, paths):
    assert lotr("merge", "one", "mlp", "--weights", "1,0", "-o", "out", "-q")[0] == 0
    assert set(runs.deltas(paths / "out")) == set(runs.deltas(paths / "one"))


@pytest.mark.parametrize("value", ["a", "a=b --map-prefix a=c"])
def test_a_mapping_that_is_none(lotr, paths, value):
    status, _, err = lotr("merge", "one", "other", "--map-prefix", *value.split())
    assert status == 2
    assert "--map-prefix takes OLD=NEW" in " ".join(err.replace("│", " ").split())


def test_merges_in_python_say_it_too(paths):
    one, other = (lt.load_adapter(paths / name) for name in ("one", "other"))
    with pytest.raises(lt.errors.CheckpointError, match=r"lotr_tn\.adapters\.map_prefix"):
        lt.merge_adapters({"one": one, "other": other})
    merged = lt.merge_adapters(
        {"one": one, "other": lt.adapters.map_prefix(other, {OLD: NEW})}
    ).adapter
    assert len(merged.modules) == 4
