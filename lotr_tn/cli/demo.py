"""The command `lotr demo`."""

import shutil
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from lotr_tn.adapters import Adapter, LoRAAdapter, to_lora
from lotr_tn.banks.making.conversion import make_bank
from lotr_tn.cli.console import Output
from lotr_tn.conversion import convert_adapter
from lotr_tn.doors import load_adapter, save_adapter
from lotr_tn.doors.sources import named_adapters
from lotr_tn.files.dialects.native import native_size
from lotr_tn.files.weights import file_size
from lotr_tn.inspection import analyze_adapters, compare_adapters
from lotr_tn.linalg.ranks import RelativeError, TotalError
from lotr_tn.report.analysis import analysis_record
from lotr_tn.report.analysis_text import sizes_text
from lotr_tn.report.bank import bank_conversion_record, bank_conversion_text
from lotr_tn.report.bank_export import bank_export_record, bank_export_text
from lotr_tn.report.numbers import byte_size, times
from lotr_tn.report.records import comparison_record, inspection_record
from lotr_tn.report.text import comparison_lines, inspection_text

ERROR = 0.1
SHIPPED = {"adapter": "checkpoint-190", "checkpoint-130": "", "checkpoint-160": ""}
"""The adapters of the package, and what the last of the run is called as a checkpoint."""
TAKEN = "checkpoint-160"
NEXT = (
    ("Ask first", "lotr analyze MY-LORA --rel-error 0.1"),
    ("Make it smaller", "lotr convert MY-LORA --rel-error 0.1 --coding auto"),
    ("Bank a run", "lotr bank make MY-RUN --rel-error 0.1 -o run.lotr.safetensors"),
    ("See who is in", "lotr bank show run.lotr.safetensors"),
    ("Take one out", "lotr bank export run.lotr.safetensors NAME"),
    ("Add one", "lotr bank add run.lotr.safetensors MY-RUN/NEXT"),
    ("Compare two", "lotr compare ONE OTHER"),
    ("Mix two", "lotr merge ONE OTHER --weights 0.5,0.5 -o mean"),
)


def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where to leave the files.")] = Path(
        "lotr-demo"
    ),
    *,
    out: Output,
) -> None:
    """Look at the run of a real LoRA that comes with the program, in five screens."""
    out.show(_run(folder), _story)


def _run(folder: Path) -> dict[str, Any]:
    """Do the whole job, and return the record of every step."""
    source, run, bank = folder / "adapter", folder / "run", folder / "run.lotr.safetensors"
    with as_file(files("lotr_tn.demo")) as packed:
        shutil.copytree(packed / "adapter", source, dirs_exist_ok=True)
        for name, checkpoint in SHIPPED.items():
            shutil.copytree(packed / name, run / (checkpoint or name), dirs_exist_ok=True)
    adapter = load_adapter(source)
    assert isinstance(adapter, LoRAAdapter)
    record: dict[str, Any] = {
        "inspect": inspection_record(adapter, "kind", file_size(source)),
        "config": dict(adapter.config),
        "analyze": analysis_record(
            analyze_adapters([adapter], RelativeError(ERROR), group_by="auto", coding="auto")
        ),
    }
    begun = time.perf_counter()
    adapters = named_adapters([run])
    made = make_bank(adapters, bank, RelativeError(ERROR), coding="auto", force=True)
    sizes = sum(map(file_size, adapters.files)), file_size(bank)
    record["bank"] = bank_conversion_record(made, bank, sizes, time.perf_counter() - begun)
    record["alone"] = sum(_in_bits(adapters[name]) for name in made.bank.names)
    begun, again = time.perf_counter(), folder / TAKEN
    exported = to_lora(made.bank.load(TAKEN))
    save_adapter(exported.adapter, again, force=True)
    seconds = time.perf_counter() - begun
    record["export"] = bank_export_record(
        made.bank, TAKEN, exported, again, file_size(again), seconds
    )
    comparison = compare_adapters(load_adapter(run / TAKEN), load_adapter(again))
    record["compare"] = comparison_record(comparison)
    record["folder"] = str(folder)
    return record


def _in_bits(adapter: Adapter) -> int:
    """The bytes of a file of one adapter, in bits."""
    assert isinstance(adapter, LoRAAdapter)
    done = convert_adapter(adapter, TotalError(ERROR), format="truncated", coding="auto")
    return native_size(done.adapter)


def _story(record: dict[str, Any]) -> RenderableType:
    """The steps in plain words, each with what it printed: at most 24 rows of 80 columns each."""
    folder = record["folder"]
    bank, size = (record["bank"][key] for key in ("destination", "bytes_after"))
    alone = record["alone"]
    return Group(
        *_screen(
            "1. What is in the adapter",
            "A LoRA of a small Llama, trained with PEFT. Every layer has two factors of its own.",
            f"lotr inspect {folder}/adapter",
        ),
        inspection_text(record["inspect"], record["config"]),
        *_screen(
            "2. What each form would cost",
            "As shares of this LoRA, by the error allowed. Its layers hardly use the same "
            "directions: sharing factors between them (lotr) pays only where much may be lost, "
            "and cutting each layer's own rank (truncated) saves more.",
            f"lotr analyze {folder}/adapter --rel-error {ERROR:g} --coding auto",
        ),
        sizes_text(record["analyze"]),
        *_screen(
            "3. A run of checkpoints in one file: a bank",
            "Checkpoints of one run do use the same directions. What all share is stored once, "
            "in as many bits as the error needs.",
            f"lotr bank make {folder}/run --rel-error {ERROR:g} --coding auto -o {bank}",
        ),
        bank_conversion_text(record["bank"], show_all=False),
        Text(f"Each alone in bits takes {byte_size(alone)} in all, {times(alone, size)} as much."),
        *_screen(
            "4. Take one out",
            "It becomes a LoRA folder that PEFT loads, as large as any LoRA of its rank. The "
            "saving lasts as long as adapters stay in the bank.",
            f"lotr bank export {bank} {TAKEN} -o {record['export']['destination']}",
        ),
        bank_export_text(record["export"], uniform=True),
        Text(),
        _command(f"lotr compare {folder}/run/{TAKEN} {folder}/{TAKEN} | head -2"),
        Text(comparison_lines(record["compare"])),
        *_next(folder),
    )


def _screen(title: str, why: str, command: str) -> list[RenderableType]:
    return [
        Text(f"\n{title}", style="bold"),
        Text(why),
        _command(command),
    ]


def _command(line: str) -> Text:
    """A command in one line, which the terminal breaks: so it can be copied."""
    return Text(f"$ {line}\n", style="cyan", overflow="ignore", no_wrap=True)


def _next(folder: str) -> list[RenderableType]:
    width = max(len(what) for what, _ in NEXT) + 2
    return [
        Text("\n5. Now your own", style="bold"),
        *(Text.assemble(what.ljust(width), (command, "cyan")) for what, command in NEXT),
        Text(
            "\nAn error of 0.1 is a tenth of the update's size, which is not a tenth of what it "
            "learnt: try what you take out before you delete what you put in. The files of this "
            f"demo are in {folder}. lotr --help lists every command."
        ),
    ]
