"""What the headers of banks and of native files say: never believed, and refused in one sentence.

A digest tells only that a header is the one that was written, not that it makes sense.
"""

import json
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.adapters.adapter import Layout
from lotr_tn.errors import CheckpointError, LotrError
from lotr_tn.files.container import Container
from lotr_tn.files.packing import is_packed, unpacked

T = TypeVar("T")

SCHEMA = 2
"""Of banks and of native files, as they are written; all up to this one are read."""

CODING = 1
"""The way in which numbers are in bits, as it is written and read."""

KINDS = ("linear", "embedding", "conv")

_LONGEST = 200
"""Characters of a header that a message quotes, at most."""

_QUOTED = reprlib.Repr()
_QUOTED.maxstring = _QUOTED.maxother = 60

_MALFORMED = (
    KeyError,
    TypeError,
    ValueError,
    IndexError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What reading a header of another form may raise."""


class SenseError(Exception):
    """What a header says that cannot be; the message is part of a sentence."""


def read_header_of(container: Container, kind: str, meaning: Callable[[Mapping[str, Any]], T]) -> T:
    """What the text of a container means; a CheckpointError where it makes no sense."""
    path = container.path
    try:
        text = unpacked(container.text) if is_packed(container.text) else container.text
        header = json.loads(text, parse_constant=_not_finite, object_pairs_hook=_each_name_once)
        schema = whole_number("the schema", table("the header", header)["schema"])
        if not 1 <= schema <= SCHEMA:
            raise CheckpointError(
                f"{path} is {kind} of schema {schema}; this version reads those up to {SCHEMA}: "
                "upgrade lotr-tn"
            )
        return meaning(header)
    except CheckpointError:
        raise
    except (SenseError, LotrError) as error:
        reason = str(error)
    except KeyError as error:
        reason = f"it lacks {quoted(error.args[0])}"
    except RecursionError:
        reason = "it is nested too deep"
    except _MALFORMED as error:
        reason = f"{type(error).__name__}: {error}"
    reason = " ".join(reason.split())
    if len(reason) > _LONGEST:
        reason = f"{reason[:_LONGEST]}…"
    raise CheckpointError(
        f"{path} has a header that makes no sense ({reason}); restore the file from a copy"
    )


def _not_finite(constant: str) -> NoReturn:
    raise SenseError(f"it holds the number {constant}")


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    require(len(found) == len(pairs), "a name stands twice in one table")
    return found


def require(fits: bool, otherwise: str) -> None:
    """Raise a SenseError unless something is so."""
    if not fits:
        raise SenseError(otherwise)


def quoted(value: Any) -> str:
    """A value as a message shows it: short, whatever it is."""
    return _QUOTED.repr(value)


def whole_number(what: str, value: Any, below: int | None = None) -> int:
    """A number as JSON holds it: whole, at least 0, and below a limit; else a SenseError."""
    if type(value) is not int or value < 0 or (below is not None and value >= below):
        limit = "" if below is None else f" below {below}"
        raise SenseError(f"{what} is {quoted(value)}, not a whole number{limit}")
    return value


def whole_numbers(what: str, values: Any) -> list[int]:
    """Several of them."""
    return [whole_number(what, value) for value in sequence(what, values)]


def finite_number(what: str, value: Any, *, negative: bool = False) -> float:
    """A finite number, at least 0 unless it may be negative; else a SenseError."""
    fits = type(value) in (int, float) and abs(value) <= 1e308 and (negative or value >= 0)
    require(fits, f"{what} is {quoted(value)}")
    return float(value)


def text(what: str, value: Any) -> str:
    """A text; else a SenseError."""
    require(isinstance(value, str), f"{what} is {quoted(value)}, not a text")
    return value


def table(what: str, value: Any) -> Mapping[str, Any]:
    """An object of JSON; else a SenseError."""
    require(isinstance(value, Mapping), f"{what} is {quoted(value)}, not a table of names")
    return value


def sequence(what: str, value: Any) -> Sequence[Any]:
    """A list; else a SenseError."""
    require(isinstance(value, list), f"{what} is {quoted(value)}, not a list")
    return value


def config_text(what: str, config: Any) -> str:
    """The text of an adapter's configuration, an object of JSON; else a SenseError."""
    found = text(what, config)
    if is_packed(found):
        try:
            found = unpacked(found)
        except ValueError as error:
            raise SenseError(f"{what} {error}") from None
    try:
        fits = isinstance(json.loads(found), dict)
    except (ValueError, RecursionError):
        fits = False
    require(fits, f"{what} is no JSON object")
    return found


def dtype_name(what: str, value: Any) -> str:
    """The name of a dtype that factors have; else a SenseError."""
    require(text(what, value) in UNIT_ROUNDOFF, f"{what} is {quoted(value)}")
    return value


def described_layout(layout: Layout) -> dict[str, Any]:
    """How a module lies, as a header describes it."""
    return {"layout": layout.kind, "kernel": list(layout.kernel), "groups": layout.groups}


def told_once(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`modules`, and as `each` what is the same for all of them: mostly all but the name."""
    each, _ = told_apart(entries)
    each.pop("name", None)
    own = [{key: one[key] for key in one if key not in each} for one in entries]
    named = [one["name"] if one.keys() == {"name"} else one for one in own]
    return {"each": each, "modules": named}


def told_apart(
    entries: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is the same in all of some entries, and the rest of each."""
    first, *others = entries
    same = {key: first[key] for key in first if all(one.get(key) == first[key] for one in others)}
    return same, [{key: one[key] for key in one if key not in same} for one in entries]


def modules_of(what: str, described: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The modules as `told_once` tells them; earlier files tell all of each."""
    each = table(f"what is alike in {what}", described.get("each", {}))
    entries = sequence(f"the modules of {what}", described["modules"])
    named = ({"name": one} if isinstance(one, str) else table("a module", one) for one in entries)
    return [{**each, **one} for one in named]


def layout_of(module: Mapping[str, Any]) -> Layout:
    """How a module lies, as a header describes it."""
    kernel = tuple(whole_numbers("a kernel's size", module["kernel"]))
    kind, groups = module["layout"], whole_number("a number of groups", module["groups"])
    require(kind in KINDS, f"a module has the unknown layout {quoted(kind)}")
    return Layout(kind, kernel, groups)


def require_shape(what: str, shape: tuple[int, ...]) -> None:
    """Refuse sizes that no matrix has."""
    require(all(size > 0 for size in shape), f"{what} has the shape {'x'.join(map(str, shape))}")


def require_layout(path: str, shape: tuple[int, int], layout: Layout) -> None:
    """Refuse a layout that a matrix of a shape cannot have."""
    m, n = shape
    kernel, conv = math.prod(layout.kernel), layout.kind == "conv"
    fits = layout.kind in KINDS and layout.groups > 0 and kernel > 0
    fits = fits and (bool(layout.kernel) if conv else layout.groups == 1 and not layout.kernel)
    require(fits, f"{path} has an unknown layout")
    require(
        m % layout.groups == 0 and n % kernel == 0,
        f"{path} of {m}x{n} has a kernel of {kernel} and {layout.groups} groups",
    )


def require_known_coding(version: Any, what: str) -> None:
    """Refuse bits of a way that came later."""
    if version != CODING:
        raise CheckpointError(
            f"{what} is coded in a way that this version does not know; upgrade lotr-tn"
        )
