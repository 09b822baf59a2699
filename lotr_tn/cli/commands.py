"""How a function becomes a command: records among its parameters are spread out into options."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, TypeAlias, get_args

import typer
from typer.core import TyperCommand
from typer.models import OptionInfo

ADVANCED = "Advanced"  # the panel that `--help-all` shows, and `--help` leaves out
HIDDEN = "hidden"  # of a record, as in `Annotated[Making, HIDDEN]`: options taken, but not told
HELP = "help_all"
TYPED, BRIEF = "lotr_tn.typed", "lotr_tn.brief"


class Command(TyperCommand):
    """A command that tells its essentials first, and remembers what was typed.

    With panels, `--help` leaves the advanced one out, and tells first sentences of the others.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember what was typed."""
        ctx.meta[TYPED] = tuple(args)
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters; those of the essentials while these are told."""
        parameters: list[Any] = super().get_params(ctx)
        if not self._has_panels:
            return parameters
        parameters[-1].rich_help_panel = ADVANCED  # --help
        if not ctx.meta.get(BRIEF):
            return parameters
        return [_briefly(p) for p in parameters if p.name == HELP or p.rich_help_panel != ADVANCED]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What the usage line names: all arguments but those that are there to be refused."""
        shown = [p for p in self.get_params(ctx) if p.required or not getattr(p, "hidden", False)]
        pieces = [piece for parameter in shown for piece in parameter.get_usage_pieces(ctx)]
        return [self.options_metavar or "", *pieces]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Tell the essentials, unless everything is asked for."""
        whole = self.help
        if ctx.meta.setdefault(BRIEF, self._has_panels):
            self.help = (whole or "").split("\n\n")[0]
        try:
            super().format_help(ctx, formatter)
        finally:
            self.help = whole

    @property
    def _has_panels(self) -> bool:
        return any(parameter.name == HELP for parameter in self.params)


def _briefly(parameter: Any) -> Any:
    """A parameter with the first sentence of its help."""
    brief = copy(parameter)
    brief.help = re.sub(r"(?<=\.) .*", "", parameter.help or "")
    return brief


def typed(context: typer.Context) -> tuple[str, ...]:
    """The arguments of a command as they were typed."""
    return context.meta[TYPED]


def told(context: typer.Context, *names: str) -> dict[str, list[str]]:
    """The values of those options that were typed, by the options' names; '' is that of a flag."""
    found = {}
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            value = context.params[name]
            values = value if isinstance(value, list | tuple) else [value]
            found["--" + name.replace("_", "-")] = [
                "" if one is True else str(one) for one in values
            ]
    return found


def register(
    app: typer.Typer,
    command: Callable[..., None],
    *examples: str,
    panels: Mapping[str, str] | None = None,
) -> None:
    """Make a function a command, with examples at the end of its help.

    A parameter whose type is a dataclass stands for one option for each field whose type says how;
    `Annotated[Record, {"field": option}]` adds others. `panels` are names of options, with blanks,
    by the panel of the help that tells them; the others are advanced. Without panels there is one.
    """
    panel_of = {name: panel for panel, names in (panels or {}).items() for name in names.split()}

    def told(option: inspect.Parameter) -> inspect.Parameter:
        info = _option(option.annotation)
        if not panels or info is None:
            return option
        info = copy(info)
        info.rich_help_panel = panel_of.get(option.name, ADVANCED)
        return option.replace(annotation=Annotated[get_args(option.annotation)[0], info])

    @wraps(command)
    def run(**given: Any) -> None:
        given.pop(HELP, None)
        for name, (record, options) in records.items():
            given[name] = record(**{option: given.pop(option) for option in options})
        command(**given)

    records: dict[str, tuple[Any, list[str]]] = {}
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        record, *more = get_args(parameter.annotation) or [parameter.annotation]
        if is_dataclass(record):
            options = list(_spread(record, more[0] if more else {}))
            records[parameter.name] = record, [option.name for option in options]
            parameters += options
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    if panels:
        parameters.append(_keyword(HELP, HelpAll, False))
    parameters = sorted(map(told, parameters), key=lambda parameter: _place(parameter, panels))
    vars(run).update(__signature__=inspect.Signature(parameters))
    example = "\n\n".join(f"Example: {line}" for line in examples)
    app.command(cls=Command, epilog=example)(run)


def _place(parameter: inspect.Parameter, panels: Mapping[str, str] | None) -> int:
    """Where the panel of an option comes: after all arguments, and the advanced one last."""
    info = _option(parameter.annotation)
    order = [*(panels or {}), ADVANCED]
    return order.index(str(info.rich_help_panel)) if panels and info is not None else -1


def _spread(record: Any, more: Any) -> Iterator[inspect.Parameter]:
    """An option for each field of a record whose type says how, or that is told of beside it."""
    for field in fields(record):
        kind = field.type
        if more == HIDDEN:
            info = copy(_option(kind))
            assert info is not None
            info.hidden = True
            kind = Annotated[get_args(kind)[0], info]
        elif field.name in more:
            kind = Annotated[(get_args(kind) or [kind])[0], more[field.name]]
        if _option(kind) is not None:
            assert field.default is not MISSING
            yield _keyword(field.name, kind, field.default)


def _keyword(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _option(kind: Any) -> OptionInfo | None:
    """How an annotated type is an option; None where it is none."""
    return next((info for info in get_args(kind)[1:] if isinstance(info, OptionInfo)), None)


def _tell_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        context.meta[BRIEF] = False
        typer.echo(context.get_help())
        raise typer.Exit


HelpAll: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--help-all", callback=_tell_all, is_eager=True, help="Show the other options too."
    ),
]
