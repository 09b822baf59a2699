"""The command `lotr count`."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from lotr_tn.catalogue.architecture import (
    Architecture,
    architecture,
    architecture_from_config,
    architecture_from_shapes,
    known_architectures,
)
from lotr_tn.catalogue.counts import count_table
from lotr_tn.catalogue.families import MODEL_TYPES
from lotr_tn.cli.console import Output
from lotr_tn.cli.questions import GroupByOption, is_whole
from lotr_tn.decompose import PUBLISHED
from lotr_tn.errors import CheckpointError
from lotr_tn.report.counts import counts_record, counts_text, models_record, models_text


def count(
    shapes: Annotated[
        list[str] | None,
        typer.Argument(help="COUNTxOUTxIN or NAME=COUNTxOUTxIN, such as q_proj=32x4096x4096."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="A well-known model; --list shows them.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A config.json of transformers, or its folder.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Names after commas, a regular expression for whole paths, or all-linear, as in "
            "PEFT.  [default: attention queries and values; all SHAPES]",
        ),
    ] = None,
    rank: Annotated[
        str, typer.Option(metavar="RANKS", help="Ranks, with commas.")
    ] = "1,2,4,8,16,32",
    group_by: GroupByOption = "kind",
    heads: Annotated[
        int | None,
        typer.Option(metavar="H", help="Count CP too, as LoRTA: outputs in H heads, kinds apart."),
    ] = None,
    legs: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"Count tensor trains too: balanced, {', '.join(PUBLISHED)}."
        ),
    ] = None,
    list_models: Annotated[
        bool, typer.Option("--list", help="Show the well-known models.")
    ] = False,
    *,
    out: Output,
) -> None:
    """Count the parameters of LoRA and LoTR by rank, for a model or for bare shapes.

    Nothing is loaded: a model's name, its config or the shapes of its modules are enough.
    """
    given = [source for source in (shapes, model, config, list_models) if source]
    if len(given) != 1:
        raise typer.BadParameter(
            "give exactly one of SHAPES, --model, --config and --list, such as --model roberta-base"
        )
    if list_models:
        known = (architecture(name) for name in known_architectures())
        models = models_record(known, MODEL_TYPES)
        out.show(models, models_text)
        return
    ranks = _ranks(rank)
    found = _architecture(shapes, model, config)
    record = counts_record(count_table(found, _targets(target), ranks, group_by, heads, legs))
    out.show(record, lambda record: counts_text(record, len(found.modules)))


def _architecture(shapes: list[str] | None, model: str | None, config: Path | None) -> Architecture:
    if shapes:
        return architecture_from_shapes(shapes)
    if model:
        return architecture(model)
    assert config is not None
    return _from_file(config / "config.json" if config.is_dir() else config)


def _from_file(path: Path) -> Architecture:
    try:
        config = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; give the config.json of a model, or its folder"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as text ({error})") from None
    except (ValueError, RecursionError) as error:  # numbers of too many digits, too, and nesting
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is not valid JSON ({reason}); copy it again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, not a JSON object")
    return architecture_from_config(config, str(path))


def _ranks(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(map(is_whole, parts)):
        raise typer.BadParameter(f"--rank takes ranks with commas, such as 1,2,4; found {text!r}")
    return [int(part) for part in parts]


def _targets(text: str | None) -> str | list[str] | None:
    """Names, unless there is a character that no name has."""
    if text is None or text == "all-linear" or not re.fullmatch(r"[\w.,\s-]+", text):
        return text
    return [name.strip() for name in text.split(",") if name.strip()]
