"""The command line: the only code that reads arguments, prints, or sets an exit status."""

from lotr_tn.cli.main import main

__all__ = ["main"]
