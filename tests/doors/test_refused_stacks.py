"""What is no stack of a file is refused in a sentence, and nothing is written."""

from typing import Any

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.errors import LotrError
from tests.cli import runs


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nothing.lotr.safetensors", "no such file or folder"),
        ("empty", "holds no adapter_model.safetensors"),
        ("run", "hold adapters: name one"),
        ("text.lotr.safetensors", "is not a complete safetensors file"),
        ("run/checkpoint-1", "holds 2 stacks, q_proj, v_proj"),
        (7, "load_stack takes a path"),
    ],
)
def test_what_holds_no_one_stack(tmp_path, monkeypatch, source: Any, said):
    monkeypatch.chdir(tmp_path)
    runs.history(tmp_path / "run", 1, 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.lotr.safetensors").write_text("this is a text, and no file of tensors")
    with pytest.raises(LotrError, match=said):
        lt.load_stack(source)


def test_stacks_that_are_not_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    stack = lt.LoRAStack(rng.random((5, 2)), rng.random((2, 4)), (1, 1))
    broken = lt.LoRAStack(np.full((5, 2), np.nan), stack.down, stack.ranks)
    refused: Any = (
        ("stack", "x.safetensors", "save_stack takes a stack"),
        (broken, "x.safetensors", "holds NaN or infinite entries"),
        (lt.Dense(np.ones((2, 3, 4))), "x.safetensors", "Dense is stored in no form"),
        (stack, "x", "must end in .safetensors"),
        (stack, "none/x.safetensors", "the folder none does not exist"),
        (stack, 7, "save_stack takes a path"),
    )
    for given, target, said in refused:
        with pytest.raises(LotrError, match=said) as caught:
            lt.save_stack(given, target)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())
