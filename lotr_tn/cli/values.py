"""What is typed for an option, as a value, and what is said where it is none."""

import math
import re

import typer

from lotr_tn.errors import meant

CHOICE = re.compile(r"(?:Value error, )?'(.*)' is not one of (.*?)\.?", re.DOTALL)


def share(text: str | float) -> float:
    """A number or a percentage: 0.1, 1e-3, 10%."""
    number = str(text).strip()
    percent = number.endswith("%")
    try:
        found = float(number.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise typer.BadParameter(f"needed a number such as 0.05, or 5%; found {text!r}")
    return found


def of_choice(message: str) -> str:
    """A message of the parser, with what was meant where a value is none of the choices."""
    found = CHOICE.fullmatch(message)
    if found is None:
        return message
    names = re.findall(r"'([^']*)'", found[2])
    return f"{found[1]!r} is not one of {', '.join(names)}{meant(found[1], names)}"
