"""transformers' own Trainer, with everything that it does to a model."""

import warnings

import pytest
import torch
from peft import PeftModel
from transformers import Trainer, TrainingArguments

import lotr_tn.nn as ln
from lotr_tn.peft import LotrConfig
from tests.files.peft_models import llama, quiet_peft, seeded
from tests.nn.blocks import pairs

pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers and accelerate


class Sequences(torch.utils.data.Dataset):
    """Counting in steps, which a model learns quickly."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        tokens = (index + torch.arange(12) * (1 + index % 3)) % 61
        return {"input_ids": tokens, "labels": tokens}


def trainer(folder, *, checkpointing=False, steps=10, dropout=0.1, init="balanced", **more):
    model = quiet_peft(
        seeded(llama).train(),
        LotrConfig(
            r=4, target_modules=["q_proj", "v_proj", "o_proj"], group_by="shape",
            task_type="CAUSAL_LM", lotr_dropout=dropout, init=init,
        ),
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, logging_steps=1,
        save_steps=5, learning_rate=0.02, use_cpu=True, report_to="none", seed=3, disable_tqdm=True,
        gradient_checkpointing=checkpointing, save_total_limit=4, lr_scheduler_type="constant",
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None, **more,
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=Sequences())


def losses(trained):
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("checkpointing", "init"), [(False, "balanced"), (True, "principal")])
def test_ten_steps_and_a_resumed_run(checkpointing, init, tmp_path):
    whole = trainer(tmp_path / "whole", checkpointing=checkpointing, init=init, bf16=True)
    whole.train()
    wanted = losses(whole)
    assert len(wanted) == 10
    assert wanted[-1] < wanted[0]
    assert len(pairs(whole.model)) == 2
    again = trainer(tmp_path / "again", checkpointing=checkpointing, init=init, bf16=True)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert losses(again)[-5:] == wanted[-5:]
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(seeded(llama), tmp_path / "whole" / "checkpoint-10")
    for group, stack in ln.stacks_of(loaded).items():
        torch.testing.assert_close(stack.core, ln.stacks_of(whole.model)[group].core)


def test_checkpointing_gives_the_same_gradients(tmp_path):
    plain = trainer(tmp_path / "a", steps=2, dropout=0.0)
    other = trainer(tmp_path / "b", steps=2, dropout=0.0, checkpointing=True)
    plain.train()
    other.train()
    assert losses(plain) == pytest.approx(losses(other), rel=1e-5)
