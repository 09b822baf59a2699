"""The command that writes what the page shows, ready to be copied."""

import re
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lotr_tn.files.places import name_of, untaken

ENDING = ".lotr.safetensors"
ORDER = ("before", "asked", "limits", "after")
LIMITS = ("--min-rank", "--max-rank")  # of ranks that are chosen, not of ranks that are told
CONVERT = ("--each-layer", "--group-by", "--dtype", "--coding")
ASKED_WITH = ("--coding", "--each-layer")  # what does not go with every question
STACKS = {"adapters": "--stack=adapters", "adapters-layers": "--stack=layers"}  # of a bank
BANK = ("--group-by", "--map-prefix", "--dtype", "--coding")


def command_parts(record: dict[str, Any], told: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The command around its question, which the sliders change.

    Args:
        record: of an analysis.
        told: the values of options that the analysis was given beside its question, by their names;
            a flag has none, which is ''.

    Returns:
        What stands before the question and after it, quoted for a shell; the question of the
        analysis; the limits on the ranks that it may choose; the way of stacking, None where a
        bank has no such way; the options that this command has not; and what stands after
        another question, with which some options do not go.
    """
    several = len(record["sources"]) > 1
    limits, others = ((), BANK) if several else (LIMITS, CONVERT)
    given = [(name, value) for name, values in told.items() for value in values]

    def kept(names: Sequence[str]) -> list[str]:
        return [f"{name}={value}" if value else name for name, value in given if name in names]

    before, target = _bank(record) if several else _conversion(record)
    question = record["question"]
    option = "--" + question["kind"].replace("_", "-")
    return {
        "before": before,
        "asked": f"--format auto {option} {question['value']}",
        "limits": shlex.join(kept(limits)),
        "stack": _stack(record) if several else "",
        "after": shlex.join([*kept(others), *target]),
        "rest": shlex.join([*kept([n for n in others if n not in ASKED_WITH]), *target]),
        "left": [f"{n} {value}".strip() for n, value in given if n not in (*limits, *others)],
    }


def _bank(record: dict[str, Any]) -> tuple[str, list[str]]:
    """What comes before and after the options of the command that makes a bank."""
    target = ["-o", untaken("bank", ENDING)]
    return shlex.join(["lotr", "bank", "make", *map(_argument, record["sources"])]), target


def _conversion(record: dict[str, Any]) -> tuple[str, list[str]]:
    """The same of the command that converts, which takes a LoRA: a LoTR is exported first."""
    (source,), before = record["sources"], ""
    name = name_of(Path(source))
    if record["lotr_sources"]:
        folder = untaken(name, "-peft")
        export = ["lotr", "export", _argument(source), "--ranks", "minimal", "-o", folder]
        before, source, name = f"{shlex.join(export)} && ", folder, folder
    found = untaken(name, ENDING)  # where it is converted to unless told
    target = [] if found == name + ENDING else ["-o", found]
    return before + shlex.join(["lotr", "convert", _argument(source)]), target


def _argument(path: str) -> str:
    """A path that is not taken for an option."""
    return f"./{path}" if path.startswith("-") else path


def command_html(record: dict[str, Any], told: Mapping[str, Sequence[str]]) -> str:
    """The command that writes what is recommended; the script follows the slider with it."""
    parts = command_parts(record, told)
    line = " ".join(filter(None, (parts[part] for part in ORDER)))
    # a line is broken before an option, and never after a hyphen
    words = " ".join(f"<span>{escape(word)}</span>" for word in re.split(" (?=-)", line))
    return f"""<p id="command-says">{_says(record)}</p>
<div class="command"><code id="command">{words}</code>
<button type="button" class="copy" data-copies="command"
aria-describedby="command">Copy</button></div>
<p class="reply" role="status" id="command-copied"></p>{_left_out(parts["left"])}"""


def _says(record: dict[str, Any]) -> str:
    if len(record["sources"]) > 1:
        return "To put these adapters into one file, a bank:"
    return "To write it in bits:" if record.get("in_bits") else "To write what is recommended:"


def _stack(record: dict[str, Any]) -> str | None:
    """How a bank is told to stack as the analysis does."""
    return next((STACKS.get(way["name"]) for way in record["stackings"] if way["chosen"]), None)


def _left_out(left: Sequence[str]) -> str:
    if not left:
        return ""
    options = ", ".join(f"<code>{escape(option)}</code>" for option in left)
    return f'\n<p class="notice">Left out, as this command does not take it: {options}.</p>'
