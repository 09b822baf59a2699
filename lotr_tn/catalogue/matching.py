"""The machine of a regular expression: all ways through it at once, so that no text takes long."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

Step: TypeAlias = tuple[Any, ...]
"""char TEST | at PLACE | save SLOT | split FIRST SECOND | jump TO | look WANTED STEPS | match"""

REMEMBERED = 20_000
"""Transitions that a machine remembers, at most."""

_Captures: TypeAlias = tuple[int | None, ...]


@final
@dataclass(frozen=True, eq=False)
class Machine:
    """An expression, ready to be matched.

    Cost: the length of the text times that of the expression, at most; for `fullmatch`, which
    remembers what it met, a look-up a character.
    """

    steps: tuple[Step, ...]
    groups: int
    _known: dict[tuple[Any, str], Any] = field(default_factory=dict)

    def search(self, text: str) -> list[str | None] | None:
        """The first match anywhere, as Python's `re` finds it, and its groups; None for none."""
        found = self._run(text, 0, anywhere=True)
        if found is None:
            return None
        places = zip(found[::2], found[1::2], strict=True)
        return [None if a is None or b is None else text[a:b] for a, b in places]

    def fullmatch(self, text: str) -> bool:
        """Whether the whole text matches."""
        if any(step[0] == "look" for step in self.steps):
            return self._run(text, 0, whole=True) is not None
        state: tuple[frozenset[int], str] = (frozenset((0,)), "")
        for at, char in enumerate(text):
            symbol = "\n$" if char == "\n" and at == len(text) - 1 else char
            known = self._known.get((state, symbol))
            if known is None:
                if len(self._known) > REMEMBERED:
                    self._known.clear()
                known = self._known[state, symbol] = self._after(state, symbol)
            state = known
            if not state[0]:
                return False
        return any(self.steps[at][0] == "match" for at in self._reached(*state, ""))

    def _after(self, state: tuple[frozenset[int], str], symbol: str) -> Any:
        char = symbol[0]
        ahead = (
            at + 1
            for at in self._reached(*state, symbol)
            if self.steps[at][0] == "char" and _is(self.steps[at][1], char)
        )
        return frozenset(ahead), char

    def _reached(self, begin: frozenset[int], before: str, after: str) -> Iterator[int]:
        """The steps that can be reached without a character, and that take one or end."""
        seen, stack = set(), list(begin)
        while stack:
            at = stack.pop()
            if at in seen:
                continue
            seen.add(at)
            step = self.steps[at]
            match step[0]:
                case "split":
                    stack += step[1:]
                case "jump":
                    stack.append(step[1])
                case "save":
                    stack.append(at + 1)
                case "at":
                    if _holds(step[1], before, after):
                        stack.append(at + 1)
                case _:
                    yield at

    def _run(
        self, text: str, begin: int, *, anywhere: bool = False, whole: bool = False
    ) -> _Captures | None:
        runner = _Runner(text, {})
        return runner.run(self.steps, begin, 2 * self.groups + 2, anywhere=anywhere, whole=whole)


@dataclass
class _Runner:
    """Threads through the steps, the preferred ones first, with what they have captured."""

    text: str
    looked: dict[tuple[int, int], bool]

    def run(
        self,
        steps: Sequence[Step],
        begin: int,
        slots: int,
        *,
        anywhere: bool = False,
        whole: bool = False,
    ) -> _Captures | None:
        """The captures of the preferred match."""
        text, end = self.text, len(self.text)
        threads: list[tuple[int, _Captures]] = []
        best: _Captures | None = None
        for place in range(begin, end + 1):
            if best is None and (place == begin or anywhere):
                threads.append((0, (place, *[None] * (slots - 1))))
            ready = self._ready(steps, threads, place)
            threads = []
            for at, captures in ready:
                if steps[at][0] == "char":
                    if place < end and _is(steps[at][1], text[place]):
                        threads.append((at + 1, captures))
                elif not whole or place == end:
                    best = (captures[0], place, *captures[2:])
                    break  # threads after this one are less preferred
            if not threads and (best is not None or not anywhere):
                break
        return best

    def _ready(
        self, steps: Sequence[Step], threads: Sequence[tuple[int, _Captures]], place: int
    ) -> list[tuple[int, _Captures]]:
        """The threads that take a character here, or end."""
        before = self.text[place - 1 : place] if place else ""
        last = place == len(self.text) - 1
        after = "\n$" if last and self.text[place] == "\n" else self.text[place : place + 1]
        ready, seen = [], set()
        stack = list(reversed(threads))
        while stack:
            at, captures = stack.pop()
            if at in seen:
                continue
            seen.add(at)
            step = steps[at]
            match step[0]:
                case "split":
                    stack += [(step[2], captures), (step[1], captures)]
                case "jump":
                    stack.append((step[1], captures))
                case "save":
                    slot = step[1]
                    if slot < len(captures):  # those inside of a look are not told
                        captures = (*captures[:slot], place, *captures[slot + 1 :])
                    stack.append((at + 1, captures))
                case "at":
                    if _holds(step[1], before, after):
                        stack.append((at + 1, captures))
                case "look":
                    if self._looks(step[2], place) == step[1]:
                        stack.append((at + 1, captures))
                case _:
                    ready.append((at, captures))
        return ready

    def _looks(self, steps: Sequence[Step], place: int) -> bool:
        key = id(steps), place
        if key not in self.looked:
            self.looked[key] = self.run(steps, place, 2) is not None
        return self.looked[key]


def _is(test: Any, char: str) -> bool:
    return test == char if isinstance(test, str) else test(char) is not None


def _holds(place: str, before: str, after: str) -> bool:
    """Whether a place between two characters is what is asked; an empty one is an end."""
    match place:
        case "^" | "A":
            return before == ""
        case "$":
            return after in ("", "\n$")
        case "Z":
            return after == ""
        case _:
            edge = _is_word(before) != _is_word(after[:1])
            return edge == (place == "b")


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"
