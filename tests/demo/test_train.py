"""The demo adapter is what its script makes."""

import json
import warnings
from pathlib import Path

import pytest

import lotr_tn as lt
from lotr_tn.demo import train

SHIPPED = Path(lt.__file__).parent / "demo" / "adapter"


def quietly(out, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train.train(out, **options)


def test_the_shipped_adapter_learnt_something():
    record = json.loads((SHIPPED / "training.json").read_text())
    assert record["loss_after"] < 0.7 * record["loss_before"]
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) <= 500_000


def test_a_few_steps_lower_the_loss(tmp_path):
    record = quietly(tmp_path / "adapter", seed=0, pretrain_steps=3, finetune_steps=3)
    assert record.loss_after < record.loss_before
    assert lt.load_adapter(tmp_path / "adapter").parameters == 81920


@pytest.mark.slow
def test_the_script_reproduces_the_shipped_adapter(tmp_path):
    """Float64 training: another machine gives the same weights to rounding (about 40 s)."""
    record = json.loads((SHIPPED / "training.json").read_text())
    quietly(
        tmp_path / "adapter",
        seed=record["seed"],
        pretrain_steps=record["pretrain_steps"],
        finetune_steps=record["finetune_steps"],
    )
    found = lt.compare_adapters(lt.load_adapter(SHIPPED), lt.load_adapter(tmp_path / "adapter"))
    assert found.relative_error < 1e-4
