"""How the command line asks for an error or a size: the options that commands share."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, TypeAlias

import typer

from lotr_tn.linalg.ranks import Budget, Energy, FixedRank, RankLimits, RelativeError, TotalError

__all__ = [
    "AnyBaseOption",
    "DtypeOption",
    "FormatOption",
    "MaxBytesOption",
    "MaxParamsOption",
    "MaxRankOption",
    "MinRankOption",
    "RelErrorOption",
    "TotalErrorOption",
    "asked_limits",
    "asked_rule",
    "asked_text",
]

RelErrorOption: TypeAlias = Annotated[
    float | None,
    typer.Option(metavar="E", help="The least size within this relative error, in each group."),
]
TotalErrorOption: TypeAlias = Annotated[
    float | None,
    typer.Option(metavar="E", help="The least size within this error over all groups together."),
]
MaxParamsOption: TypeAlias = Annotated[
    int | None,
    typer.Option(metavar="N", help="The least error with at most so many parameters in all."),
]
MaxBytesOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="The least error with a file of at most this size, such as 5MiB."
    ),
]
MinRankOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="R | GROUP=R", help="The smallest rank to choose, in all groups or in one."
    ),
]
MaxRankOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="R | GROUP=R", help="The largest rank to choose, in all groups or in one."
    ),
]
AnyBaseOption: TypeAlias = Annotated[
    bool,
    typer.Option("--any-base", help="Let adapters differ in what they call their base model."),
]
DtypeOption: TypeAlias = Annotated[
    Literal["auto", "bfloat16", "float16", "float32", "float64"],
    typer.Option(
        metavar="TYPE",
        help="Storage: auto (what the error needs), bfloat16, float16, float32 or float64.",
    ),
]

FormatOption: TypeAlias = Annotated[
    Literal["lotr", "auto", "truncated", "shared-in", "shared-out", "lotr-low-rank"] | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="lotr, auto (the smallest for each group), truncated, shared-in, shared-out or "
        "lotr-low-rank.  [default: lotr; auto in a bank]",
    ),
]
Question: TypeAlias = RelativeError | TotalError | Budget


def asked_rule(
    *,
    rel_error: float | None,
    total_error: float | None,
    max_params: int | None,
    max_bytes: str | None,
    otherwise: float = 0.05,
) -> Question:
    """The one question that was asked, or a relative error where none was."""
    given = [x for x in (rel_error, total_error, max_params, max_bytes) if x is not None]
    if len(given) > 1:
        raise typer.BadParameter(
            "give one of --rel-error, --total-error, --max-params and --max-bytes"
        )
    if total_error is not None:
        return TotalError(total_error)
    if max_params is not None:
        return Budget(max_params)
    if max_bytes is not None:
        return Budget(bytes=_size(max_bytes))
    return RelativeError(otherwise if rel_error is None else rel_error)


def asked_limits(
    least: Sequence[str] | None, most: Sequence[str] | None, groups: Iterable[str]
) -> RankLimits | dict[str, RankLimits]:
    """The limits on the ranks of all groups, or of each by its name."""
    low, high = _by_group("--min-rank", least), _by_group("--max-rank", most)
    if not {*low, *high} - {None}:
        return RankLimits(low.get(None, 0), high.get(None))
    named = [name for name in {**low, **high} if name is not None]
    return {
        name: RankLimits(low.get(name, low.get(None, 0)), high.get(name, high.get(None)))
        for name in dict.fromkeys([*groups, *named])
    }


def _by_group(option: str, values: Sequence[str] | None) -> dict[str | None, int]:
    """Ranks by group name; None stands for all groups."""
    found: dict[str | None, int] = {}
    for value in values or ():
        name, equals, rank = value.rpartition("=")
        if not rank.isdecimal():
            raise typer.BadParameter(f"{option} takes R or GROUP=R, such as 8; found {value!r}")
        found[name if equals else None] = int(rank)
    return found


def asked_text(rule: Question | Energy | FixedRank) -> str:
    """A rule in words, for the line that says what was asked."""
    match rule:
        case RelativeError():
            return f"at most {rule.epsilon:g}" if rule.epsilon else "exact, but for rounding"
        case TotalError():
            return f"at most {rule.epsilon:g} over all groups"
        case Energy():
            return f"at least {rule.share:g} of the energy"
        case Budget():
            unit = "parameters" if rule.params is not None else "bytes"
            return f"at most {rule.size:,} {unit}"
        case FixedRank():
            return "ranks " + ",".join(str(r) for r in (rule.r1, rule.r2) if r is not None)


def _size(text: str) -> int | str:
    """Digits alone are bytes."""
    return int(text) if text.strip().isdecimal() else text
