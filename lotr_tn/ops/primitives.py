"""What a format beyond the core ones supplies: a hub it goes into, and rules of its own."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, get_args

from lotr_tn._arguments import door
from lotr_tn._arrays import Namespace
from lotr_tn.errors import FormatError, OptionError
from lotr_tn.formats import Core, Format, LoRAStack, Operators, Stack
from lotr_tn.ops.arrays import array_fields, common_namespace
from lotr_tn.ops.moving import astype

CORE: tuple[type[Core], ...] = get_args(Core)  # the core formats

Axis: TypeAlias = Literal["sum", "layers"]
"""How stacks are put together: added, or layer after layer."""

RULED = (
    "apply",
    "canonicalize",
    "inner",
    "layer_distances",
    "layer_norms",
    "layer_singular_values",
    "regauge",
    "round_stack",
    "scale",
    "take_layers",
    "to_dense",
)
"""The operations that a format may have a rule for."""

MEASURES = ("inner", "layer_distances", "layer_norms", "layer_singular_values")
"""Of these the operations that give numbers, which are those of the arrays as they are stored."""

Own = TypeVar("Own", bound=Format)
Function = TypeVar("Function", bound=Callable[..., Any])


class Primitives(Protocol[Own]):
    """What a format beyond the core ones supplies.

    `xp` is the namespace of the stack's arrays. Nothing here may change an array in place.

    Two attributes are for the table of operations alone, and False where left out: `closed`, that
    `join` never leaves a sum to the hub; `moves`, that `lower`, `join` and `of_lora` move entries
    and multiply none. A method `network(stack)`, where there is one, tells the format's equation
    and the shapes of its terms to `plan_of`, such as `("mp,lpq,nq", shapes)`; where
    rows or columns are no one axis, `planned(stack, rows)` is the plan itself.
    """

    @property
    def layered(self) -> str | None:
        """The array field (L, …) in which every update is linear: `scale`, `take_layers`, `merge`.

        None where no one field is; then those three need rules, or are done in the hub.
        """
        ...

    @property
    def hub(self) -> type[Core]:
        """The core format that holds the format exactly."""
        ...

    @property
    def views(self) -> bool:
        """Whether `lower` hands out the stack's own arrays wherever the hub shares one."""
        ...

    def lower(self, stack: Own, *, xp: Namespace) -> Core:
        """The stack in its hub, exact to the rounding of the dtype."""
        ...

    def transpose(self, stack: Own, *, xp: Namespace) -> Own:
        """Every layer transposed, with the same entries."""
        ...

    def join(self, stacks: Sequence[Own], *, axis: Axis, xp: Namespace) -> Own | None:
        """The sum of stacks of one shape, or the layers of all in order; None: in the hub."""
        ...

    def of_lora(self, stack: LoRAStack, *, xp: Namespace) -> Own | None:
        """The same updates in this format, exactly; None where it cannot hold them."""
        ...


_PRIMITIVES: dict[type, Primitives[Any]] = {}
_RULES: dict[tuple[str, type], Callable[..., Any]] = {}


def register_format(kind: type[Own], primitives: Primitives[Own]) -> None:
    """Open the algebra to a format: every operation, by rules of its own or in its hub.

    Args:
        kind: a frozen dataclass that inherits from `Format`.
        primitives: what it supplies. Registering a format again replaces it.

    Raises:
        FormatError: the class is no record of arrays, or `layered` names none of them.
        OptionError: the hub is no core format.

    Examples:
        `docs/your-own-format.md` builds a format in a file of its own.
    """
    name = getattr(kind, "__name__", repr(kind))
    if not (isinstance(kind, type) and issubclass(kind, Format)):
        raise FormatError(f"a format inherits from lotr_tn.formats.Format; {name} does not")
    if not hasattr(kind, "__dataclass_fields__") or not array_fields(kind):
        raise FormatError(f"{name} must be a dataclass with fields annotated Array; found none")
    stored = array_fields(kind)
    if primitives.layered is not None and primitives.layered not in stored:
        raise FormatError(
            f"layered must name one of the arrays of {name}, {', '.join(stored)}; found "
            f"{primitives.layered!r}"
        )
    if primitives.hub not in CORE:
        names = ", ".join(core.__name__ for core in CORE)
        raise OptionError(f"the hub of {name} must be one of {names}; found {primitives.hub!r}")
    _PRIMITIVES[kind] = primitives


def unregister_format(kind: type[Format]) -> None:
    """Close the algebra to a format again, its rules included."""
    _PRIMITIVES.pop(kind, None)
    for key in [key for key in _RULES if key[1] is kind]:
        del _RULES[key]


def registered_formats() -> tuple[type[Format], ...]:
    """The formats beyond the core ones, in the order in which they were registered."""
    return tuple(_PRIMITIVES)


def primitives_of(kind: type[Stack]) -> Primitives[Any]:
    """What a format supplies, or a refusal where it is not registered."""
    if kind not in _PRIMITIVES:
        raise FormatError(
            f"{kind.__name__} has no primitives; lotr_tn.ops.register_format takes them"
        )
    return _PRIMITIVES[kind]


def rule(name: str, kind: type[Format]) -> Callable[[Function], Function]:
    """A decorator: the function is how an operation is done on a format, instead of in its hub.

    It takes the operation's arguments. A rule of two stacks is asked when either has the format,
    and may return `NotImplemented` to leave it to the hub.

    Args:
        name: the operation, one of `RULED`; `norm`, `distance`, `cosine` and `subtract` follow from
            others.
        kind: the format.

    Raises:
        OptionError: no such operation.
    """
    if name not in RULED:
        raise OptionError(f"a rule is for one of {', '.join(RULED)}; found {name!r}")

    def register(function: Function) -> Function:
        _RULES[name, kind] = function
        return function

    return register


def has_rule(name: str, kind: type) -> bool:
    """Whether a format has a rule of its own for an operation."""
    return (name, kind) in _RULES


@door
def lowered(stack: Stack) -> Core:
    """The stack in a core format: itself, or what it is in its hub.

    Cost: that of the format's `lower`, each time. Do it once, before a loop over layers.
    """
    if isinstance(stack, Format):
        return primitives_of(type(stack)).lower(stack, xp=common_namespace(stack))
    return stack


def layered_field(operation: str, stack: Format) -> str | None:
    """The field in which an operation is linear; None where it has a rule, or no field is."""
    kind = type(stack)
    return None if has_rule(operation, kind) else primitives_of(kind).layered


def joined(stacks: Sequence[Stack], axis: Axis) -> Format | None:
    """Stacks of one registered format put together in it; None where that is done in a core one."""
    first = stacks[0]
    if not isinstance(first, Format) or any(type(stack) is not type(first) for stack in stacks):
        return None
    return primitives_of(type(first)).join(stacks, axis=axis, xp=common_namespace(*stacks))


def by_rule_or_hub(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result of an operation on registered formats: by a rule of theirs, or in their hubs."""
    name, asked = function.__name__, None
    for x in arguments:  # each rule once; a small product takes no longer than a look-up
        own = _RULES.get((name, type(x)))
        if own is not None and own is not asked:
            asked = own
            found = own(*arguments, **options)
            if found is not NotImplemented:
                return found
    if name in MEASURES:
        count = sum(isinstance(x, Operators) for x in arguments)  # which stand first
        return function(*measured_in_hub(arguments[:count]), *arguments[count:], **options)
    core = [lowered(x) if isinstance(x, Format) else x for x in arguments]
    return function(*core, **options)


def measured_in_hub(stacks: Sequence[Stack]) -> list[Core]:
    """Stacks in core formats; in float64 where one's own entries would be rounded on the way."""
    made = [isinstance(x, Format) and not primitives_of(type(x)).views for x in stacks]
    return [lowered(astype(x, "float64") if any(made) else x) for x in stacks]
