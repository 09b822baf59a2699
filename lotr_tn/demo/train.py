"""Train the demo adapter: a rank-8 LoRA on a small byte-level Llama model.

Usage: ``python -m lotr_tn.demo.train OUT_DIR [--seed N]``

It pretrains on generated English sentences, then fine-tunes with PEFT on a shifted style. It writes
the ``adapter`` (float32) with its ``training.json``, and beside it two checkpoints on the way there
(float16). The text comes from a seeded grammar, every draw
from an explicit generator, and all is computed in float64, so that machines differ in the saved
weights by no more than about 1e-7 of their size.
"""

import json
import math
import platform
import random
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaForCausalLM,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

Vocabulary = dict[str, tuple[str, ...]]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
RECORD_FILE = "training.json"
BASE_MODEL_NAME = "lotr-tn-demo-base"
TARGET_MODULES = ("gate_proj", "k_proj", "o_proj", "q_proj", "v_proj")
RANK = 8
ALPHA = 16

NUM_HEADS = 4
HEAD_DIM = 32
ROPE_THETA = 10_000.0

BATCH_SIZE = 4
SEQUENCE_LENGTH = 32
CORPUS_LENGTH = 200_000
HELD_OUT_WINDOWS = 128
HELD_OUT_SEED_OFFSET = 1_000_000
PRETRAIN_STEPS = 230
FINETUNE_STEPS = 190
CHECKPOINT_STEPS = (130, 160)  # of the fine-tune
PRETRAIN_RATE = 2e-3
FINETUNE_RATE = 5e-3  # Much higher rates amplify rounding differences between machines.
WARMUP_STEPS = 10

PLAIN_TEMPLATES = (
    "the {adjective} {noun} {verb} the {noun} {place}.",
    "{time} the {noun} {verb} a {adjective} {noun}.",
    "a {noun} {place} {verb} the {adjective} {noun}.",
)
SHIFTED_TEMPLATES = (
    "{place} were {number} {noun}s, {verb} by {number} {noun}s.",
    "Item {number}: {noun}, {adjective}; {verb} {time}.",
    "Has any {noun} {verb} this {adjective} {noun}? Not {place}!",
)
PLAIN_WORDS: Vocabulary = {
    "adjective": ("small", "quiet", "green", "heavy", "distant", "wooden", "bright", "round"),
    "noun": ("river", "garden", "teacher", "window", "market", "farmer", "bridge", "letter"),
    "verb": ("follows", "carries", "paints", "remembers", "repairs", "watches"),
    "place": ("near the harbour", "under the roof", "behind the mill", "across the field"),
    "time": ("in spring", "at noon", "before dinner", "every evening"),
}
SHIFTED_WORDS: Vocabulary = PLAIN_WORDS | {
    "noun": (*PLAIN_WORDS["noun"], "engine", "planet", "circuit", "vessel", "signal", "crystal"),
    "verb": ("followed", "carried", "painted", "remembered", "repaired", "observed", "measured"),
    "number": ("2", "3", "5", "8", "13", "21", "34", "55"),
}


@dataclass(frozen=True)
class TrainingRecord:
    """The settings and results of one run; losses in nats per byte on held-out shifted text."""

    seed: int
    pretrain_steps: int
    finetune_steps: int
    loss_before: float
    loss_after: float
    versions: dict[str, str]


class RotaryAnyPrecision(nn.Module):
    """Rotary position angles in the precision of the input (Llama's own rounds to float32)."""

    def __init__(self, head_dim: int, theta: float) -> None:
        """Take the size of one attention head and the base of the frequencies."""
        super().__init__()
        self.exponents = [-i / head_dim for i in range(0, head_dim, 2)]
        self.theta = theta

    @torch.no_grad()
    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of the angles at the given positions."""
        frequencies = hidden.new_tensor([self.theta**exponent for exponent in self.exponents])
        angles = position_ids[..., None].to(hidden.dtype) * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


def _pick(draw: random.Random, options: tuple[str, ...]) -> str:
    """Pick one option. Only ``random()`` keeps its sequence across Python versions."""
    return options[int(draw.random() * len(options))]


def _sentence(draw: random.Random, templates: tuple[str, ...], words: Vocabulary) -> str:
    """Pick a template and replace each ``{kind}`` in it by a random word of that kind."""
    return re.sub(r"\{(\w+)\}", lambda kind: _pick(draw, words[kind[1]]), _pick(draw, templates))


def make_corpus(seed: int, shifted: bool, length: int) -> Tensor:
    """Return ``length`` bytes (uint8) of generated sentences, in the plain or shifted style."""
    draw = random.Random(seed)
    templates = SHIFTED_TEMPLATES if shifted else PLAIN_TEMPLATES
    words = SHIFTED_WORDS if shifted else PLAIN_WORDS
    text = bytearray()
    while len(text) < length:
        text += _sentence(draw, templates, words).encode("ascii") + b"\n"
    return torch.tensor(list(text[:length]), dtype=torch.uint8)


def _windows(corpus: Tensor, starts: Iterable[int]) -> Tensor:
    """Stack one window of ``SEQUENCE_LENGTH + 1`` bytes per start position."""
    return torch.stack([corpus[s : s + SEQUENCE_LENGTH + 1] for s in starts]).long()


def _random_batch(corpus: Tensor, generator: torch.Generator) -> Tensor:
    """Draw ``BATCH_SIZE`` windows at random positions."""
    limit = len(corpus) - SEQUENCE_LENGTH
    starts = torch.randint(limit, (BATCH_SIZE,), generator=generator)
    return _windows(corpus, starts.tolist())


def _held_out_batch(seed: int, shifted: bool) -> Tensor:
    """Return consecutive windows of text drawn separately from the training text."""
    length = HELD_OUT_WINDOWS * (SEQUENCE_LENGTH + 1)
    corpus = make_corpus(seed + HELD_OUT_SEED_OFFSET, shifted, length)
    return _windows(corpus, range(0, length, SEQUENCE_LENGTH + 1))


def _use_input_precision(model: LlamaForCausalLM) -> None:
    """Replace the modules that Llama computes in float32 whatever the precision of the input."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LlamaRMSNorm):
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                setattr(parent, name, norm)
            elif isinstance(child, LlamaRotaryEmbedding):
                setattr(parent, name, RotaryAnyPrecision(HEAD_DIM, ROPE_THETA))


def build_base_model(seed: int) -> LlamaForCausalLM:
    """Build the small byte-level Llama model in float64; the global random state stays as it is."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=HEAD_DIM * NUM_HEADS,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    _use_input_precision(model)
    model.double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=config.initializer_range, generator=generator)
    return model


def add_adapter(model: LlamaForCausalLM, seed: int) -> PeftModel:
    """Freeze the model and add a LoRA adapter: A drawn from ``seed`` as PEFT does, B at zero."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=list(TARGET_MODULES),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT reads an attribute that Transformers has renamed.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        peft_model = get_peft_model(model, config)
    peft_model.double()
    config.base_model_name_or_path = BASE_MODEL_NAME
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if "lora_A" in name:
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
    return peft_model


def language_model_loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the mean cross-entropy of each next byte, in nats, in the model's precision."""
    logits = model(input_ids=batch[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: nn.Module, batch: Tensor) -> float:
    """Return the loss on a batch without training on it."""
    return float(language_model_loss(model, batch))


def _rate_factor(step: int, steps: int) -> float:
    """Scale the learning rate: a linear rise, then half a cosine down to zero."""
    rise = min(1.0, (step + 1) / WARMUP_STEPS)
    return rise * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def optimise(
    model: nn.Module,
    corpus: Tensor,
    steps: int,
    rate: float,
    seed: int,
    after: Callable[[int], None] = lambda done: None,
) -> None:
    """Run AdamW steps on the trainable parameters, with batches drawn from ``seed``.

    ``after`` is called after each step with the number of steps done.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * _rate_factor(step, steps)
        optimiser.zero_grad()
        language_model_loss(model, _random_batch(corpus, generator)).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        after(step + 1)


@contextmanager
def _reproducible_computation() -> Iterator[None]:
    """Use deterministic algorithms on one thread, and restore the earlier settings at the end."""
    threads = torch.get_num_threads()
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.set_num_threads(threads)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with sorted keys, so that equal content gives equal files."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _save_adapter(model: PeftModel, out: Path, dtype: torch.dtype) -> None:
    """Write the adapter's configuration and weights, and none of PEFT's other files."""
    out.mkdir(parents=True, exist_ok=True)
    state = {name: value.to(dtype) for name, value in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=state)
        config = json.loads(Path(folder, CONFIG_FILE).read_text(encoding="utf-8"))
        shutil.copyfile(Path(folder, WEIGHTS_FILE), out / WEIGHTS_FILE)
    config["target_modules"] = sorted(config["target_modules"])
    _write_json(out / CONFIG_FILE, config)


def _versions() -> dict[str, str]:
    """Return the version of Python and of each library that affects the result."""
    libraries = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {"python": platform.python_version(), **libraries}


def train(
    out: Path,
    seed: int = 0,
    pretrain_steps: int = PRETRAIN_STEPS,
    finetune_steps: int = FINETUNE_STEPS,
    checkpoint_steps: tuple[int, ...] = CHECKPOINT_STEPS,
) -> TrainingRecord:
    """Pretrain the base model, fine-tune the adapter, and write it and its checkpoints to ``out``.

    The folders are ``adapter`` and, after each of ``checkpoint_steps``, ``checkpoint-STEP``.
    """
    held_out = _held_out_batch(seed, shifted=True)
    with _reproducible_computation():
        base = build_base_model(seed)
        plain = make_corpus(seed, shifted=False, length=CORPUS_LENGTH)
        optimise(base, plain, pretrain_steps, PRETRAIN_RATE, seed)
        loss_before = evaluate(base, held_out)
        adapted = add_adapter(base, seed)
        shifted = make_corpus(seed, shifted=True, length=CORPUS_LENGTH)

        def after(done: int) -> None:
            if done in checkpoint_steps:
                _save_adapter(adapted, out / f"checkpoint-{done}", torch.float16)

        optimise(adapted, shifted, finetune_steps, FINETUNE_RATE, seed, after)
        loss_after = evaluate(adapted, held_out)
    _save_adapter(adapted, out / "adapter", torch.float32)
    record = TrainingRecord(
        seed, pretrain_steps, finetune_steps, loss_before, loss_after, _versions()
    )
    _write_json(out / "adapter" / RECORD_FILE, asdict(record))
    return record


def main(
    out_dir: Annotated[Path, typer.Argument(help="Folder that receives the adapters.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the text and the weights.")] = 0,
) -> None:
    """Train the demo adapter, and write it and its checkpoints to OUT_DIR."""
    record = train(out_dir, seed)
    change = 1.0 - record.loss_after / record.loss_before
    typer.echo("Loss on held-out shifted text, in nats per byte:")
    typer.echo(f"  before the fine-tune  {record.loss_before:.4f}")
    typer.echo(f"  after the fine-tune   {record.loss_after:.4f}  ({change:.0%} lower)")


if __name__ == "__main__":
    typer.run(main)
