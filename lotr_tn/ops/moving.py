"""Stacks in another dtype, or on another device."""

from collections.abc import Callable
from typing import Any

import array_api_compat

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, narrow, require_dtype
from lotr_tn.errors import BackendError
from lotr_tn.ops.arrays import Kind, arrays_of, common_namespace, with_arrays


@door
def astype(stack: Kind, dtype: str) -> Kind:
    """The stack stored in another dtype; its certificate, which measured the old one, is dropped.

    Args:
        stack: any stack.
        dtype: "float64", "float32", "float16" or "bfloat16".

    Raises:
        OptionError: no such dtype.
        BackendError: the stack's library lacks it.
        FormatError: an entry is too large for float16.

    Accuracy: each entry is rounded once.
    """
    require_dtype(dtype)
    xp = common_namespace(stack)
    return _mapped(stack, lambda x: narrow(x, dtype, xp=xp))


@door
def to_device(stack: Kind, device: Any) -> Kind:
    """The stack on another device, such as "cuda" for torch; its certificate is dropped.

    Raises:
        BackendError: the library has no such device here.
    """
    try:
        return _mapped(stack, lambda x: array_api_compat.to_device(x, device))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BackendError(f"cannot move a stack to device {str(device)!r}: {reason}") from None


def _mapped(stack: Kind, change: Callable[[Array], Array]) -> Kind:
    return with_arrays(stack, **{name: change(x) for name, x in arrays_of(stack).items()})
