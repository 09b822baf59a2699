"""Laws of updates applied to vectors."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lotr_tn._arrays import Array
from lotr_tn.formats import Stack
from lotr_tn.testing.laws.truth import (
    dense_updates,
    expect,
    expect_same,
    magnitude,
    norm_of,
    rounding,
    wide,
)

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

Apply = Callable[..., Array]


def apply_is_the_matrix_product(apply: Apply, stack: Stack, x: Array) -> None:
    """apply(stack, x)[l] = x ΔW_lᵀ."""
    inputs = wide(x)
    wanted = np.stack([inputs @ matrix.T for matrix in dense_updates(stack)])
    _expect_vectors(apply(stack, x), wanted, stack, inputs, "x ΔWᵀ")


def one_layer_is_applied_alone(apply: Apply, stack: Stack, x: Array, layer: int) -> None:
    """apply(stack, x, layer=l) = x ΔW_lᵀ; a negative layer counts from the end."""
    inputs = wide(x)
    wanted = inputs @ dense_updates(stack)[layer].T
    _expect_vectors(apply(stack, x, layer=layer), wanted, stack, inputs, f"x ΔWᵀ of layer {layer}")


def rows_go_through_their_layers(
    apply: Apply, stack: Stack, x: Array, layers: Sequence[int]
) -> None:
    """apply(stack, x, layer=layers)[i] = x[i] ΔW_lᵀ with l = layers[i]."""
    inputs, dense = wide(x), dense_updates(stack)
    rows = [row @ dense[layer].T for row, layer in zip(inputs, layers, strict=True)]
    wanted = np.stack(rows) if rows else np.zeros((*inputs.shape[:-1], stack.shape[1]))
    found = apply(stack, x, layer=layers)
    _expect_vectors(found, wanted, stack, inputs, f"x ΔWᵀ through layers {list(layers)}")


def apply_transpose_is_the_adjoint(
    apply: Apply, apply_transpose: Apply, stack: Stack, x: Array, y: Array
) -> None:
    """⟨y, apply(x)⟩ = ⟨apply_transpose(y), x⟩ in every layer, for x (b, n) and y (b, m)."""
    inputs, outputs = wide(x), wide(y)
    forth, back = wide(apply(stack, x)), wide(apply_transpose(stack, y))
    expect_same("the shape", back.shape, (stack.shape[0], *inputs.shape))
    size = magnitude(stack) * norm_of(inputs) * norm_of(outputs)
    for layer in range(stack.shape[0]):
        one, two = float((outputs * forth[layer]).sum()), float((back[layer] * inputs).sum())
        expect(
            abs(one - two) <= rounding(stack) * size,
            f"in layer {layer} ⟨y, ΔW x⟩ is {one:.12g} and ⟨ΔWᵀ y, x⟩ is {two:.12g}",
        )


def matmul_is_the_matrix_product(
    matmul: Callable[[Stack, Array], Array], stack: Stack, x: Array
) -> None:
    """(stack @ x)[l] = ΔW_l x, for x (n,) or (n, b)."""
    inputs = wide(x)
    wanted = np.stack([matrix @ inputs for matrix in dense_updates(stack)])
    _expect_vectors(matmul(stack, x), wanted, stack, inputs, "ΔW x")


def linear_operator_is_the_matrix(
    as_linear_operator: Callable[[Stack, int | None], "LinearOperator"],
    stack: Stack,
    layer: int | None,
) -> None:
    """The operator's products with the identity, from both sides, are ΔW_l; or all L·m rows."""
    dense, n = dense_updates(stack), stack.shape[2]
    wanted = dense.reshape(-1, n) if layer is None else dense[layer]
    operator: Any = as_linear_operator(stack, layer)
    expect_same("the shape", operator.shape, wanted.shape)
    rows, columns = np.eye(len(wanted)), np.eye(n)
    _expect_vectors(operator.matmat(columns), wanted, stack, columns, "ΔW")
    _expect_vectors(operator.rmatmat(rows), wanted.T, stack, rows, "ΔWᵀ")
    _expect_vectors(operator.matvec(columns[:, 0]), wanted[:, 0], stack, columns, "a column of ΔW")
    _expect_vectors(operator.rmatvec(rows[:, 0]), wanted[0, :], stack, rows, "a row of ΔW")


def _expect_vectors(
    found: Array, wanted: np.ndarray, stack: Stack, inputs: np.ndarray, what: str
) -> None:
    vectors = wide(found)
    expect_same(f"the shape of {what}", vectors.shape, wanted.shape)
    off = norm_of(vectors - wanted)
    allowed = rounding(stack) * magnitude(stack) * norm_of(inputs)
    expect(off <= allowed, f"{what} is off by {off:.2g}; rounding explains {allowed:.2g}")
