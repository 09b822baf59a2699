"""Stacks that are finite, and of a size whose squares float64 holds.

All arrays of a core format are factors of one product, so a power of two can be moved from one to
another, or taken out of all of them and put back afterwards, exactly.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np
from array_api_compat import device

from lotr_tn._arrays import (
    Array,
    Namespace,
    at_least_float32,
    device_name,
    dtype_name,
    is_finite,
    is_wide,
    narrow,
    on_host,
    to_numpy,
    wants_gradient,
)
from lotr_tn.errors import BackendError, FormatError
from lotr_tn.formats import (
    Certificate,
    Dense,
    Format,
    LoRAStack,
    LowRankTucker2,
    Operators,
    Stack,
    Tucker1,
    Tucker2,
)
from lotr_tn.ops.arrays import arrays_of, common_namespace, differentiable, first_array, with_arrays
from lotr_tn.ops.primitives import layered_field

Function = TypeVar("Function", bound=Callable[..., Any])

LARGEST_FIELD = 60
"""Exponents of two up to which arrays stay as they are: four of them give at most 1e72, and sums of
squares of products of these stay far from the ends of float64."""

LARGEST_STACK = 200
"""Exponents up to which a whole stack, of about 1e60 or 1e-60, is computed with as it is."""

LARGEST_RESULT = 1000
"""Exponent up to which the updates themselves fit float64."""

CARRIERS: dict[type, str] = {
    LoRAStack: "up",
    LowRankTucker2: "up",
    Tucker2: "core",
    Tucker1: "own",
    Dense: "w",
}
"""The array that a factor of the whole stack goes into."""

FLOWS: dict[type, tuple[tuple[str, int, str, int], ...]] = {
    LoRAStack: (("down", 0, "up", 1),),
    LowRankTucker2: (("u", 1, "up", 0), ("v", 1, "down", 1), ("down", 0, "up", 1)),
    Tucker2: (("u", 1, "core", 1), ("v", 1, "core", 2)),
    Tucker1: (("shared", 1, "own", 2),),
    Dense: (),
}
"""Along which axes of which arrays sizes are passed on, up to the carrier."""

NOTHING = -(10**6)
"""The exponent of 0."""


def require_finite(stack: Stack) -> None:
    """Refuse a stack on the CPU that holds NaN or infinity, by field and layer.

    Raises:
        FormatError: an entry is not finite.
        BackendError: the arrays are on a device that holds no numbers.
    """
    for name, x in arrays_of(stack).items():
        if str(getattr(x, "device", "")) == "meta":
            raise BackendError(f"{name} is on device meta, which holds no numbers; load it first")
        if on_host(x) and not is_finite(x):
            raise FormatError(
                f"{name} holds NaN or infinity{_where(stack, name)}; nothing can be computed from "
                "it: look at what made it"
            )


def _where(stack: Stack, name: str) -> str:
    """`, first in layer 3`, where an array has layers of its own."""
    x = arrays_of(stack)[name]
    layers = stack.shape[0]
    if isinstance(stack, LoRAStack | LowRankTucker2) and name in ("up", "down"):
        parts = [x[:, part] if name == "up" else x[part, :] for part in stack.slices]
    elif CARRIERS.get(type(stack)) == name or (
        isinstance(stack, Format) and layered_field("scale", stack) == name
    ):
        parts = [x[index, ...] for index in range(layers)]
    else:
        return ""
    return f", first in layer {next(i for i, part in enumerate(parts) if not is_finite(part))}"


def in_range(stack: Stack) -> tuple[Any, int]:
    """The stack times an exact power of two, so that float64 holds its squares; and the exponent.

    The stack itself and 0 where it is there already, as nearly all are: those stored narrower
    always are. ΔW_l of the stack is 2^exponent times that of what is returned.

    Raises:
        FormatError: an entry is not finite, or the updates are beyond the range of float64.

    Cost: one look at each float64 array on the CPU; on other devices nothing is scaled.
    """
    if isinstance(stack, Format) or not is_wide(first_array(stack)) or differentiable(stack):
        return stack, 0
    arrays = arrays_of(stack)
    if not all(on_host(x) for x in arrays.values()):
        return stack, 0
    host = {name: to_numpy(x) for name, x in arrays.items()}
    sizes = [float(abs(x).max(initial=0.0)) for x in host.values()]
    if not all(map(math.isfinite, sizes)):
        require_finite(stack)
    if max(abs(math.frexp(size)[1]) for size in sizes) <= LARGEST_FIELD:
        return stack, 0
    moves, total = _moves(type(stack), host)
    if total > LARGEST_RESULT:
        raise FormatError(
            f"the updates are of about 1e{total * 0.30103:.0f}, beyond the range of float64; scale "
            "the factors down"
        )
    kept = total if abs(total) <= LARGEST_STACK else 0
    moves[CARRIERS[type(stack)]] -= total - kept
    xp = common_namespace(stack)
    moved = {name: times_powers(x, moves[name], xp=xp) for name, x in arrays.items()}
    return with_arrays(stack, **moved), total - kept


def _moves(kind: type, arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """Exponents for the entries of each array that take all sizes to the carrier; and its own.

    The columns of the others come to about 1, each for itself: one may be large where what it is
    multiplied by is small, or nothing.
    """
    sizes = {name: np.where(x == 0, NOTHING, np.frexp(x)[1]) for name, x in arrays.items()}
    moves = {name: np.zeros((1,) * x.ndim, dtype=np.int64) for name, x in arrays.items()}
    for source, axis, target, along in FLOWS[kind]:
        across = tuple(other for other in range(sizes[source].ndim) if other != axis)
        found = (sizes[source] + moves[source]).max(axis=across, initial=NOTHING)
        own, taken = np.maximum(found, NOTHING), np.where(found <= NOTHING // 2, 0, found)
        moves[source] = moves[source] - _along(taken, axis, sizes[source].ndim)
        moves[target] = moves[target] + _along(own, along, sizes[target].ndim)
    carrier = CARRIERS[kind]
    total = int((sizes[carrier] + moves[carrier]).max(initial=NOTHING))
    return moves, 0 if total <= NOTHING // 2 else total


def _along(x: np.ndarray, axis: int, axes: int) -> np.ndarray:
    return x.reshape(tuple(-1 if other == axis else 1 for other in range(axes)))


def measured(measure: Function) -> Function:
    """A measure of stacks that is finite or refused, with the field that is not finite named."""

    @functools.wraps(measure)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            with np.errstate(all="ignore"):
                found = measure(*arguments, **options)
        except (FormatError, RuntimeError):
            for stack in _stacks_in(arguments):
                require_finite(stack)
            raise
        for x in found if isinstance(found, list) else [found]:
            if device_name(x) == "meta":
                require_finite(_stacks_in(arguments)[0])
            if on_host(x) and not wants_gradient(x) and not is_finite(x):
                for stack in _stacks_in(arguments):
                    require_finite(stack)
                raise FormatError("the updates are beyond the range of float64; scale them down")
        return found

    return cast("Function", run)


def _stacks_in(arguments: Sequence[Any]) -> list[Any]:
    nested = (x if isinstance(x, list | tuple) else [x] for x in arguments)
    return [x for part in nested for x in part if isinstance(x, Operators)]


def times_power(x: Array, exponent: int) -> Array:
    """X · 2^exponent, in two steps: one factor might not fit."""
    half = exponent // 2
    return x * 2.0**half * 2.0 ** (exponent - half)


def times_powers(x: Array, exponents: np.ndarray, *, xp: Namespace) -> Array:
    """X · 2^exponents, entry by entry."""
    half = exponents // 2
    for part in (half, exponents - half):
        x = x * xp.asarray(np.exp2(part.astype(np.float64)), device=device(x))
    return x


def rescaled(stack: Stack, exponent: int) -> Any:
    """A stack times 2^exponent, and so its certificate, whose errors are absolute.

    Raises:
        FormatError: a narrower dtype than float64 has no room for so large or small updates.
    """
    if exponent == 0:
        return stack
    xp = common_namespace(stack)
    name = layered_field("scale", stack) if isinstance(stack, Format) else CARRIERS[type(stack)]
    assert name is not None  # as every format has that a decomposition makes
    x = getattr(stack, name)
    dtype = dtype_name(x)
    if dtype != "float64" and bool(xp.any(x != 0)):
        raise FormatError(
            f"updates of about 1e{exponent * 0.30103:.0f} do not fit {dtype}; choose float64, or "
            "scale them first"
        )
    found = with_arrays(
        stack, **{name: narrow(times_power(at_least_float32(x, xp=xp), exponent), dtype, xp=xp)}
    )
    known = getattr(stack, "certificate", None)
    return found if known is None else replace(found, certificate=_moved(known, exponent))


def _moved(known: Certificate, exponent: int) -> Certificate:
    names = ("distances", "norms", "lower", "upper")
    return replace(known, **{name: times_power(getattr(known, name), exponent) for name in names})
