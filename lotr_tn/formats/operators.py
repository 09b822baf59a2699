"""Operators on stacks, such as `a + b`, `2 * a`, `a @ x` and `a.T`.

They are sugar over the functions of `lotr_tn.ops`, which fill the table below.
"""

from collections.abc import Callable
from typing import Any, Self

from lotr_tn._arrays import Array
from lotr_tn.errors import FormatError
from lotr_tn.formats.printing import describe

_FUNCTIONS: dict[str, Callable[..., Any]] = {}


def register(**functions: Callable[..., Any]) -> None:
    """Name the functions behind the operators: add, subtract, scale, transpose, apply."""
    _FUNCTIONS.update(functions)


class Operators:
    """What every format inherits: arithmetic as for matrices, and how it is printed."""

    __array_ufunc__ = None  # NumPy leaves `number * stack` to the stack

    def __repr__(self) -> str:
        return describe(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How IPython, and hypothesis in its reports, print a stack."""
        printer.text(describe(self))

    def __add__(self, other: "Operators") -> Any:
        return self._with(other, "add")

    def __sub__(self, other: "Operators") -> Any:
        return self._with(other, "subtract")

    def _with(self, other: "Operators", name: str) -> Any:
        return _FUNCTIONS[name](self, other) if isinstance(other, Operators) else NotImplemented

    def __mul__(self, factor: Any) -> Any:
        return (
            NotImplemented if isinstance(factor, Operators) else _FUNCTIONS["scale"](self, factor)
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Any:
        return self * (1 / divisor)

    def __neg__(self) -> Any:
        return self * -1.0

    def __matmul__(self, x: Array) -> Array:
        """ΔW_l x for x (n,) or (n, b): (L, m) or (L, m, b), as for the dense matrices."""
        if x.ndim == 1:
            return _FUNCTIONS["apply"](self, x)
        if x.ndim == 2:
            return _FUNCTIONS["apply"](self, x.T).mT
        raise FormatError(f"a @ x takes x of shape (n,) or (n, b); found {tuple(x.shape)}")

    @property
    def T(self) -> Self:  # noqa: N802 - the name it has in linear algebra
        """Every layer transposed."""
        return _FUNCTIONS["transpose"](self)
