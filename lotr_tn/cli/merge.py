"""The command `lotr merge`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from lotr_tn.adapters import Adapter
from lotr_tn.cli.console import REPLACE, Output, missed
from lotr_tn.cli.questions import (
    AnyBaseOption,
    DtypeOption,
    MapPrefixOption,
    asked_prefixes,
    error_rule,
)
from lotr_tn.cli.values import share
from lotr_tn.conversion.merge import merge_adapters
from lotr_tn.conversion.merging_modules import updates_of
from lotr_tn.doors.sources import named_adapters
from lotr_tn.files.dialects.peft import save_peft
from lotr_tn.files.weights import file_size
from lotr_tn.files.writing import refuse_existing
from lotr_tn.report.merging import merging_record, merging_text


@dataclass(frozen=True)
class Mixing:
    """How adapters are merged, and where the result goes."""

    destination: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="The PEFT folder to write.")
    ] = Path("merged")
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W | NAME=W,...",
            help="A weight of any sign for each, in order or by name; who is not named weighs 0."
            "  [default: the mean]",
        ),
    ] = None
    method: Annotated[
        Literal["linear", "ties", "dare", "dare-ties", "slerp"],
        typer.Option(metavar="NAME", help="linear (exact), ties, dare, dare-ties or slerp."),
    ] = "linear"
    density: Annotated[
        float,
        typer.Option(
            metavar="D", parser=share, help="The share of entries that ties and dare keep."
        ),
    ] = 1.0
    seed: Annotated[int, typer.Option(metavar="N", help="Of what dare draws.")] = 0
    rank: Annotated[
        int | None,
        typer.Option(metavar="R", help="Keep at most this rank.  [default: the exact rank]"),
    ] = None
    rel_error: Annotated[
        float | None,
        typer.Option(
            metavar="E", parser=share, help="Keep the smallest rank within this relative error."
        ),
    ] = None
    extras_from: Annotated[
        str | None,
        typer.Option(metavar="NAME | none", help="Whose heads, biases and the like to keep."),
    ] = None
    dtype: DtypeOption = "auto"
    any_base: AnyBaseOption = False
    map_prefix: MapPrefixOption = None


def merge(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Adapters of one base model: LoRA or LoTR."),
    ],
    *,
    how: Mixing,
    out: Annotated[Output, {"force": REPLACE}],
) -> None:
    """Merge adapters into one LoRA: weighted sums and differences, exactly, or by other methods.

    What is merged are the updates, whatever their factors, ranks and formats. An adapter is named
    by its folder or file. The result is a PEFT folder in the form that every loader reads alike.
    """
    refuse_existing(how.destination, force=out.force)
    mixed(named_adapters(sources, prefixes=asked_prefixes(how.map_prefix)), how, out)


def mixed(adapters: Mapping[str, Adapter], how: Mixing, out: Output) -> None:
    """Merge adapters, write the result and tell what it is."""
    asked = None if how.weights is None else asked_weights(how.weights, list(adapters))
    used = {name: adapters[name] for name in adapters if asked is None or asked.get(name)}
    with out.progress(len(updates_of(used))) as step:
        merged = merge_adapters(
            adapters,
            asked,
            method=how.method,
            density=how.density,
            seed=how.seed,
            rank=how.rank,
            rule=error_rule(how.rel_error),
            extras_from=how.extras_from,
            dtype=how.dtype,
            any_base=how.any_base,
            progress=step,
        )
        save_peft(merged.adapter, how.destination, force=out.force)
    record = merging_record(merged, how.destination, file_size(how.destination), out.seconds)
    out.show(record, merging_text)
    if not merged.met:
        missed(
            f"{merged.dtype} cannot hold the error asked for (at most {how.rel_error:g}); the file "
            f"has {merged.relative_error:.2g}: use --dtype auto or a wider dtype"
        )


def asked_weights(text: str, names: Sequence[str]) -> dict[str, float]:
    """Weights by name: W,W in the order of the adapters, or NAME=W,NAME=W for some of them."""
    parts = text.split(",")
    named = any("=" in part for part in parts)
    if not named and len(parts) != len(names):
        raise typer.BadParameter(
            f"--weights takes one weight for each of {len(names)} adapters, or NAME=W for some; "
            f"found {text!r}"
        )
    found: dict[str, float] = {}
    for part, own in zip(parts, parts if named else names, strict=True):
        name, equals, number = part.rpartition("=") if named else (own, "=", part)
        try:
            weight = float(number)
        except ValueError:
            weight = None
        if not equals or weight is None or name in found:
            raise typer.BadParameter(
                "--weights takes numbers, such as 0.7,0.3, or each name once with its number, such "
                f"as a=1,b=-1; found {part!r}"
            )
        found[name] = weight
    return found
