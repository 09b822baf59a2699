"""Messages in the words of the command line: the package itself speaks Python."""

WORDS = {
    "replace it with force=True": "replace it with --force",
    "or force=True": "or --force",
    "(any_base=True, if": "(--any-base, if",
    "(stack_all=True)": "(--stack-all)",
    "keep takes a regular": "--keep takes a regular",
    "group_by takes kind": "--group-by takes kind",
    "such as rule=RelativeError(0.05)": "such as --rel-error 0.05",
    "limits bound the ranks": "--min-rank and --max-rank bound the ranks",
    "give ranks or limits": "give --rank or limits",
    "with extras_from, or none": "with --extras-from, or none",
}
"""What a message says in Python, and what it says to who types commands."""


def typed_words(message: str) -> str:
    """A message of the package for who typed a command.

    Examples:
        >>> typed_words("x exists; name another destination, or replace it with force=True")
        'x exists; name another destination, or replace it with --force'
    """
    for python, typed in WORDS.items():
        message = message.replace(python, typed)
    return message
