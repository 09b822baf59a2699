"""The demo adapter is what its script makes."""

import json
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import settings

import lotr_tn as lt
from lotr_tn.demo import train
from tests.testing.budget import SMALL

DEMO = Path(lt.__file__).parent / "demo"
SHIPPED = DEMO / "adapter"
CHECKPOINTS = [f"checkpoint-{step}" for step in train.CHECKPOINT_STEPS]


def quietly(out, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train.train(out, **options)


def test_the_shipped_adapter_learnt_something():
    record = json.loads((SHIPPED / "training.json").read_text())
    assert record["loss_after"] < 0.7 * record["loss_before"]
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) <= 500_000


def test_the_run_is_small():
    folders = [SHIPPED, *(DEMO / name for name in CHECKPOINTS)]
    assert {lt.load_adapter(folder).dtype for folder in folders} == {"float32", "float16"}
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) <= 700_000


FIRST_STEPS = {
    "gate_proj": 0.18183511217235,
    "k_proj": 0.08973859140003,
    "o_proj": 0.13412675251300,
    "q_proj": 0.12587139508255,
    "v_proj": 0.09143540923282,
}
"""Norms of the adapter of three steps, by the script that made the shipped one."""


def test_the_shipped_run_is_of_these_settings():
    record = json.loads((SHIPPED / "training.json").read_text())
    made = (record["pretrain_steps"], record["finetune_steps"], record["seed"])
    assert made == (train.PRETRAIN_STEPS, train.FINETUNE_STEPS, 0)


def test_a_few_steps_lower_the_loss(tmp_path):
    """Whatever a long run does, a short one does too: text, model, training and files."""
    record = quietly(tmp_path, seed=0, pretrain_steps=3, finetune_steps=3, checkpoint_steps=(1, 2))
    assert record.loss_after < record.loss_before
    assert record.loss_before == pytest.approx(5.13467505004274, rel=1e-8)
    assert record.loss_after == pytest.approx(5.09060982740742, rel=1e-8)
    groups = lt.group_modules(lt.load_adapter(tmp_path / "adapter"))
    norms = {name: float(lt.norm(group.stack)) for name, group in groups.items()}
    assert norms == pytest.approx(FIRST_STEPS, rel=1e-6)
    run = [lt.load_adapter(tmp_path / name) for name in ("checkpoint-1", "checkpoint-2", "adapter")]
    assert [adapter.dtype for adapter in run] == ["float16", "float16", "float32"]
    assert {adapter.parameters for adapter in run} == {81920}
    assert all(lt.compare_adapters(a, b).relative_error > 0.1 for a, b in pairwise(run))


@pytest.mark.skipif(
    settings.default.max_examples <= SMALL,
    reason="trains for 40 s what three steps pin too: HYPOTHESIS_PROFILE=nightly runs it",
)
def test_the_script_reproduces_the_shipped_run(tmp_path):
    """Float64 training: another machine gives the same weights to rounding (about 40 s)."""
    record = json.loads((SHIPPED / "training.json").read_text())
    quietly(
        tmp_path,
        seed=record["seed"],
        pretrain_steps=record["pretrain_steps"],
        finetune_steps=record["finetune_steps"],
    )
    for name in ("adapter", *CHECKPOINTS):
        found = lt.compare_adapters(lt.load_adapter(DEMO / name), lt.load_adapter(tmp_path / name))
        assert found.relative_error < 1e-4, name
