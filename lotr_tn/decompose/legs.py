"""Sizes split into the legs of tensor trains."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from lotr_tn._arguments import door
from lotr_tn.errors import OptionError, not_among

Legs: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Legs of the rows and legs of the columns, each the slowest digit first."""

LEG = 8
"""About how large a leg is, where no shape is asked for."""

# trains of layers whose sides differ are published with the inputs first; these are their mirror
TT_LORA: Mapping[tuple[int, int], Legs] = {
    (768, 768): ((64, 4, 3), (3, 4, 64)),
    (2048, 2048): ((16, 8, 4, 4), (4, 4, 8, 16)),
    (512, 2048): ((16, 16, 2), (2, 4, 16, 16)),
    (4096, 4096): ((16, 4, 4, 4, 2, 2), (2, 2, 4, 4, 4, 16)),
    (1024, 4096): ((16, 4, 4, 2, 2), (2, 2, 4, 4, 4, 16)),
}
SCALABLE_TT_LORA: Mapping[tuple[int, int], Legs] = {
    (768, 768): ((12, 8, 8), (2, 2, 2, 8, 12)),
    (4096, 4096): ((16, 8, 8, 4), (4, 8, 8, 16)),
}
MPOP: Mapping[tuple[int, int], Legs] = {
    (768, 768): ((3, 4, 4, 4, 4), (4, 4, 4, 4, 3)),
    (768, 3072): ((3, 4, 4, 4, 4), (4, 4, 8, 6, 4)),
    (30000, 128): ((5, 10, 10, 10, 6), (2, 2, 4, 4, 2)),
}
MPOBERT: Mapping[tuple[int, int], Legs] = {
    (m, n): (legs[m], legs[n])
    for legs in [
        {768: (4, 4, 4, 4, 3), 3072: (4, 4, 8, 6, 4), 1024: (4, 4, 4, 4, 4), 4096: (4, 4, 8, 8, 4)}
    ]
    for m in legs
    for n in legs
}

PUBLISHED: Mapping[str, Mapping[tuple[int, int], Legs]] = {
    "tt-lora": TT_LORA,
    "scalable-tt-lora": SCALABLE_TT_LORA,
    "mpop": MPOP,
    "mpobert": MPOBERT,
}
"""By the names of papers and repositories: the legs that they give matrices of some sizes (m, n).

Source: arXiv 2408.01008 and the repositories of TTLoRAMoE and ScalableTTLoRA; arXiv 2106.02205,
2303.16753.
"""

Shape: TypeAlias = str | Sequence[Sequence[int]]
"""`balanced`, a name of `PUBLISHED`, or legs of the rows and legs of the columns."""


@door
def balanced(size: int, count: int | None = None) -> tuple[int, ...]:
    """A size as legs that are as equal as its prime factors allow, the largest first.

    Args:
        size: m or n.
        count: how many legs; so many that each is about 8 where left out. A size of fewer prime
            factors has as many legs as these.

    Raises:
        OptionError: the size or the count is below 1.

    Examples:
        >>> balanced(768), balanced(4096), balanced(4096, 3), balanced(7)
        ((12, 8, 8), (8, 8, 8, 8), (16, 16, 16), (7,))
    """
    if size < 1 or (count is not None and count < 1):
        raise OptionError(f"a size and a count of legs must be at least 1; found {size}, {count}")
    wanted = max(1, round(math.log(size, LEG))) if count is None else count
    primes = _primes(size)
    legs = [1] * max(1, min(wanted, len(primes)))
    for prime in reversed(primes):  # the largest first, each to the smallest leg so far
        legs[legs.index(min(legs))] *= prime
    return tuple(sorted(legs, reverse=True))


def _primes(size: int) -> list[int]:
    found, divisor = [], 2
    while size > 1:
        while divisor * divisor <= size and size % divisor:
            divisor += 1
        prime = divisor if size % divisor == 0 else size
        found.append(prime)
        size //= prime
    return found


def legs_of(shape: Shape, m: int, n: int) -> Legs:
    """The legs of a matrix (m, n) that a shape asks for.

    Raises:
        OptionError: the legs do not multiply to the size, or no such shape is known.
    """
    if isinstance(shape, str):
        if shape == "balanced":
            return balanced(m), balanced(n)
        if shape not in PUBLISHED:
            raise OptionError(not_among("shape", shape, ("balanced", *PUBLISHED)))
        if (m, n) not in PUBLISHED[shape]:
            known = ", ".join(f"{a} x {b}" for a, b in PUBLISHED[shape])
            raise OptionError(
                f"{shape} has legs for matrices of {known}; found {m} x {n}: give legs of rows and "
                "of columns, or take balanced"
            )
        return PUBLISHED[shape][m, n]
    if len(shape) != 2 or any(isinstance(side, int) for side in shape):
        raise OptionError(
            f"a shape is legs of rows and legs of columns, such as ((8, 8), (4, 16)); found {shape}"
        )
    out, into = (tuple(int(leg) for leg in side) for side in shape)
    for legs, size, side in ((out, m, "rows"), (into, n, "columns")):
        if math.prod(legs) != size or min(legs, default=1) < 1:
            raise OptionError(
                f"the legs of the {side} must multiply to {size}; found {legs}, {math.prod(legs)}"
            )
    return out or (1,), into or (1,)


def paired(shape: Shape, m: int, n: int) -> Legs:
    """The same, as many legs of the rows as of the columns, one of each a core.

    Raises:
        OptionError: as for `legs_of`, or there are more of the one than of the other.
    """
    if isinstance(shape, str) and shape == "balanced":
        count = max(len(balanced(m)), len(balanced(n)))
        sides = (balanced(size, count) for size in (m, n))
        out, into = (side + (1,) * (count - len(side)) for side in sides)
        return out, into
    out, into = legs_of(shape, m, n)
    if len(out) != len(into):
        raise OptionError(
            f"an MPO pairs legs of rows and of columns; found {len(out)} and {len(into)}: fill up "
            "with legs of 1"
        )
    return out, into
