"""Commands by the names that they had before: each answers with what it is called now."""

import shlex

import typer

from lotr_tn.errors import OptionError

MOVED = {"append": "add", "drop": "drop", "rename": "rename", "compact": "compact"}
"""Commands of `lotr bank`, by the names that they had as commands of `lotr`."""


def moved(context: typer.Context) -> None:
    """Show the command of `lotr bank` that does this now."""
    old = str(context.info_name)
    new = shlex.join(["lotr", "bank", MOVED[old], *context.args])
    raise OptionError(f"lotr {old} is a command of lotr bank now: {new}")
