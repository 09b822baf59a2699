"""Banks of real trained adapters: checkpoints of one run share, independent runs do not."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import RobertaConfig, RobertaForSequenceClassification

import lotr_tn as lt
from lotr_tn.adapters import Layout, LoRAModule, Target
from lotr_tn.linalg.ranks import ITEM_SIZES
from tests.banks import fleets
from tests.conftest import real_data
from tests.conversion.test_real_adapters import deltas
from tests.files import peft_models as pm

pytestmark = pytest.mark.skipif(
    real_data() is None, reason="real adapters not found: set LOTR_REAL_DATA"
)
RUN = ("checkpoint-500", "checkpoint-2000", "checkpoint-5000", "checkpoint-8610")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four checkpoints of one run in a bank at 5%, with every one exported."""
    root = tmp_path_factory.mktemp("run")
    sources = {name: real_data() / "roberta-pt-18ckpt" / name for name in RUN}
    adapters = {name: lt.load_adapter(folder) for name, folder in sources.items()}
    path = root / "run.lotr.safetensors"
    made = lt.banks.make_bank(adapters, path, lt.RelativeError(0.05))
    for name in RUN:
        lt.save_adapter(lt.to_lora(lt.banks.load_bank(path)[name]).adapter, root / name)
    return made, sources, root


def true_error(found, wanted):
    return fleets.error(deltas(found), deltas(wanted))


def test_every_checkpoint_of_a_run_is_within_the_error_and_reported_as_it_is(run):
    made, sources, root = run
    assert made.met
    for name in RUN:
        found = true_error(root / name, sources[name])
        assert found <= 0.05
        assert f"{found:.4g}" == f"{made.errors[name]:.4g}"


def test_the_stacks_of_a_run_take_a_third_of_its_files(run):
    made, sources, _ = run
    low_rank = sum(
        tensor.nbytes
        for folder in sources.values()
        for key, tensor in load_file(folder / "adapter_model.safetensors").items()
        if ".lora_" in key
    )
    assert made.bank.explanation["chosen"] == "shared"
    assert fleets.stack_bytes(made.bank) <= 0.34 * low_rank
    assert fleets.stack_bytes(made.bank) < made.bytes_separate


def test_heads_are_the_same_byte_for_byte(run):
    _, sources, root = run
    for name in RUN:
        before = load_file(sources[name] / "adapter_model.safetensors")
        after = load_file(root / name / "adapter_model.safetensors")
        heads = {key for key in before if ".lora_" not in key}
        assert heads == {key for key in after if ".lora_" not in key}
        assert len(heads) == 4
        assert all(before[key].tobytes() == after[key].tobytes() for key in heads)


def roberta():
    """A model of the shapes of roberta-base with random weights, its vocabulary cut."""
    config = RobertaConfig(vocab_size=64, max_position_embeddings=40, num_labels=5)
    return RobertaForSequenceClassification(config)


def test_peft_loads_every_export_and_computes_nearly_the_same(run):
    _, sources, root = run
    plain = pm.logits(pm.seeded(roberta))
    for name in (RUN[0], RUN[-1]):  # each takes a model of its full size
        wanted = pm.logits(pm.reload(roberta, sources[name]))
        found = pm.logits(pm.reload(roberta, root / name))
        change = torch.linalg.norm(wanted - plain)
        assert torch.linalg.norm(found - wanted) <= 0.05 * change
        assert change > 0.1


def of_ends(one):
    """An adapter's first and last layer alone."""
    ends = [m for m in one.modules if ".layer.0." in m.target.name or ".11." in m.target.name]
    assert len(ends) == 4
    return replace(one, modules=tuple(ends))


def test_appending_the_checkpoints_one_after_another(run, tmp_path):
    _, sources, _ = run
    path = tmp_path / "grown.lotr.safetensors"
    adapters = {name: of_ends(lt.load_adapter(folder)) for name, folder in sources.items()}
    first = {name: adapters[name] for name in RUN[:2]}
    known = fleets.exports(
        lt.banks.make_bank(first, path, lt.RelativeError(0.05)).bank, tmp_path / "out"
    )
    for name in RUN[2:]:
        grown = lt.banks.add_adapters(path, {name: adapters[name]})
        assert grown.met
        after = fleets.exports(grown.bank, tmp_path / "out")
        assert {key: after[key] for key in known} == known
        known = after
    for name in RUN:
        found = fleets.error(fleets.dense(grown.bank[name]), fleets.dense(adapters[name]))
        assert found <= 0.05
        assert f"{found:.4g}" == f"{grown.bank.figures(name).relative_error:.4g}"
    whole = sum(4 * one.parameters for one in adapters.values())
    assert fleets.stack_bytes(grown.bank) < 0.5 * whole


# --- SAM: independent runs of ranks 2 to 16


BLOCKS = (0, 6, 11)
"""Of the twelve blocks: the first, the last and one between."""


def sam(file):
    """One SAM_LoRA file, `w_a_NNN` and `w_b_NNN` with q and v in turn, as an adapter."""
    tensors, modules = load_file(file), []
    for at in (2 * block + turn for block in BLOCKS for turn in (0, 1)):
        a, b = tensors[f"w_a_{at:03d}"], tensors[f"w_b_{at:03d}"]
        path = f"image_encoder.blocks.{at // 2}.attn.{'qv'[at % 2]}"
        modules.append(LoRAModule(Target(path, Layout(), len(a)), b, a))
    return fleets.assembled(modules, base="facebook/sam-vit-base", rank=len(a))


@pytest.fixture(scope="module")
def sams(tmp_path_factory):
    """The SAM adapters of ranks 2, 4, 6, 8 and 16 as PEFT folders, read again."""
    root, found = tmp_path_factory.mktemp("sam"), {}
    for rank in (2, 4, 6, 8, 16):
        file = real_data() / "sam-vitb-lora" / f"lw_lora_rank{rank}_head.safetensors"
        lt.save_adapter(sam(file), root / f"rank{rank}")
        found[f"rank{rank}"] = lt.load_adapter(root / f"rank{rank}")
    return found


@pytest.fixture(scope="module")
def sam_bank(sams, tmp_path_factory):
    """A bank of all of them at an error, made once for each."""
    root = tmp_path_factory.mktemp("sam-banks")

    @functools.cache
    def made(epsilon):
        path = root / f"{epsilon}.lotr.safetensors"
        return lt.banks.make_bank(sams, path, lt.RelativeError(epsilon))

    return made


def alone(one, epsilon):
    """Bytes of one adapter's factors, its ranks cut at an error of its own."""
    made = lt.convert_adapter(one, lt.TotalError(epsilon), format="truncated").adapter
    return sum(group.stored * ITEM_SIZES[group.dtype] for group in made.groups.values())


@pytest.mark.parametrize("epsilon", [0.3, 0.1, 0.05, 0.01, 1e-5])
def test_a_bank_never_takes_more_than_each_adapter_cut_for_itself(sams, sam_bank, epsilon):
    made = sam_bank(epsilon)
    assert made.met
    fleets.require_true(made.bank, sams, epsilon)
    term = 4 * (768 + 768)
    apart = sum(alone(one, epsilon) for one in sams.values())
    assert fleets.stack_bytes(made.bank) <= apart + term * len(sams)
    assert abs(made.bytes_separate - apart) <= term * len(sams)
    if epsilon < 0.2:
        assert made.bank.explanation["chosen"] == "separate"
        formats = fleets.formats_of(made.bank)
        assert formats <= {"truncated", "lora"}


def test_independent_adapters_are_truncated_each_for_itself(sams, sam_bank):
    made = sam_bank(0.05)
    formats = fleets.formats_of(made.bank)
    assert formats == {"truncated"}
    assert {adapter.cluster for adapter in made.bank.adapters} == {0}
    ranks = {name: json.loads(made.bank.config_text(name))["r"] for name in sams}
    assert ranks == {name: int(name.removeprefix("rank")) for name in sams}
    for name in sams:
        export = lt.to_lora(made.bank[name], ranks="minimal")
        assert max(export.ranks.values()) <= ranks[name]


def test_an_untrained_adapter_goes_into_a_bank(sams, tmp_path):
    file = real_data() / "sam-vitb-lora" / "zeroB_rank4_untrained.safetensors"
    adapters = {"untrained": sam(file), "rank4": sams["rank4"]}
    path = tmp_path / "b.lotr.safetensors"
    made = lt.banks.make_bank(adapters, path, lt.RelativeError(0.05))
    fleets.require_true(made.bank, adapters, 0.05)
    assert not any(np.any(w) for w in fleets.dense(made.bank["untrained"]).values())


@pytest.mark.parametrize("epsilon", [0.1, 0.02])
def test_random_adapters_are_reported_as_not_sharing(epsilon, tmp_path):
    adapters = fleets.strangers(6, ranks=(4, 6), size=2.0)
    made = lt.banks.make_bank(adapters, tmp_path / "b.lotr.safetensors", lt.RelativeError(epsilon))
    assert made.bank.explanation["chosen"] == "separate"
    apart = sum(alone(one, epsilon) for one in adapters.values())
    assert fleets.stack_bytes(made.bank) <= apart + 4 * 40 * len(adapters)
    fleets.require_true(made.bank, adapters, epsilon)
