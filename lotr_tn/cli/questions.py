"""How the command line asks for an error or a size: the options that commands share."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Literal, TypeAlias

import typer

from lotr_tn.adapters.restrictions import Limits
from lotr_tn.analysis.forms import FORMS, form_named
from lotr_tn.cli.values import share
from lotr_tn.errors import OptionError
from lotr_tn.linalg.ranks import Budget, Energy, FixedRank, RankLimits, RelativeError, TotalError

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
    bool, typer.Option("--any-base", help="Let adapters differ in what they call their base model.")
]
MapPrefixOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OLD=NEW",
        help="Read module paths that begin with OLD as beginning with NEW; may be repeated.",
    ),
]
CodingOption: TypeAlias = Annotated[
    Literal["auto", "none"],
    typer.Option(
        metavar="HOW", help="auto holds bits where they take less than numbers.", show_default=False
    ),
]
DtypeOption: TypeAlias = Annotated[
    Literal["auto", "bfloat16", "float16", "float32", "float64"],
    typer.Option(
        metavar="TYPE",
        help="Storage: auto (what the error needs), bfloat16, float16, float32 or float64.",
    ),
]


def _known(name: str | None) -> str | None:
    """The name of a form to convert to, or auto."""
    if name not in (None, "auto"):
        try:
            kept = form_named(name).kept
        except OptionError as error:
            raise typer.BadParameter(str(error)) from None
        if kept:
            raise typer.BadParameter(f"{name} is what an adapter is already; choose another form")
    return name


_FORMS = [f"{name} ({form.label})" for name, form in FORMS.items() if not form.kept]
FormatOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        callback=_known,
        help="auto (the smallest), lotr or another form. The forms: " + "; ".join(_FORMS) + ".",
    ),
]
MethodOption: TypeAlias = Annotated[
    Literal["hooi", "st-hosvd", "hosvd"], typer.Option(help="The decomposition.")
]
GroupByOption: TypeAlias = Annotated[
    str, typer.Option(metavar="RULE", help="kind, shape, or a regular expression.")
]
BestGroupByOption: TypeAlias = Annotated[
    str,
    typer.Option(metavar="RULE", help="kind, shape, auto (the smaller) or a regular expression."),
]
MOST_DIGITS = 30
"""Digits of a whole number in an option."""

Question: TypeAlias = RelativeError | TotalError | Budget


def error_rule(rel_error: float | None) -> RelativeError | None:
    """The error that an option asks for; None where it was left out."""
    return None if rel_error is None else RelativeError(rel_error)


@dataclass(frozen=True)
class HowMuch:
    """The error or the size that is asked for: at most one of these options."""

    rel_error: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            parser=share,
            help="Least size within this error of each group, as 5%; a layer may lose more.",
        ),
    ] = None
    total_error: Annotated[
        float | None,
        typer.Option(
            metavar="E", parser=share, help="Least size within this error, of all groups."
        ),
    ] = None
    max_params: Annotated[
        int | None, typer.Option(metavar="N", help="Least error with so many parameters in all.")
    ] = None
    max_bytes: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Least error in a file of this size, as 5MiB."),
    ] = None

    @property
    def given(self) -> int:
        """How many of the options were given."""
        return sum(getattr(self, option.name) is not None for option in fields(self))

    @property
    def names(self) -> str:
        """The options, in a sentence."""
        *names, last = ("--" + option.name.replace("_", "-") for option in fields(self))
        return f"{', '.join(names)} and {last}"

    def question(self) -> Question:
        """What was asked, or a relative error of 0.05 where nothing was."""
        if self.given > 1:
            raise typer.BadParameter(f"give one of {self.names}")
        if self.total_error is not None:
            return TotalError(self.total_error)
        if self.max_params is not None:
            return Budget(self.max_params)
        if self.max_bytes is not None:
            return Budget(bytes=_size(self.max_bytes))
        return RelativeError(0.05 if self.rel_error is None else self.rel_error)


EachLayerOption: TypeAlias = Annotated[
    bool, typer.Option("--each-layer", help="Let --rel-error bound every layer.")
]


def require_error(each_layer: bool, rule: object) -> None:
    """Refuse `--each-layer` where no error of each group is asked for."""
    if each_layer and not isinstance(rule, RelativeError):
        raise typer.BadParameter("--each-layer goes with --rel-error, which it lets bound layers")


@dataclass(frozen=True)
class OrRanks(HowMuch):
    """The same, or ranks: exactly one of these options."""

    rank: Annotated[
        str | None, typer.Option(metavar="R | R1,R2", help="These ranks for every group.")
    ] = None

    def rule(self) -> Question | FixedRank:
        """The one rule that was asked for."""
        if self.given != 1:
            raise typer.BadParameter(f"give exactly one of {self.names}, such as --rel-error 0.05")
        if self.rank is None:
            return self.question()
        parts = self.rank.split(",")
        if len(parts) > 2 or not all(map(is_whole, parts)):
            raise typer.BadParameter(
                f"--rank takes R or R1,R2, such as 32 or 32,48; found {self.rank!r}"
            )
        return FixedRank(*(int(part) for part in parts))


@dataclass(frozen=True)
class OrEnergy(OrRanks):
    """The same, or a share of the squared norm."""

    energy: Annotated[
        float | None,
        typer.Option(
            metavar="E", parser=share, help="Least size that keeps this share of squared norm."
        ),
    ] = None

    def any_rule(self) -> Question | FixedRank | Energy:
        """The one rule that was asked for."""
        return self.rule() if self.energy is None or self.given > 1 else Energy(self.energy)


def asked_prefixes(values: Sequence[str] | None) -> dict[str, str]:
    """New prefixes of paths by old ones."""
    found: dict[str, str] = {}
    for value in values or ():
        old, equals, new = (part.strip() for part in value.partition("="))
        if not equals or old in found:
            raise typer.BadParameter(
                "--map-prefix takes OLD=NEW, each OLD once, such as "
                f"model.language_model.layers=model.layers; found {value!r}"
            )
        found[old] = new
    return found


def asked_limits(least: Sequence[str] | None, most: Sequence[str] | None) -> Limits:
    """The limits on the ranks of all groups, and of those that are named."""
    low, high = _by_group("--min-rank", least), _by_group("--max-rank", most)
    found = {
        name: RankLimits(low.get(name, low.get("", 0)), high.get(name, high.get("")))
        for name in {"": 0, **low, **high}
    }
    return found if len(found) > 1 else found[""]


def _by_group(option: str, values: Sequence[str] | None) -> dict[str, int]:
    """Ranks by group name; "" stands for all groups."""
    found: dict[str, int] = {}
    for value in values or ():
        name, equals, rank = value.rpartition("=")
        if not is_whole(rank):
            raise typer.BadParameter(f"{option} takes R or GROUP=R, such as 8; found {value!r}")
        found[name if equals else ""] = int(rank)
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


def is_whole(text: str) -> bool:
    """Whether a text is a whole number, of no more digits than any size or rank can have."""
    return text.strip().isdecimal() and len(text.strip()) <= MOST_DIGITS


def _size(text: str) -> int | str:
    """Digits alone are bytes."""
    return int(text) if is_whole(text) else text
