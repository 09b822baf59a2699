"""Small random models, and LoRA adapters on them made by the real peft."""

import copy
import functools
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)


def llama():
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


def bert():
    config = BertConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_positions=16)
    )


class Convs(torch.nn.Module):
    """Convolutions of one, two and three dimensions, one of them grouped, and an embedding."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(61, 8)
        self.one = torch.nn.Conv1d(8, 12, 3, padding=1)
        self.two = torch.nn.Conv2d(12, 6, (3, 2))
        self.grouped = torch.nn.Conv2d(6, 10, 3, groups=2, padding=1)
        self.three = torch.nn.Conv3d(10, 4, (1, 2, 2))
        self.point = torch.nn.Conv2d(4, 5, 1)

    def forward(self, input_ids):
        x = self.one(self.embed(input_ids).transpose(1, 2))
        x = self.grouped(self.two(torch.stack([x, x * 0.5, x + 1, -x], dim=2)))
        x = self.three(torch.stack([x, -x], dim=2))
        return self.point(x.flatten(2, 3)).mean(dim=(2, 3))


class Attention(torch.nn.Module):
    """torch's own multi-head attention, whose input projection is fused."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(61, 16)
        self.attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        return self.attention(x, x, x)[0]


TOKENS = torch.arange(24).reshape(2, 12) % 61


def seeded(build, seed=0):
    """A model whose weights depend on the seed alone."""
    return copy.deepcopy(_built(build, seed))


@functools.lru_cache(maxsize=2)
def _built(build, seed):
    """The same, drawn once: others get copies of it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


def quiet_peft(model, config, **more):
    """get_peft_model, without the warning that peft triggers inside transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, config, **more)


def adapt(build, folder: Path, *, adapter_name="default", grown=1.0, **config) -> PeftModel:
    """Adapt a model, give every factor random entries, and save the adapter."""
    adapted = quiet_peft(seeded(build), LoraConfig(**config), adapter_name=adapter_name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad or "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(grown * noise.to(parameter.dtype) / parameter.shape[-1] ** 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.eval().save_pretrained(folder)
    return adapted


def logits(model):
    """The output for the fixed tokens."""
    with torch.no_grad():
        out = model(input_ids=TOKENS)
    return out if isinstance(out, torch.Tensor) else out.logits


def reload(build, folder: Path, **more) -> PeftModel:
    """The adapter on a fresh copy of the model; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
        warnings.filterwarnings("ignore", message=".*ConvNd layer with groups.*")
        return PeftModel.from_pretrained(seeded(build), folder, **more).eval()
