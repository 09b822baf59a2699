"""Fine-tune a small model by LoRA, LoTR and cores alone, and plot the loss against the size.

`python docs/figures/finetuning.py` writes finetuning.json and finetuning.svg beside itself. It
trains the byte-level Llama of the demo on sentences that it makes, and adapts it to sentences of
another style. The learning rate of each method and rank is chosen on one seed by the loss on text
that is used for nothing else. It takes half an hour on one core; `--smoke` does a little of it.
"""

import copy
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import lotr_tn as lt
import lotr_tn.nn as ln
from lotr_tn.demo.train import SEQUENCE_LENGTH as LENGTH
from lotr_tn.demo.train import TARGET_MODULES, build_base_model, evaluate, make_corpus, optimise

HERE = Path(__file__).parent
RATES = (2e-3, 5e-3, 1e-2, 2e-2)


@dataclass(frozen=True)
class Plan:
    """How much is trained, and on how many bytes of text."""

    corpus: int
    windows: int  # of the text that a loss is measured on
    pretraining: int
    steps: int
    seeds: tuple[int, ...]
    lora: tuple[int, ...]
    lotr: tuple[int, ...]
    cores: tuple[int, ...]
    rates: tuple[float, ...]


FULL = Plan(
    200_000, 128, 230, 190, (0, 1, 2), (1, 2, 4, 8), (2, 4, 8, 16, 32), (8, 16, 32, 64), RATES
)
SMOKE = Plan(3_000, 16, 3, 3, (0,), (1,), (2,), (4,), (5e-3,))


@dataclass(frozen=True)
class Point:
    """One method at one rank: trained parameters, and held-out losses in nats per byte."""

    method: str
    rank: int
    parameters: int
    rate: float
    losses: list[float]


def held_out(plan: Plan, seed: int) -> torch.Tensor:
    """Windows of text of the new style that no training sees."""
    corpus = make_corpus(seed, shifted=True, length=plan.windows * (LENGTH + 1))
    return corpus.reshape(plan.windows, LENGTH + 1).long()


def lora(base: nn.Module, rank: int, seed: int) -> nn.Module:
    """PEFT's LoRA."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGET_MODULES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(copy.deepcopy(base), config)


def lotr(base: nn.Module, rank: int, seed: int) -> nn.Module:
    """LoTR, with modules of one shape in one pair of factors, as in the paper."""
    return ln.add_lotr(
        copy.deepcopy(base), list(TARGET_MODULES), r=rank, group_by="shape", seed=100 * seed
    )


def cores(base: nn.Module, rank: int, seed: int) -> nn.Module:
    """The cores alone, between the leading directions of the pretrained weights."""
    return ln.add_lotr(
        copy.deepcopy(base), list(TARGET_MODULES), r=rank, group_by="shape", seed=100 * seed,
        init="weights", train="cores",
    )  # fmt: skip


METHODS: dict[str, Callable[[nn.Module, int, int], nn.Module]] = {
    "LoRA": lora,
    "LoTR": lotr,
    "LoTR, cores only": cores,
}


def tuned(model: nn.Module, plan: Plan, rate: float, seed: int) -> nn.Module:
    """The model after fine-tuning."""
    corpus = make_corpus(10 + seed, shifted=True, length=plan.corpus)
    optimise(model, corpus, plan.steps, rate, seed)
    return model


def point(base: nn.Module, method: str, rank: int, plan: Plan) -> Point:
    """One method at one rank: its best rate on one seed, and its losses on all of them."""
    build = METHODS[method]
    choosing, judging = held_out(plan, 1_000_001), held_out(plan, 1_000_000)
    tried = {
        rate: evaluate(tuned(build(base, rank, 50), plan, rate, 50), choosing)
        for rate in plan.rates
    }
    rate = min(tried, key=lambda r: tried[r])
    losses, count = [], 0
    for seed in plan.seeds:
        model = tuned(build(base, rank, seed), plan, rate, seed)
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        losses.append(evaluate(model, judging))
    return Point(method, rank, count, rate, losses)


def healed(base: nn.Module, plan: Plan) -> list[dict[str, float]]:
    """A LoRA cut to LoTR, and its cores trained on: error and loss before and after."""
    judging = held_out(plan, 1_000_000)
    source = tuned(lora(base, max(plan.lora), 0), plan, 5e-3, 0)
    before = evaluate(source, judging)
    updates = {
        name.removeprefix("base_model.model."): (
            (layer.lora_B["default"].weight * layer.scaling["default"]).detach(),
            layer.lora_A["default"].weight.detach(),
        )
        for name, layer in source.named_modules()
        if hasattr(layer, "lora_B")
    }
    rows = []
    for rank in plan.lotr[-3:]:
        start = ln.add_lotr(
            copy.deepcopy(base), list(TARGET_MODULES), r=rank, init=updates, train="cores"
        )
        lost = size = 0.0
        for path, layer in ln.lotr_layers(start).items():
            up, down = updates[path]
            lost += float((layer.update_of("default") - up @ down).square().sum())
            size += float((up @ down).square().sum())
        cut = evaluate(start, judging)
        after = evaluate(tuned(start, plan, 2e-3, 1), judging)
        rows.append(
            {
                "rank": rank,
                "parameters": ln.parameter_count(start),
                "trained": ln.parameter_count(start, trainable=True),
                "relative_error": (lost / size) ** 0.5,
                "lora_loss": before,
                "cut_loss": cut,
                "healed_loss": after,
            }
        )
    return rows


def draw(points: list[Point], base_loss: float, path: Path) -> None:
    """Held-out loss against trained parameters."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "lotr"
    ink = "#7f8792"
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for method, colour in zip(METHODS, ("#d06e2e", "#1a9083", "#587cd2"), strict=True):
        own = [p for p in points if p.method == method]
        means = [statistics.fmean(p.losses) for p in own]
        spread = [[m - min(p.losses) for m, p in zip(means, own, strict=True)],
                  [max(p.losses) - m for m, p in zip(means, own, strict=True)]]  # fmt: skip
        sizes = [p.parameters for p in own]
        axes.errorbar(sizes, means, spread, marker="o", color=colour, label=method, capsize=3)
        left = method == "LoTR"  # the lowest curve, with its labels below it
        for x, y, p in zip(sizes, means, own, strict=True):
            axes.annotate(
                f"{p.rank}", (x, y), (-4, -11) if left else (4, 5), textcoords="offset points",
                color=colour, fontsize=8, ha="right" if left else "left",
            )  # fmt: skip
    axes.axhline(base_loss, color=ink, ls=":", lw=1)
    axes.annotate("not adapted", (0.99, base_loss), (0, -11), xycoords=("axes fraction", "data"),
                  textcoords="offset points", ha="right", color=ink, fontsize=9)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("trained parameters (beside each point its rank)", color=ink)
    axes.set_ylabel("held-out loss (nats per byte)", color=ink)
    axes.tick_params(colors=ink, which="both")
    for spine in axes.spines.values():
        spine.set_color(ink)
    axes.legend(frameon=False, labelcolor=ink)
    figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def main(plan: Plan = FULL, folder: Path = HERE) -> dict[str, object]:
    """Train, write the figures and draw them."""
    torch.set_num_threads(1)
    base = build_base_model(0).float()
    optimise(base, make_corpus(0, shifted=False, length=plan.corpus), plan.pretraining, 2e-3, 0)
    base_loss = evaluate(base, held_out(plan, 1_000_000))
    chosen = zip(METHODS, (plan.lora, plan.lotr, plan.cores), strict=True)
    points = [point(base, method, rank, plan) for method, ranks in chosen for rank in ranks]
    record = {
        "base_loss": base_loss,
        "points": [asdict(p) for p in points],
        "healing": healed(base, plan),
        "versions": {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "lotr_tn": lt.__version__,
        },
    }
    (folder / "finetuning.json").write_text(json.dumps(record, indent=2) + "\n")
    draw(points, base_loss, folder / "finetuning.svg")
    return record


if __name__ == "__main__":
    main(SMOKE if "--smoke" in sys.argv else FULL)
