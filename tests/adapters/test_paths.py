"""Adapters whose modules have other paths: what is refused, what is said, and what maps them."""

import json

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.adapters import Layout, LoRAModule, Target, map_prefix
from lotr_tn.adapters.paths import differing_prefixes, require_common
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.errors import CheckpointError


def shapes(prefix, *ends, layers=2, shape=(3, 4)):
    return {
        f"{prefix}layers.{i}.{end}": (*shape[:-1], shape[-1] + at)
        for i in range(layers)
        for at, end in enumerate(ends)
    }


Q, V = "self_attn.q_proj", "self_attn.v_proj"


@pytest.mark.parametrize(
    ("known", "found", "wanted"),
    [
        ("model.", "model.language_model.", {"model.language_model.layers": "model.layers"}),
        ("model.language_model.", "model.", {"model.layers": "model.language_model.layers"}),
        ("", "model.", {"model.layers": "layers"}),
        ("model.", "", {"layers": "model.layers"}),
        ("language_model.model.", "model.language_model.",
         {"model.language_model.layers": "language_model.model.layers"}),
    ],
)  # fmt: skip
def test_prefixes_are_found_both_ways(known, found, wanted):
    theirs, ours = shapes(known, Q, V), shapes(found, Q, V)
    assert differing_prefixes(theirs, ours) == wanted
    assert differing_prefixes(theirs | {"lm_head": (9, 4)}, ours | {"lm_head": (9, 4)}) == wanted
    # some modules alone are enough, but each has to be known
    assert differing_prefixes(theirs, shapes(found, Q)) == wanted
    assert differing_prefixes(shapes(known, Q), ours) == {}
    assert differing_prefixes(shapes(known, Q, V, shape=(5, 4)), ours) == {}


def test_what_is_no_prefix():
    assert differing_prefixes({"layers.0.q": (2, 3)}, {"layers.1.q": (2, 3)}) == {}
    assert differing_prefixes(shapes("", Q), shapes("", "mlp.up")) == {}
    assert differing_prefixes(shapes("", Q, layers=9), shapes("", "cross.q_proj", layers=9)) == {}
    assert differing_prefixes({}, {"a": (1, 1)}) == {}


def owned(paths):
    return {path: ("first", shape) for path, shape in paths.items()}


def test_what_is_let_through():
    both = shapes("", Q, V)
    for found in (both, shapes("", Q), both | shapes("more.", Q), {}):
        require_common(owned(both), "second", found)
    require_common({}, "second", both)
    require_common(owned(both), "second", shapes("", Q) | shapes("", "mlp.up", "mlp.down"))
    # two towers of one model are no renamed one
    head = {"lm_head": (9, 4)}
    require_common(owned(shapes("encoder.", Q) | head), "second", shapes("decoder.", Q) | head)
    require_common(owned(both), "second", shapes("", "mlp.up"), apart=True)


def test_a_common_head_hides_no_prefix():
    head = {"lm_head": (9, 4)}
    one, other = shapes("model.", Q) | head, shapes("model.text.", Q) | head
    for known, found in ((one, other), (other, one)):
        for apart in (False, True):
            with pytest.raises(CheckpointError, match=r"map_prefix\(adapter, ..?model.*layers"):
                require_common(owned(known), "second", found, apart=apart)


def adapter(prefix="model.", seed=0, **config):
    """Modules whose ranks and scales differ, with a head and trained tokens."""
    rng = np.random.default_rng(seed)
    modules = tuple(
        LoRAModule(
            Target(f"{prefix}layers.{i}.q_proj", Layout(), 2 + i),
            rng.standard_normal((6, 2 + i)).astype(np.float32),
            rng.standard_normal((2 + i, 5)).astype(np.float32),
            (3 + i) / (2 + i),
        )
        for i in range(2)
    )
    extras = {f"base_model.model.{prefix}embed": RawTensor.of(np.ones(3, dtype=np.float32))}
    settings = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": r".*\.q_proj",
        "rank_pattern": {r"layers\.1\.q_proj": 3}, "alpha_pattern": {r"layers\.1\.q_proj": 4},
        "modules_to_save": [f"{prefix}embed"],
        "trainable_token_indices": {f"{prefix}embed": [1]},
    } | config  # fmt: skip
    return lt.LoRAAdapter(modules, extras, settings, json.dumps(settings))


MAP = {"model": "model.language_model"}


def test_everything_is_mapped_and_reads_back(tmp_path):
    before = adapter()
    after = map_prefix(before, MAP)
    lt.save_adapter(after, tmp_path / "mapped")
    back = lt.load_adapter(tmp_path / "mapped")
    for old, new, read in zip(before.modules, after.modules, back.modules, strict=True):
        assert new.target.name == read.target.name
        assert new.target.name == old.target.name.replace("model.", "model.language_model.")
        assert (new.scale, read.scale) == (old.scale, pytest.approx(old.scale, rel=1e-15))
        assert (read.up.tolist(), read.down.tolist()) == (old.up.tolist(), old.down.tolist())
    assert list(back.extras) == ["base_model.model.model.language_model.embed"]
    assert back.config["modules_to_save"] == ["model.language_model.embed"]
    assert back.config["trainable_token_indices"] == {"model.language_model.embed": [1]}
    assert map_prefix(after, {"model.language_model": "model"}).config_text != before.config_text
    assert map_prefix(before, {"mod": "x", "layers": "y"}) is before
    rooted = map_prefix(adapter(use_rslora=True, lora_alpha=3 / 2**0.5), MAP)
    lt.save_adapter(rooted, tmp_path / "rooted")
    scales = [module.scale for module in lt.load_adapter(tmp_path / "rooted").modules]
    assert scales == pytest.approx([module.scale for module in before.modules], rel=1e-15)


def test_a_lotr_is_mapped_as_its_lora(tmp_path):
    cut = map_prefix(lt.convert_adapter(adapter(), lt.RelativeError(0)).adapter, MAP)
    lt.save_adapter(cut, tmp_path / "a.lotr.safetensors")
    back = lt.to_lora(lt.load_adapter(tmp_path / "a.lotr.safetensors")).adapter
    wanted = map_prefix(adapter(), MAP)
    assert lt.compare_adapters(wanted, back).relative_error < 1e-6
    assert back.extras.keys() == wanted.extras.keys()


def test_two_modules_of_one_path_are_refused():
    with pytest.raises(CheckpointError, match=r"give x to two modules"):
        map_prefix(adapter(), {"model.layers.0.q_proj": "x", "model.layers.1.q_proj": "x"})
    with pytest.raises(CheckpointError, match="two modules"):
        map_prefix(adapter(), {"model.layers.0": "model.layers.1"})


def test_the_longest_prefix_counts():
    names = [m.target.name for m in map_prefix(adapter(), {"": "a", "model.layers.1": "b"}).modules]
    assert names == ["a.model.layers.0.q_proj", "b.q_proj"]
