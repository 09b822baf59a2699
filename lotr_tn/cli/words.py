"""Messages in the words of the command line: the package itself speaks Python."""

import re

WORDS = {
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
