"""What public functions take: one check of types, which says what was given and what is needed.

`door` reads the annotations of a function once, when it is defined. What is annotated `Any` (arrays
above all) is left to the function.
"""

import functools
import inspect
import numbers
import operator
import os
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import numpy as np

from lotr_tn.errors import ArgumentError

Function = TypeVar("Function", bound=Callable[..., Any])
Fits = Callable[[Any], bool]

STACK = "take lt.group_modules({x})[name].stack"
OPENED = "lt.group_modules(lt.load_adapter(path))[name].stack"
OPEN = ("device", "options")
"""Parameters that are no arrays, though anything may be given for them."""

HINTS = {
    ("a stack", "adapter"): STACK.format(x="adapter"),
    ("a stack", "result"): STACK.format(x="result.adapter"),
    ("a stack", "group"): "take its .stack",
    ("a stack", "array"): "lt.Dense(array) makes a stack of an array (L, m, n)",
    ("a stack", "path"): f"take {OPENED}",
    ("a stack", "list"): "take one of them, or lt.concat_layers of all",
    ("a stack", "bank"): "take bank.stack(module)[0]",
    ("a LoTRAdapter", "adapter"): "it is a LoRA already",
    ("an adapter", "path"): "take lt.load_adapter(path)",
    ("an adapter", "result"): "take its .adapter",
    ("an adapter", "bank"): "take bank[name]",
    ("an adapter", "list"): "take one of them",
    ("a list of stacks", "stack"): "put it in a list",
    ("a list of adapters", "adapter"): "put it in a list",
    ("a list of adapters", "path"): "take [lt.load_adapter(path), ...]",
    ("adapters by name", "adapter"): 'give it a name: {"name": adapter}',
    ("adapters by name", "list"): 'give each a name: {"name": adapter}',
    ("adapters by name", "path"): 'take {"name": lt.load_adapter(path)}',
    ("a path", "adapter"): "it is loaded already",
    ("a list of names", "path"): "put it in a list",
}
"""What to do, by what is needed and what kind of thing was given."""

_BROADER = {"a LoRAAdapter": "an adapter", "a LoTRAdapter": "an adapter", "a LoRAStack": "a stack"}


def door(function: Function) -> Function:
    """A public function that refuses arguments of other types than its annotations say.

    Numbers may be of any library's type, paths may be texts, and a list may be any collection.

    Raises:
        ArgumentError: by the function, where an argument has another type, with what to do.

    Cost: about a microsecond a call.
    """
    parameters = inspect.signature(function).parameters.values()
    checks = {p.name: _wanted(p) for p in parameters}
    places = tuple((p.name, checks[p.name]) for p in parameters if p.kind is not p.KEYWORD_ONLY)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for (name, wanted), value in zip(places, args, strict=False):
            if wanted is not None and not wanted.fits(value):
                raise wanted.refusal(function.__name__, name, value)
        for name, value in kwargs.items():
            wanted = checks.get(name)
            if wanted is not None and not wanted.fits(value):
                raise wanted.refusal(function.__name__, name, value)
        return function(*args, **kwargs)

    return cast("Function", checked)


@dataclass(frozen=True)
class Wanted:
    """What one parameter takes: in words, how to see whether a value fits, and one of a list."""

    words: str
    fits: Fits
    each: Fits | None = None

    def refusal(self, function: str, parameter: str, value: Any) -> ArgumentError:
        """One sentence: what the function takes, what this is, what to do."""
        plain = ("stack", "stacks", "adapter", "adapters", "path", "a", "b", "model")
        where = "" if parameter in plain else f" as {parameter}"
        name = "round" if function == "round_stack" else function
        sort = _sort(value)
        hint = HINTS.get((self.words, sort)) or HINTS.get((_BROADER.get(self.words, ""), sort))
        inside = self._inside(value)
        todo = f": {hint}" if hint and not inside else ""
        return ArgumentError(
            f"{name} takes {self.words}{where}; this is {_given(value)}{inside}{todo}"
        )

    def _inside(self, value: Any) -> str:
        """Which of a list's members is the wrong one, where it is the list of another thing."""
        if self.each is None or not isinstance(value, list | tuple | dict):
            return ""
        members = value.values() if isinstance(value, dict) else value
        wrong = [member for member in members if not self.each(member)]
        return f" that holds {_given(wrong[0])}" if wrong else ""


def _given(value: Any) -> str:
    """A value in a few words: its type, and of a short one what it is."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)[:40]
    name = type(value).__name__
    said = f"{_article(name)} {name}"
    return f"{said}, {str(value)!r:.40}" if isinstance(value, str) else said


def _article(name: str) -> str:
    """LoRA is said as a word, NumPy's nd letter by letter."""
    return "an" if name[0] in "AEIOUaeio" or name.startswith("nd") else "a"


def _sort(value: Any) -> str:
    """What kind of thing a value is, by its class: no room is loaded for that."""
    name = type(value).__name__
    if isinstance(value, str | os.PathLike):
        return "path"
    if type(value).__module__.startswith("lotr_tn"):
        if name in _OURS:
            return _OURS[name]
        return "stack" if hasattr(value, "__array_ufunc__") else "other"
    if hasattr(value, "shape"):
        return "array"
    return "list" if isinstance(value, Collection) else "other"


_OURS = {
    "Bank": "bank",
    "BankConversion": "bank",
    "Conversion": "result",
    "Export": "result",
    "LoRAAdapter": "adapter",
    "LoRAGroup": "group",
    "LoTRAdapter": "adapter",
    "LoTRGroup": "group",
    "Merged": "result",
}


def _words(annotation: Any) -> str:
    """What an annotation asks for, as a person would say it."""
    if isinstance(annotation, TypeVar):
        return _words(annotation.__bound__)
    if annotation in _SAID:
        return _SAID[annotation]
    origin, members = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _either(members)
    if origin is Literal:
        return f"one of {', '.join(map(repr, members))}"
    if origin is tuple and members[-1] is not Ellipsis:
        return f"{len(members)} {_plural(members[0])}"
    if origin in (tuple, Sequence, Iterable, Collection):
        return f"a list of {_plural(members[0])}"
    if origin is Mapping:
        return "a mapping" if _is_open(members[1]) else f"{_plural(members[1])} by name"
    if origin is type:
        return "a class"
    if origin is Callable:
        return "a function"
    return f"{_article(annotation.__name__)} {annotation.__name__}"


def _either(members: tuple[Any, ...]) -> str:
    """Unions that have one word; else every member."""
    names = {getattr(member, "__name__", "") for member in members}
    for of_all, word in _TOGETHER.items():
        if of_all in names:
            return word
    said = [_words(member) for member in members if member is not type(None)]
    return " or ".join(dict.fromkeys(said))


def _plural(member: Any) -> str:
    words = _words(member).removeprefix("a ").removeprefix("an ")
    return {"path": "paths", "text": "names"}.get(words, f"{words}s")


_TOGETHER = {
    "Format": "a stack",
    "LoTRAdapter": "an adapter",
    "Path": "a path",
    "PathLike": "a path",
}
"""What a union is called that has this member."""

_SAID: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    Any: "an array",
}


def _wanted(parameter: inspect.Parameter) -> Wanted | None:
    """The check of a parameter; None where anything may be given."""
    annotation = parameter.annotation
    if annotation is Any and parameter.name in OPEN:
        return None
    if annotation in (Sequence[float], Iterable[int]):  # the function says which it needs
        return None
    if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
        return None
    found = _fits(annotation)
    return None if found is None else Wanted(_words(annotation), found, _member(annotation))


def _member(annotation: Any) -> Fits | None:
    """The check of one thing of a list, or of what stands by name."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        found = [_member(each) for each in members]
        return next((each for each in found if each is not None), None)
    if origin in (tuple, Sequence, Iterable, Collection):
        return _fits(members[0])
    return _fits(members[1]) if origin is Mapping and not _is_open(members[1]) else None


def _fits(annotation: Any) -> Fits | None:
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    if _is_rule(annotation):
        return None
    if annotation is Any:
        return _is_array
    if annotation is inspect.Parameter.empty:
        return None
    if isinstance(annotation, TypeVar):
        return None if annotation.__bound__ is None else _fits(annotation.__bound__)
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _any_of(get_args(annotation))
    if origin is Literal:
        return lambda value: isinstance(value, str)
    if origin in (tuple, Sequence, Iterable, Collection):
        members = get_args(annotation)
        exact = origin is tuple and Ellipsis not in members
        return _collection(members, len(members) if exact else None)
    if origin is Mapping:
        member = get_args(annotation)[1]
        return _mapping(None if _is_open(member) else _fits(member))
    if origin is type:
        return lambda value: isinstance(value, type)
    if origin is Callable:
        return callable
    if getattr(annotation, "_is_protocol", False):
        return None
    kind = origin or annotation  # os.PathLike[str] is asked about as os.PathLike
    return (lambda value: isinstance(value, kind)) if isinstance(kind, type) else None


def _is_rule(annotation: Any) -> bool:
    """Whether it asks for ranks or sizes: the function refuses all else, in words of its own."""
    names = {getattr(m, "__name__", "") for m in (annotation, *get_args(annotation))}
    sizes = (int | tuple[int, int], tuple[int, int], tuple[int, int, int])
    return annotation in sizes or bool(names & {"FixedRank", "RelativeError"})


def _is_class(member: Any) -> bool:
    """Whether `isinstance` alone says what fits."""
    protocol = getattr(member, "_is_protocol", False)
    return isinstance(member, type) and not protocol and member not in (Any, *_SIMPLE)


def _any_of(members: tuple[Any, ...]) -> Fits | None:
    """Classes are asked about together: most arguments are stacks."""
    plain = tuple(m for m in members if _is_class(m))
    others = [_fits(member) for member in members if member not in plain]
    checks = [fits for fits in others if fits is not None]
    if len(checks) < len(others):
        return None
    if not checks:
        return lambda value: isinstance(value, plain)
    return lambda value: isinstance(value, plain) or any(fits(value) for fits in checks)


def _collection(members: tuple[Any, ...], length: int | None) -> Fits:
    """Lists, arrays, ranges, generators; a text is no list."""
    kinds = {member for member in members if member is not Ellipsis}
    each = _fits(next(iter(kinds))) if len(kinds) == 1 else None

    def fits(value: Any) -> bool:
        if isinstance(value, str | bytes | Mapping | type) or not hasattr(value, "__iter__"):
            return False
        if hasattr(value, "ndim") and each is not None:  # an array is a list of numbers at most
            return value.ndim == 1 and each in (_is_whole, is_number)
        if length is not None and isinstance(value, list | tuple) and len(value) != length:
            return False
        if each is None or not isinstance(value, list | tuple):
            return not hasattr(value, "config_text") and _sort(value) != "stack"
        return all(map(each, value))

    return fits


def _is_open(member: Any) -> bool:
    """Whether a mapping's values are left to the function: options, and lists by name."""
    return member is Any or get_origin(member) in (tuple, Sequence, Mapping)


def _mapping(each: Fits | None) -> Fits:
    def fits(value: Any) -> bool:
        if not isinstance(value, Mapping):
            return False
        return each is None or type(value) is not dict or all(map(each, value.values()))

    return fits


def _is_array(value: Any) -> bool:
    """Arrays of any library, and what stands for one."""
    return not isinstance(value, type) and hasattr(value, "shape") and _sort(value) == "array"


def _is_whole(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def is_number(value: Any) -> bool:
    """A real number, also of NumPy's or in an array of no axes."""
    if isinstance(value, numbers.Real):
        return not isinstance(value, bool)
    return getattr(value, "ndim", None) == 0 and hasattr(value, "__float__")


_SIMPLE: dict[Any, Fits] = {
    type(None): lambda value: value is None,
    None: lambda value: value is None,
    int: _is_whole,
    float: is_number,
    bool: lambda value: isinstance(value, bool | np.bool_),
}
