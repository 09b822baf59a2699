"""Messages in the words of the command line: the package itself speaks Python."""

import json
import re
import shlex
from collections.abc import Callable


def _prefixes(said: re.Match[str]) -> str:
    """The options that map prefixes."""
    try:
        pairs = json.loads(said[1]).items()
    except ValueError:  # characters of a path are shown escaped, or are left out
        return said[0]
    return " ".join(f"--map-prefix {shlex.quote(f'{old}={new}')}" for old, new in pairs)


WORDS: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"replace it with force=True": "replace it with --force",
    r"or force=True": "or --force",
    r"\(any_base=True, if": "(--any-base, if",
    r"\(stack_all=True\)": "(--stack-all)",
    r"keep takes a regular": "--keep takes a regular",
    r"keep (.*) is found in no module": r"--keep \1 is found in no module",
    r"group_by takes kind": "--group-by takes kind",
    r"such as rule=RelativeError\(0\.05\)": "such as --rel-error 0.05",
    r"in each group \(RelativeError\)": "in each group (--rel-error)",
    r"limits bound the ranks": "--min-rank and --max-rank bound the ranks",
    r"give ranks or limits": "give --rank or limits",
    r"format (\S+) has no ranks": r"--format \1 has no ranks",
    r"(?:lotr_tn\.adapters\.)?map_prefix\(adapter, (\{[^{}…]*\})\)": _prefixes,
    r"; (any other model can be given by) architecture_from_config .*": (
        r": lotr count --list shows all, and \1 its --config or its shapes"
    ),
    r"MODEL_TYPES names all types": "lotr count --list shows all types",
    r"with extras_from(=|,)": r"with --extras-from\1",
}
"""What a message says in Python, as a pattern, and what it says to who types commands."""


def typed_words(message: str) -> str:
    """A message of the package for who typed a command.

    Examples:
        >>> typed_words("x exists; name another destination, or replace it with force=True")
        'x exists; name another destination, or replace it with --force'
    """
    for python, typed in WORDS.items():
        message = re.sub(python, typed, message)
    return message
