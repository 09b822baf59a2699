"""The command that writes what the page shows, ready to be copied."""

import re
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

ORDER = ("before", "asked", "limits", "after")
LIMITS = ("--min-rank", "--max-rank")  # of ranks that are chosen, not of ranks that are told
CONVERT = ("--each-layer", "--group-by", "--dtype")
STACKS = {"adapters": "--stack=adapters", "adapters-layers": "--stack=layers"}  # of a bank
BANK = ("--group-by", "--map-prefix", "--dtype")


def command_parts(record: dict[str, Any], told: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The command around its question, which the sliders change.

    Args:
        record: of an analysis.
        told: the values of options that the analysis was given beside its question, by their names;
            a flag has none, which is ''.

    Returns:
        What stands before the question and after it, quoted for a shell; the question of the
        analysis; the limits on the ranks that it may choose; the way of stacking, None where a
        bank has no such way; and the options that this command has not.
    """
    sources = record["sources"]
    several = len(sources) > 1
    limits, others = ((), BANK) if several else (LIMITS, CONVERT)
    given = [(name, value) for name, values in told.items() for value in values]

    def kept(names: Sequence[str]) -> list[str]:
        return [f"{name}={value}" if value else name for name, value in given if name in names]

    target = ["-o", "bank.lotr.safetensors"] if several else []
    words = ["lotr", "bank", "make"] if several else ["lotr", "convert"]
    question = record["question"]
    option = "--" + question["kind"].replace("_", "-")
    return {
        "before": shlex.join([*words, *sources]),
        "asked": f"--format auto {option} {question['value']}",
        "limits": shlex.join(kept(limits)),
        "stack": _stack(record) if several else "",
        "after": shlex.join([*kept(others), *target]),
        "left": [f"{n} {value}".strip() for n, value in given if n not in (*limits, *others)],
    }


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
    return "To write what is recommended:"


def _stack(record: dict[str, Any]) -> str | None:
    """How a bank is told to stack as the analysis does."""
    return next((STACKS.get(way["name"]) for way in record["stackings"] if way["chosen"]), None)


def _left_out(left: Sequence[str]) -> str:
    if not left:
        return ""
    options = ", ".join(f"<code>{escape(option)}</code>" for option in left)
    return f'\n<p class="notice">Left out, as this command does not take it: {options}.</p>'
