"""The door of every decomposition: what comes in is finite, and computed with near norm 1."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from lotr_tn._arrays import on_host, to_numpy
from lotr_tn.formats import Core, Format
from lotr_tn.ops.arithmetic import scale
from lotr_tn.ops.arrays import differentiable, first_array
from lotr_tn.ops.magnitude import in_range, require_finite, rescaled
from lotr_tn.ops.norms import layer_norms
from lotr_tn.ops.primitives import lowered

Function = TypeVar("Function", bound=Callable[..., Any])


def guarded(decompose: Function) -> Function:
    """A decomposition of stacks that are finite and of a size that float64 can square.

    It refuses NaN and infinity, and takes a power of two out of stacks that are too large or too
    small (beyond about 1e±60) and puts it back into the result. Layers whose terms cancel, but for
    rounding, become zero. A registered format is decomposed as what it is in its hub.
    """

    @functools.wraps(decompose)
    def run(stack: Any, *arguments: Any, **options: Any) -> Any:
        require_finite(stack)
        small, exponent = in_range(lowered(stack))
        with np.errstate(all="ignore"):
            found = decompose(_without_rounding(small), *arguments, **options)
            return rescaled(found, exponent)

    return cast("Function", run)


def _without_rounding(stack: Core) -> Core:
    """The stack with exact zeros in layers whose terms cancel, on the CPU."""
    if differentiable(stack) or not on_host(first_array(stack)):
        return stack
    alive = to_numpy(layer_norms(stack)) != 0
    return stack if alive.all() else scale(stack, [float(one) for one in alive])


def guarded_in_its_format(decompose: Function) -> Function:
    """The same of what has rules for registered formats: these are looked at, and not scaled."""
    inside = guarded(decompose)

    @functools.wraps(decompose)
    def run(stack: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(stack, Format):
            require_finite(stack)
            return decompose(stack, *arguments, **options)
        return inside(stack, *arguments, **options)

    return cast("Function", run)
