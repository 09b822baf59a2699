"""Regular expressions that take linear time: Python's syntax and meaning, but for what backtracks.

Left out, and refused: references to groups, lookbehind, possessive and atomic parts, conditions,
and flags other than (?i) and (?s) at the beginning.

Source: Thompson (1968) and Pike for the machine; Cox (2007).
"""

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

from lotr_tn.catalogue.matching import Machine, Step
from lotr_tn.errors import OptionError

LARGEST = 5000
"""Steps of a machine: what an expression with counted repeats may grow to."""

DEEPEST = 50
"""Groups in one another."""

Node: TypeAlias = tuple[Any, ...]
"""A kind and what belongs to it: char, at, seq, alt, repeat, group or look."""

_ESCAPE = re.compile(
    r"\\(?:0[0-7]{0,2}|[0-3][0-7]{2}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^}]*\}|\D)",
    re.DOTALL,
)
_SET = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEAT = re.compile(r"([*+?])|\{([0-9]*)(?:(,)([0-9]*))?\}")
_FLAGS = re.compile(r"\(\?([is]+)\)")
_LEFT_OUT = {
    "(?<=": "lookbehind",
    "(?<!": "lookbehind",
    "(?P=": "a reference to a group",
    "(?(": "a condition",
    "(?>": "an atomic group",
}


class UnreadableError(ValueError):
    """Why a text is no expression, or none of these."""


def regular_expression(text: str, takes: str) -> Machine:
    """The machine of an expression; `takes` says what is taken, for the message.

    Raises:
        OptionError: it is no regular expression, or needs what is left out here.

    Examples:
        >>> layer = regular_expression(r"layers[.](0|1)[.]", "--keep takes a regular expression")
        >>> layer.search("model.layers.1.q_proj"), layer.fullmatch("layers.1.")
        (['layers.1.', '1'], True)
    """
    try:
        return machine_of(text)
    except UnreadableError as error:
        raise OptionError(f"{takes}; {text!r} is none ({error})") from None


@cache
def machine_of(text: str) -> Machine:
    """The machine of an expression; an UnreadableError says why there is none."""
    parser = _Parser(text)
    node = parser.whole()
    return Machine(tuple(_Writer().program(node)), parser.groups)


@dataclass
class _Parser:
    """Reads an expression from left to right."""

    text: str
    at: int = 0
    groups: int = 0
    flags: int = 0
    names: set[str] = field(default_factory=set)

    def whole(self) -> Node:
        """All of the text."""
        if match := _FLAGS.match(self.text):
            self.at = match.end()
            self.flags = sum(
                flag for letter, flag in (("i", re.I), ("s", re.S)) if letter in match[1]
            )
        node = self.alternatives(0)
        if self.at < len(self.text):
            raise UnreadableError("a bracket is closed that was not opened")
        return node

    def alternatives(self, depth: int) -> Node:
        """Up to the bracket that closes it."""
        if depth > DEEPEST:
            raise UnreadableError(f"more than {DEEPEST} groups in one another")
        found = [self.sequence(depth)]
        while self.text[self.at : self.at + 1] == "|":
            self.at += 1
            found.append(self.sequence(depth))
        return found[0] if len(found) == 1 else ("alt", found)

    def sequence(self, depth: int) -> Node:
        """Atoms with their repeats, up to a bar or a bracket."""
        items: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            atom = self.atom(depth)
            if atom is not None:
                items.append(self.repeated(atom))
        return ("seq", items)

    def repeated(self, atom: Node) -> Node:
        """An atom, and how often."""
        match = _REPEAT.match(self.text, self.at)
        if match is None or match[0] == "{}":
            return atom
        if atom[0] == "at":
            raise UnreadableError("nothing to repeat")
        self.at = match.end()
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(match[0], (0, None))
        if match[1] is None:
            if max(len(match[2]), len(match[4] or "")) > len(str(LARGEST)):
                raise UnreadableError(f"a repeat of more than {LARGEST} times")
            least = int(match[2] or 0)
            most = least if match[3] is None else int(match[4]) if match[4] else None
        if most is not None and most < least:
            raise UnreadableError("a repeat of at least more than at most")
        lazy = self.text[self.at : self.at + 1] == "?"
        self.at += lazy
        if self.text[self.at : self.at + 1] == "+" and not lazy:
            raise UnreadableError("possessive repeats are not supported")
        again = _REPEAT.match(self.text, self.at)
        if again is not None and again[0] != "{}":
            raise UnreadableError("a repeat of a repeat")
        return ("repeat", atom, least, most, not lazy)

    def atom(self, depth: int) -> Node | None:
        """One character, set, place or group; None for a comment."""
        begin = self.text[self.at]
        if begin == "(":
            return self.group(depth)
        if begin in "*+?":
            raise UnreadableError("nothing to repeat")
        if begin == "[":
            return self.char(_SET, "a set is not closed")
        if begin == "\\":
            return self.escape()
        self.at += 1
        if begin in "^$":
            return ("at", begin)
        if begin == ".":
            return ("char", _test(".", self.flags))
        return ("char", _test(re.escape(begin), self.flags) if self.flags & re.I else begin)

    def escape(self) -> Node:
        """What a backslash begins."""
        letter = self.text[self.at + 1 : self.at + 2]
        if letter in ("A", "Z", "b", "B"):
            self.at += 2
            return ("at", letter)
        if "1" <= letter <= "9" and not _ESCAPE.match(self.text, self.at):
            raise UnreadableError("references to groups are not supported")
        return self.char(_ESCAPE, "it ends in a backslash")

    def char(self, pattern: re.Pattern[str], otherwise: str) -> Node:
        """A part that stands for one character, in Python's own meaning."""
        match = pattern.match(self.text, self.at)
        if match is None:
            raise UnreadableError(otherwise)
        self.at = match.end()
        return ("char", _test(match[0], self.flags))

    def group(self, depth: int) -> Node | None:
        """What an opened bracket begins."""
        rest = self.text[self.at :]
        for begin, what in _LEFT_OUT.items():
            if rest.startswith(begin):
                raise UnreadableError(f"{what} is not supported")
        if rest.startswith("(?#"):
            end = rest.find(")")
            if end < 0:
                raise UnreadableError("a comment is not closed")
            self.at += end + 1
            return None
        named = re.match(r"\(\?P<([^\W\d]\w*)>", rest)
        for begin in ("(?:", "(?=", "(?!"):
            if rest.startswith(begin):
                self.at += 3
                inner = self.closed(depth)
                return inner if begin == "(?:" else ("look", begin == "(?=", inner)
        if rest.startswith("(?") and named is None:
            raise UnreadableError("an unknown group, or flags that are not at the beginning")
        if named is not None:
            if named[1] in self.names:
                raise UnreadableError(f"two groups are called {named[1]}")
            self.names.add(named[1])
        self.at += named.end() if named else 1
        self.groups += 1
        return ("group", self.groups, self.closed(depth))

    def closed(self, depth: int) -> Node:
        """What is inside of a group, and its end."""
        inner = self.alternatives(depth + 1)
        if self.at >= len(self.text):
            raise UnreadableError("a bracket is not closed")
        self.at += 1
        return inner


@cache
def _test(text: str, flags: int) -> Callable[[str], Any]:
    """Whether a character is what a part of an expression says, asked of Python's engine."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sets that may come to mean something else
            return cache(re.compile(text, flags).fullmatch)
    except (re.error, OverflowError) as error:
        raise UnreadableError(str(error)) from None


@dataclass
class _Writer:
    """Writes the steps of a machine."""

    steps: list[Step] = field(default_factory=list)
    visits: int = 0

    def program(self, node: Node) -> list[Step]:
        """All steps of a node, and the last."""
        self.write(node)
        return [*self.steps, ("match",)]

    def put(self, *step: Any) -> int:
        """Add a step; its place."""
        self.steps.append(step)
        return len(self.steps) - 1

    def write(self, node: Node) -> None:
        """Add the steps of a node."""
        self.visits += 1
        if max(self.visits, len(self.steps)) > LARGEST:
            raise UnreadableError("it is too large, counted repeats written out")
        match node:
            case ("seq", items):
                for item in items:
                    self.write(item)
            case ("alt", branches):
                self.choose(branches)
            case ("group", number, inner):
                self.put("save", 2 * number)
                self.write(inner)
                self.put("save", 2 * number + 1)
            case ("look", wanted, inner):
                steps = _Writer(visits=self.visits)
                self.put("look", wanted, tuple(steps.program(inner)))
                self.visits = steps.visits
            case ("repeat", inner, least, most, greedy):
                for _ in range(least):
                    self.write(inner)
                self.more(inner, None if most is None else most - least, greedy)
            case _:
                self.put(*node)

    def choose(self, branches: list[Node]) -> None:
        """The first of some branches that leads on."""
        ends = []
        for branch in branches[:-1]:
            split = self.put("split", 0, 0)
            self.write(branch)
            ends.append(self.put("jump", 0))
            self.steps[split] = ("split", split + 1, len(self.steps))
        self.write(branches[-1])
        for end in ends:
            self.steps[end] = ("jump", len(self.steps))

    def more(self, inner: Node, times: int | None, greedy: bool) -> None:
        """As often as it goes, or at most some times."""
        splits = []
        for _ in self.rounds(times):
            splits.append(self.put("split", 0, 0))
            self.write(inner)
        if times is None:
            self.put("jump", splits[0])
        for split in splits:
            ways = split + 1, len(self.steps)
            self.steps[split] = ("split", *(ways if greedy else reversed(ways)))

    @staticmethod
    def rounds(times: int | None) -> Iterator[int]:
        """How often the inner part is written."""
        return iter(range(1 if times is None else times))
