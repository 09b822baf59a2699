"""For the API page: the lines `Cost:`, `Accuracy:` and `Source:` of a docstring as paragraphs."""

import re
from typing import Any

import griffe

NOTE = re.compile(r"^(Cost|Accuracy|Source): ", re.MULTILINE)


class DocstringNotes(griffe.Extension):
    """Each note begins a paragraph of its own, and its first word is set in bold."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = NOTE.sub(r"\n**\1:** ", obj.docstring.value)
