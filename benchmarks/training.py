"""Training steps: LoTR against PEFT's LoRA of the same rank, and its own part against its products.

A step is forward, backward and AdamW on a RoBERTa of base size with random weights; queries and
values are adapted. Both models are stepped in turn. The part alone is the query's and the value's
update of one block, forward and backward, against the same products written out by hand.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lotr_tn.nn as ln
from benchmarks.measure import Timing, report, timed_together

__all__ = ["run"]


@dataclass(frozen=True)
class Size:
    """What is measured."""

    layers: int
    width: int
    batch: int
    length: int
    ranks: tuple[int, ...]
    seconds: float


SIZES = {
    "full": Size(12, 768, 8, 128, (8, 64), 30.0),
    "smoke": Size(2, 32, 2, 8, (2,), 0.01),
}


def run(size: str = "full") -> None:
    """Measure, print and write."""
    chosen = SIZES[size]
    records = [_steps(chosen, rank) | _part(chosen, rank) for rank in chosen.ranks]
    report(
        "training",
        f"Training step on {_device()}: {chosen.layers} layers of {chosen.width}, "
        f"batch {chosen.batch} x {chosen.length}",
        ["", *(f"r = {rank}" for rank in chosen.ranks)],
        [[name, *(shown(record) for record in records)] for name, shown in ROWS.items()],
        {"size": size, "device": _device(), "ranks": records},
    )


ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "LoTR step, seconds": lambda record: record["lotr_step"],
    "LoRA step, seconds": lambda record: record["lora_step"],
    "LoTR / LoRA": lambda record: f"{record['step_ratio']:.3f}",
    "adapter's part / products by hand": lambda record: f"{record['part_ratio']:.2f}",
    "LoTR parameters": lambda record: f"{record['lotr_parameters']:,}",
    "LoRA parameters": lambda record: f"{record['lora_parameters']:,}",
    "LoTR optimiser state, bytes": lambda record: f"{record['lotr_optimiser_bytes']:,}",
    "LoRA optimiser state, bytes": lambda record: f"{record['lora_optimiser_bytes']:,}",
}


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _steps(size: Size, rank: int) -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model
    from transformers.models.roberta.configuration_roberta import RobertaConfig
    from transformers.models.roberta.modeling_roberta import RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=1000,
        num_hidden_layers=size.layers,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_attention_heads=max(1, size.width // 64),
        max_position_embeddings=size.length + 4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    base = RobertaForSequenceClassification(config)
    targets = ["query", "value"]
    lotr = ln.add_lotr(copy.deepcopy(base), targets, r=rank, group_by="shape")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora = get_peft_model(base, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    tokens = torch.randint(5, 1000, (size.batch, size.length), device=_device())
    labels = torch.arange(size.batch, device=_device()) % 2
    made = {"lotr": _stepper(lotr, tokens, labels), "lora": _stepper(lora, tokens, labels)}
    first, second = timed_together(made["lotr"][0], made["lora"][0], size.seconds)
    counts = {
        f"{name}_{what}": value
        for name, (_, optimiser) in made.items()
        for what, value in (
            ("parameters", sum(p.numel() for g in optimiser.param_groups for p in g["params"])),
            ("optimiser_bytes", _state_bytes(optimiser)),
        )
    }
    return {
        "rank": rank,
        "lotr_step": first.text(),
        "lora_step": second.text(),
        "step_ratio": first.median / second.median,
        "fastest_ratio": first.fastest / second.fastest,
    } | counts


def _stepper(
    model: nn.Module, tokens: Tensor, labels: Tensor
) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    model.to(_device()).train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    half = _device() == "cuda"

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=half):
            loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if half:
            torch.cuda.synchronize()

    return step, optimiser


def _state_bytes(optimiser: torch.optim.Optimizer) -> int:
    return sum(
        value.numel() * value.element_size()
        for state in optimiser.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.ndim
    )


def _part(size: Size, rank: int) -> dict[str, Any]:
    """The update of two layers that share an input, and the same products by hand."""
    d, rows = size.width, size.batch * size.length
    block = nn.Module()
    block.query, block.value = nn.Linear(d, d), nn.Linear(d, d)
    ln.add_lotr(block, ["query", "value"], r=rank, group_by="shape")
    layers = list(ln.lotr_layers(block).values())
    block.to(_device())
    factors = ln.shared_factors(block)[f"{d}x{d}"]
    cores = [layer.own_of("default")["core"] for layer in layers]
    x = torch.randn(rows, d, device=_device(), requires_grad=True)
    zero = torch.zeros(rows, d, device=_device())
    weight = torch.randn(rows, d, device=_device())

    def own() -> None:
        ys = [factors.added(zero, x, {"core": core}, ln.Site(siblings=2), 1.0) for core in cores]
        torch.autograd.backward(ys, [weight, weight])
        _clear(block, x)

    def by_hand() -> None:
        with torch.no_grad():
            inside = x @ factors.v
            middles = [inside @ core.mT for core in cores]
            for middle in middles:
                torch.addmm(zero, middle, factors.u.mT)
            backs = [weight @ factors.u for _ in cores]  # each layer has its own gradient
            u_grad = weight.mT @ middles[0] + weight.mT @ middles[1]
            core_grads = [back.mT @ inside for back in backs]
            inner = backs[0] @ cores[0] + backs[1] @ cores[1]
            x.grad = inner @ factors.v.mT
            factors.v.grad, factors.u.grad = x.mT @ inner, u_grad
            for core, found in zip(cores, core_grads, strict=True):
                core.grad = found
        _clear(block, x)

    mine, floor = timed_together(own, by_hand, size.seconds / 10)
    return {"part_ratio": mine.median / floor.median, "part_seconds": _seconds(mine, floor)}


def _seconds(*timings: Timing) -> list[float]:
    return [timing.median for timing in timings]


def _clear(block: nn.Module, x: Tensor) -> None:
    block.zero_grad()
    x.grad = None
    if x.is_cuda:
        torch.cuda.synchronize()
