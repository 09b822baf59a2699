"""PEFT's patterns for module paths, looked up in time that does not grow with their number."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lotr_tn.catalogue.expressions import UnreadableError, machine_of
from lotr_tn.errors import CheckpointError

_PLAIN = re.compile(r"(\^?)((?:[A-Za-z0-9_-]|\.|\\[.\-_])*)")
_PART = re.compile(r"\\?.")


class PathPatterns:
    r"""Values by pattern, where a pattern is a regular expression for an end of a path.

    A path matches where `re.match(rf"(.*\.)?({pattern})$", path)` does, and the first pattern that
    matches counts. Patterns of letters, digits and dots, which stand for any character as in every
    expression, are looked up by their length; others are tried one by one.
    """

    def __init__(self, patterns: Mapping[str, Any], file: Path) -> None:
        self._all, self._values, self._file = list(patterns), list(patterns.values()), file
        self._others: list[int] = []
        # by ^ and length, by the places of dots: which pattern has these other characters
        self._plain: dict[tuple[bool, int], dict[tuple[int, ...], dict[str, int]]] = {}
        for number, pattern in enumerate(patterns):
            match = _PLAIN.fullmatch(pattern)
            if match is None:
                self._others.append(number)
                continue
            parts = _PART.findall(match[2])
            dots = tuple(at for at, part in enumerate(parts) if part == ".")
            letters = "".join(part[-1] for part in parts)
            tables = self._plain.setdefault((bool(match[1]), len(parts)), {})
            tables.setdefault(dots, {}).setdefault(letters, number)

    def first(self, path: str) -> Any:
        """The value of the first pattern that matches a path; None where none does.

        Raises:
            CheckpointError: a pattern before it is no regular expression that can be matched.
        """
        odd = "\n" in path  # for which no dot stands
        plain = None if odd else min(self._looked_up(path), default=None)
        for number in range(len(self._all)) if odd else self._others:
            if plain is not None and number > plain:
                break
            if self._matches(number, path):
                return self._values[number]
        return None if plain is None else self._values[plain]

    def _looked_up(self, path: str) -> Iterator[int]:
        """The plain patterns that an end of a path matches."""
        begins = [0, *(at + 1 for at, char in enumerate(path) if char == ".")]
        for begin, rooted in ((0, True), *((begin, False) for begin in begins)):
            end = path[begin:]
            for dots, numbers in self._plain.get((rooted, len(end)), {}).items():
                letters = list(end)
                for at in dots:
                    letters[at] = "."
                if (number := numbers.get("".join(letters))) is not None:
                    yield number

    def _matches(self, number: int, path: str) -> bool:
        pattern = self._all[number]
        try:
            return machine_of(rf"(?:(.*\.)?({pattern})$)[\s\S]*").fullmatch(path)
        except UnreadableError as error:
            raise CheckpointError(
                f"{self._file}: pattern {pattern!r} is no regular expression ({error})"
            ) from None
