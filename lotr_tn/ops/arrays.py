"""The arrays of a stack, which follow from the fields of its record."""

import types
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lotr_tn._arrays import Array, Namespace, dtype_name, namespace_of, wants_gradient
from lotr_tn.formats import Certificate, Core, Operators, Stack

Kind = TypeVar("Kind", bound=Stack)  # a stack whose format a function keeps


@dataclass(frozen=True)
class _Fields:
    """What a format stores: found once for each type, as it takes as long as a small product."""

    names: tuple[str, ...]
    plain: bool  # whether each holds one array, and never None or a tuple
    certified: bool


_FIELDS: dict[type, _Fields] = {}


def array_fields(kind: type) -> tuple[str, ...]:
    """The names of the fields of a format that hold arrays."""
    return _fields_of(kind).names


def arrays_of(stack: Stack) -> dict[str, Array]:
    """The arrays of a stack by field name; those of a tuple as `name.0`, `name.1` and so on."""
    found = _FIELDS.get(type(stack)) or _fields_of(type(stack))
    if found.plain:
        return {name: getattr(stack, name) for name in found.names}
    arrays: dict[str, Array] = {}
    for name in found.names:
        value = getattr(stack, name)
        if isinstance(value, tuple):
            arrays |= {f"{name}.{index}": x for index, x in enumerate(value)}
        elif value is not None:
            arrays[name] = value
    return arrays


def first_array(stack: Stack) -> Array:
    """One of a stack's arrays: all of them have one library, dtype and device."""
    found = _FIELDS.get(type(stack)) or _fields_of(type(stack))
    if found.plain:
        return getattr(stack, found.names[0])
    return next(iter(arrays_of(stack).values()))


def common_namespace(*stacks: Stack) -> Namespace:
    """The array library of one or several stacks, which must share it, a dtype and a device."""
    if len(stacks) == 1:
        return namespace_of(**arrays_of(stacks[0]))
    named = {f"{'abcdefgh'[i % 8]}{i // 8 or ''}": stack for i, stack in enumerate(stacks)}
    return namespace_of(
        **{f"{name}.{k}": x for name, stack in named.items() for k, x in arrays_of(stack).items()}
    )


def storage_dtype(stack: Stack) -> str:
    """The name of a stack's dtype."""
    return dtype_name(first_array(stack))


def differentiable(*stacks: Stack) -> bool:
    """Whether torch records what is done with any of these stacks."""
    return any(wants_gradient(*arrays_of(stack).values()) for stack in stacks)


def with_arrays(stack: Kind, **changes: Any) -> Kind:
    """The stack with other arrays or fields, without its certificate, which measured the old."""
    found = _fields_of(type(stack))
    if found.certified:
        changes["certificate"] = None
    for name in {key.partition(".")[0] for key in changes if "." in key}:
        parts = list(getattr(stack, name))
        for index in range(len(parts)):
            parts[index] = changes.pop(f"{name}.{index}", parts[index])
        changes[name] = tuple(parts)
    return replace(stack, **changes)


def _fields_of(kind: type) -> _Fields:
    if (found := _FIELDS.get(kind)) is None:
        hints = get_type_hints(kind)
        own = [field.name for field in fields(kind)]
        names = tuple(name for name in own if _holds_arrays(hints[name]))
        plain = bool(names) and all(_is_array(hints[name]) for name in names)
        certified = any(Certificate in get_args(hints[name]) for name in own)
        found = _FIELDS[kind] = _Fields(names, plain, certified)
    return found


def _is_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, Operators):
        return False  # a stack has a dtype and a shape too
    return hint is Any or (hasattr(hint, "dtype") and hasattr(hint, "shape"))


def _holds_arrays(hint: Any) -> bool:
    """Whether a field is annotated as an array, as one or None, or as a tuple of arrays."""
    if get_origin(hint) in (Union, types.UnionType, tuple):
        return any(_is_array(part) for part in get_args(hint))
    return _is_array(hint)


for _core in get_args(Core):  # what is found for the first time is not found in a compiled graph
    _fields_of(_core)
