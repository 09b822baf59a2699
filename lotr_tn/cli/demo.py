"""The command `lotr demo`."""

import shutil
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from lotr_tn.adapters import LoRAAdapter, to_lora
from lotr_tn.cli.console import Output, file_size
from lotr_tn.conversion import convert_adapter
from lotr_tn.doors import load_adapter, save_adapter
from lotr_tn.inspection import compare_adapters
from lotr_tn.linalg.ranks import RelativeError
from lotr_tn.report.records import (
    comparison_record,
    conversion_record,
    export_record,
    inspection_record,
)
from lotr_tn.report.text import comparison_text, conversion_text, export_text, inspection_text

ERRORS = (0.3, 0.1, 0.01)


def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where to leave the files.")] = Path(
        "lotr-demo"
    ),
    *,
    out: Output,
) -> None:
    """Inspect, convert, export and compare a real LoRA adapter that comes with the program."""
    out.show(_run(folder), _story)


def _run(folder: Path) -> dict[str, Any]:
    """Do the whole job, and return the record of every step."""
    source = folder / "adapter"
    with as_file(files("lotr_tn.demo") / "adapter") as packed:
        shutil.copytree(packed, source, dirs_exist_ok=True)
    adapter = load_adapter(source)
    assert isinstance(adapter, LoRAAdapter)
    record: dict[str, Any] = {
        "inspect": inspection_record(adapter, "kind", file_size(source)),
        "config": dict(adapter.config),
        "convert": [_convert(adapter, source, folder, epsilon) for epsilon in ERRORS],
    }
    smallest = folder / f"error-{ERRORS[1]:g}.lotr.safetensors"
    begun = time.perf_counter()
    lotr = load_adapter(smallest)
    assert not isinstance(lotr, LoRAAdapter)
    exported = to_lora(lotr)
    again = folder / "exported"
    save_adapter(exported.adapter, again, force=True)
    sizes = file_size(smallest), file_size(again)
    record["export"] = export_record(exported, again, sizes, time.perf_counter() - begun)
    record["compare"] = comparison_record(compare_adapters(adapter, load_adapter(again)))
    return record


def _convert(adapter: LoRAAdapter, source: Path, folder: Path, epsilon: float) -> dict[str, Any]:
    begun = time.perf_counter()
    destination = folder / f"error-{epsilon:g}.lotr.safetensors"
    conversion = convert_adapter(adapter, RelativeError(epsilon))
    save_adapter(conversion.adapter, destination, force=True)
    sizes = file_size(source), file_size(destination)
    seconds = time.perf_counter() - begun
    return {"asked": epsilon} | conversion_record(conversion, destination, sizes, seconds)


def _story(record: dict[str, Any]) -> RenderableType:
    """The steps in plain words, each with what it printed."""
    parts: list[RenderableType] = [
        *_chapter(
            "1. What the adapter holds",
            "A LoRA of a small Llama, trained with peft. Each module has two factors of its own.",
            f"lotr inspect {record['inspect']['source']}",
        ),
        inspection_text(record["inspect"], record["config"]),
    ]
    for step, done in enumerate(record["convert"]):
        why = (
            "LoTR lets all layers of a kind share two factors, and keeps one small core a layer. "
            "Of all ranks within the error, the cheapest are taken."
            if step == 0
            else "A smaller error needs more shared directions."
        )
        parts += _chapter(
            f"{step + 2}. Convert, losing at most {done['asked']:.0%}",
            why,
            f"lotr convert {record['inspect']['source']} --rel-error {done['asked']:g} "
            f"-o {done['destination']}",
        )
        parts.append(conversion_text(done, f"at most {done['asked']:g}"))
    parts += _chapter(
        "5. Back to LoRA, for PEFT and every server",
        "Each U G V' is written as a pair of LoRA factors of its own, scale inside.",
        f"lotr export {record['convert'][1]['destination']} -o {record['export']['destination']}",
    )
    parts.append(export_text(record["export"], uniform=True))
    parts += _chapter(
        "6. Compare with the original",
        "The error measured after the round trip is the one that the conversion reported.",
        f"lotr compare {record['inspect']['source']} {record['export']['destination']}",
    )
    parts.append(comparison_text(record["compare"], show_all=False))
    return Group(*parts)


def _chapter(title: str, why: str, command: str) -> list[RenderableType]:
    return [
        Text(f"\n{title}", style="bold"),
        Text(why),
        Text(f"$ {command}\n", style="cyan", overflow="fold"),
    ]
