"""How ranks are asked for, and the one place where they are chosen."""

import math
import re
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np

from lotr_tn._arguments import is_number
from lotr_tn.errors import RankError


@final
@dataclass(frozen=True)
class FixedRank:
    """Exactly these ranks, or the largest that the shapes allow.

    Attributes:
        r1: rank of the output side, columns of U.
        r2: rank of the input side, columns of V; the same as r1 where left out.
    """

    r1: int
    r2: int | None = None

    def __post_init__(self) -> None:
        for name, rank in (("r1", self.r1), ("r2", self.pair[1])):
            if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or rank < 0:
                raise RankError(f"{name} must be a whole number of at least 0; found {rank!r}")
            object.__setattr__(self, name, None if getattr(self, name) is None else int(rank))

    @property
    def pair(self) -> tuple[int, int]:
        """(r1, r2) with r2 filled in."""
        return self.r1, self.r1 if self.r2 is None else self.r2


@final
@dataclass(frozen=True)
class RelativeError:
    """The fewest parameters whose relative Frobenius error is at most `epsilon`, 0 ≤ ε < 1."""

    epsilon: float

    def __post_init__(self) -> None:
        if not is_number(self.epsilon) or not 0 <= self.epsilon < 1:
            raise RankError(
                "a relative error must be at least 0 and below 1, such as 0.05; "
                f"found {self.epsilon!r}"
            )


@final
@dataclass(frozen=True)
class Energy:
    """The fewest parameters that keep at least this share of the squared norm, 0 < share ≤ 1.

    `Energy(0.99)` asks the same as `RelativeError(0.1)`, since 1 − 0.99 = 0.1².
    """

    share: float

    def __post_init__(self) -> None:
        if not is_number(self.share) or not 0 < self.share <= 1:
            raise RankError(
                f"an energy must be above 0 and at most 1, such as 0.99; found {self.share!r}"
            )

    @property
    def epsilon(self) -> float:
        """The relative error that keeps exactly this share."""
        return math.sqrt(1 - self.share)


@final
@dataclass(frozen=True)
class TotalError:
    """For a whole adapter: the least size whose groups together lose at most this, 0 ≤ ε < 1.

    Where `RelativeError` holds for every group on its own, this one may lose more in one group and
    less in another. For a single stack both ask the same.
    """

    epsilon: float

    def __post_init__(self) -> None:
        RelativeError(self.epsilon)


@final
@dataclass(frozen=True)
class Budget:
    """The least error among results of at most so many stored numbers, or bytes.

    Attributes:
        params: the most numbers stored.
        bytes: instead, the most bytes: a number, or text with a unit such as "5MiB" or "800 kB".

    Examples:
        >>> Budget(bytes="5MiB").limit("float32")
        1310720
    """

    params: int | None = None
    bytes: int | str | None = None

    def __post_init__(self) -> None:
        if (self.params is None) == (self.bytes is None):
            raise RankError(
                "a budget takes params or bytes, one of both, such as Budget(params=100_000) or "
                'Budget(bytes="5MiB")'
            )
        if self.params is not None and not _is_count(self.params):
            raise RankError(
                f"a budget must be a whole number of parameters, at least 0; found {self.params!r}"
            )
        if self.bytes is not None:
            byte_count(self.bytes)

    @property
    def size(self) -> int:
        """The most numbers, or bytes, whichever it counts."""
        return self.count if self.bytes is None else byte_count(self.bytes)

    @property
    def count(self) -> int:
        """The most numbers stored, of a budget that counts in numbers, as `as_rule` returns it."""
        assert self.params is not None
        return self.params

    def limit(self, dtype: str) -> int:
        """The most numbers stored, when each takes what the dtype does."""
        if self.params is not None:
            return self.params
        return self.size // ITEM_SIZES[dtype]


@final
@dataclass(frozen=True)
class RankLimits:
    """The ranks that a conversion may choose.

    Attributes:
        least: the smallest shared rank, and the smallest rank of any layer that has one.
        most: the largest; None for no limit.
    """

    least: int = 0
    most: int | None = None

    def __post_init__(self) -> None:
        if self.least < 0 or (self.most is not None and self.most < max(self.least, 1)):
            raise RankError(
                "the smallest rank must be at least 0 and no larger than the largest; found "
                f"{self.least} and {self.most}"
            )

    def bounds(self, full: int) -> tuple[int, int]:
        """The least and the most of a rank that can be at most `full`."""
        most = full if self.most is None else min(self.most, full)
        return min(self.least, most), most


RankRule: TypeAlias = FixedRank | RelativeError | Energy | Budget
"""How ranks are asked for."""

TIE = 1e-12
"""Share of an energy within which another one counts as equal, so that rounding does not choose."""

ITEM_SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
"""Bytes of one number, by storage dtype."""

_UNITS = {"": 1, "b": 1, "byte": 1, "bytes": 1}
for _power, _letter in enumerate("kmgt", 1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power}


def byte_count(size: int | str) -> int:
    """A number of bytes from a number, or from text with a unit.

    Examples:
        >>> byte_count("5MiB"), byte_count("800 kB"), byte_count(12)
        (5242880, 800000, 12)
    """
    if _is_count(size):
        return int(size)
    found = re.fullmatch(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)\s*", str(size))
    if isinstance(size, bool) or found is None or found[2].casefold() not in _UNITS:
        raise RankError(f"a size must be bytes, or such as 5MiB or 800kB; found {size!r}")
    return int(float(found[1]) * _UNITS[found[2].casefold()])


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def epsilon_of(rule: RelativeError) -> float:
    """The error of a rule, where nothing but an error can be asked for."""
    if not isinstance(rule, RelativeError):
        raise RankError(
            f"rule must be a RelativeError, such as RelativeError(0.05); found {rule!r}"
        )
    return rule.epsilon


def as_rule(
    ranks: "RankRule | TotalError | int | tuple[int, int]", dtype: str | None = None
) -> RankRule:
    """A rank rule from a rule, one rank, or a pair; a budget of bytes needs the storage dtype."""
    if isinstance(ranks, TotalError):
        return RelativeError(ranks.epsilon)
    if isinstance(ranks, Budget) and ranks.params is None:
        if dtype is None:
            raise RankError(f"a budget must count parameters here; found {ranks}")
        return Budget(ranks.limit(dtype))
    if isinstance(ranks, FixedRank | RelativeError | Energy | Budget):
        return ranks
    if isinstance(ranks, tuple) and len(ranks) == 2:
        return FixedRank(*ranks)
    if isinstance(ranks, int | np.integer):
        return FixedRank(int(ranks))
    raise RankError(
        "ranks must be a number, a pair (r1, r2), FixedRank, RelativeError, Energy or Budget; "
        f"found {ranks!r}"
    )


def fixed_pair(ranks: tuple[int, int]) -> FixedRank:
    """The rule of a pair of ranks, where nothing else can be asked for."""
    rule = as_rule(ranks)
    if not isinstance(rule, FixedRank):
        raise RankError(f"ranks must be a pair (r1, r2); found {ranks!r}")
    return rule


def smallest_rank(tails: np.ndarray, budget: float) -> int:
    """The smallest rank whose discarded energy is within the budget; RankError where none is.

    `tails` are (k + 1,) squared energies after keeping 0, 1, …, k terms, never increasing.

    Examples:
        >>> smallest_rank(np.array([14.0, 5.0, 1.0, 0.0]), budget=1.0)
        2
    """
    within = np.flatnonzero(tails <= budget)
    if within.size == 0:
        raise RankError(f"no rank loses as little as {budget:.3g}; the least is {tails[-1]:.3g}")
    return int(within[0])


def cheapest_pair(lost: np.ndarray, budget: float, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Of all (r1, r2) whose lost energy is within the budget, the one with fewest parameters."""
    # both are squared; ties go to what loses least, then (to rounding) to the smaller r1.
    # RankError: no pair meets the budget
    count = pair_parameters(shape, lost.shape)
    within = lost <= budget
    if not within.any():
        raise RankError(f"no ranks lose as little as {budget:.3g}; the least is {lost.min():.3g}")
    candidates = np.flatnonzero(within & (count == count[within].min()))
    best = candidates[least_lost(lost.ravel()[candidates])[0]]
    return divmod(int(best), lost.shape[1])


def best_pair(lost: np.ndarray, params: int, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Of all (r1, r2) that store at most `params` numbers, the one that loses least."""
    # ties, to rounding, go to the fewest parameters, then to the smaller r1
    count = pair_parameters(shape, lost.shape)
    affordable = np.flatnonzero(count <= params)  # (0, 0) always is
    candidates = affordable[least_lost(lost.ravel()[affordable])]
    best = candidates[np.argmin(count.ravel()[candidates])]
    return divmod(int(best), lost.shape[1])


def least_lost(lost: np.ndarray) -> np.ndarray:
    """Where (k,) energies are least, in order; differences of only rounding count as none."""
    return np.flatnonzero(lost <= lost.min() * (1 + TIE))


def pair_parameters(shape: tuple[int, int, int], counts: tuple[int, ...]) -> np.ndarray:
    """The numbers m·r1 + n·r2 + L·r1·r2 that each pair of ranks below both counts stores."""
    layers, m, n = shape
    r1, r2 = np.arange(counts[0])[:, None], np.arange(counts[1])[None, :]
    return m * r1 + n * r2 + layers * r1 * r2


def tail_energies(values: np.ndarray) -> np.ndarray:
    """(k + 1,) squared energy that is lost after keeping 0, 1, …, k of (k,) descending values."""
    return np.append(np.cumsum((values**2)[::-1])[::-1], 0.0)


def rank_for(rule: RankRule, tails: np.ndarray, cost: int) -> int:
    """The rank from 0 to k that a rule asks for where one is to be chosen; of a pair, the first."""
    # `tails` are those of `smallest_rank`; `cost` is how many numbers one more rank stores
    most = len(tails) - 1
    match rule:
        case FixedRank():
            return min(rule.r1, most)
        case Budget():
            return min(rule.count // cost, most) if cost else most
        case RelativeError() | Energy():
            return smallest_rank(tails, max(rule.epsilon**2 * tails[0], tails[-1]))
