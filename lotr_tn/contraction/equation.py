"""The letters of an equation: read, checked, and sized."""

import math
from collections.abc import Iterable
from itertools import islice
from typing import TypeAlias

from lotr_tn.errors import FormatError

Sizes: TypeAlias = dict[str, int]
"""The size of every letter."""


def parsed(asked: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[list[str], str]:
    """Letters of every operand and of the output, ellipses written out."""
    inputs, arrow, output = asked.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow:
        raise FormatError(f"{asked!r} has no '->'; write out the axes of the result: 'ij,jk->ik'")
    if len(terms) != len(shapes):
        raise FormatError(f"{asked!r} has {len(terms)} operands; found {len(shapes)} shapes")
    names = [f"operand_{number}" for number in range(len(terms))]
    for name, term in zip([*names, "the result"], [*terms, output], strict=True):
        letters = term.replace("...", "", 1)
        for letter in letters:
            if not letter.isalpha() or letters.count(letter) > 1:
                raise FormatError(
                    f"{name} of {asked!r} is {term!r} with {letter!r} {letters.count(letter)} "
                    "times; needed letters, each once, and '...' at most once: for a trace, take "
                    "the diagonal first"
                )
    spans = {}
    for name, term, shape in zip(names, terms, shapes, strict=True):
        letters = len(term.replace("...", ""))
        if len(shape) < letters or (len(shape) > letters and "..." not in term):
            raise FormatError(
                f"{name} of {asked!r} is {term!r}, {letters} letters; found shape {shape}, "
                f"{len(shape)} axes"
            )
        if "..." in term:
            spans[name] = len(shape) - letters
    if bool(spans) != ("..." in output) and (not spans or any(spans.values())):
        where = "its operands" if spans else "its result"
        raise FormatError(f"{asked!r} has '...' in {where} only; needed on both sides of '->'")
    longest = max(spans.values(), default=0)
    unused = (letter for letter in map(chr, range(ord("a"), 0x250)) if letter not in asked)
    fresh = "".join(islice(filter(str.isalpha, unused), longest))
    terms = [
        term.replace("...", fresh[longest - spans.get(name, 0) :])
        for name, term in zip(names, terms, strict=True)
    ]
    output = output.replace("...", fresh)
    for letter in output:
        if not any(letter in term for term in terms):
            raise FormatError(
                f"the result of {asked!r} has the letter {letter!r}; needed letters of an operand"
            )
    return terms, output


def sizes_of(terms: list[str], shapes: tuple[tuple[int, ...], ...]) -> Sizes:
    """The size of every letter; refuses two sizes of one letter, 1 included."""
    sizes: Sizes = {}
    owner = {}
    for number, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        for letter, size in zip(term, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise FormatError(
                    f"the letter {letter!r} has size {sizes[letter]} in operand_{owner[letter]} "
                    f"({terms[owner[letter]]!r}) and size {size} in operand_{number} ({term!r}); "
                    "needed one size"
                )
            owner.setdefault(letter, number)
    return sizes


def those(letters: str, kept: Iterable[str]) -> str:
    """The letters that are among those kept, in their order."""
    return "".join(letter for letter in letters if letter in kept)


def solid(letters: str, sizes: Sizes) -> str:
    """The letters without those of size 1, which lie nowhere in particular in memory."""
    return "".join(letter for letter in letters if sizes[letter] != 1)


def shape_of(letters: str, sizes: Sizes) -> tuple[int, ...]:
    """The shape of an array with these letters."""
    return tuple(sizes[letter] for letter in letters)


def size_of(letters: str, sizes: Sizes) -> int:
    """The entries of an array with these letters."""
    return math.prod(sizes[letter] for letter in letters)
