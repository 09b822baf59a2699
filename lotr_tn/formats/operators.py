"""Operators on stacks, such as `a + b`, `2 * a`, `a @ x` and `a.T`; and their layers, as of a list.

They are sugar over the functions of `lotr_tn.ops`, which fill the table below.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any, Self

from lotr_tn._arrays import Array
from lotr_tn.errors import ArgumentError, FormatError
from lotr_tn.formats.printing import describe

_FUNCTIONS: dict[str, Callable[..., Any]] = {}


def register(**functions: Callable[..., Any]) -> None:
    """Name the functions behind the operators, such as add, transpose and take_layers."""
    _FUNCTIONS.update(functions)


class Operators:
    """What every format inherits: arithmetic as for matrices, layers as of a list, printing."""

    __array_ufunc__ = None  # NumPy leaves `number * stack` to the stack

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, m, n)."""
        raise NotImplementedError(f"{type(self).__name__} must say its shape (L, m, n)")

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

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Refused: it would form every matrix without being asked for that."""
        raise ArgumentError(
            f"a {type(self).__name__} is no array; lt.to_dense(stack) forms its matrices (L, m, n)"
        )

    def __len__(self) -> int:
        """The number of layers, L."""
        return self.shape[0]

    def __iter__(self) -> Iterator[Self]:
        """Each layer, as a stack of one."""
        return (self[layer] for layer in range(len(self)))

    def __getitem__(self, layer: int | slice) -> Self:
        """A layer as a stack of one, or those of a slice; factors that all share stay the same."""
        if isinstance(layer, slice):
            return _FUNCTIONS["take_layers"](self, range(*layer.indices(len(self))))
        try:
            return _FUNCTIONS["take_layers"](self, [operator.index(layer)])
        except TypeError:
            raise ArgumentError(
                f"a stack takes a layer's number or a slice; this is a {type(layer).__name__}: "
                "lt.take_layers takes a list of numbers"
            ) from None

    @property
    def dtype(self) -> str:
        """The storage dtype: float64, float32, float16 or bfloat16."""
        return _FUNCTIONS["storage_dtype"](self)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored entries."""
        return _FUNCTIONS["parameter_count"](self) * _FUNCTIONS["item_size"](self.dtype)

    @property
    def relative_error(self) -> float | None:
        """What the certificate measured, ‖T − T̂‖ / ‖T‖; None where nothing was certified."""
        certificate = getattr(self, "certificate", None)
        return None if certificate is None else certificate.relative_error

    @property
    def T(self) -> Self:  # noqa: N802 - the name it has in linear algebra
        """Every layer transposed."""
        return _FUNCTIONS["transpose"](self)
