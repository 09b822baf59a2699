"""What operations refuse."""

from lotr_tn.errors import DerivativeError, FormatError
from lotr_tn.formats import Stack
from lotr_tn.ops.arrays import differentiable


def refuse_gradient(what: str, *stacks: Stack) -> None:
    """Refuse stacks that torch records, where the derivative would not be right."""
    if differentiable(*stacks):
        raise DerivativeError(
            f"{what} has no derivative here, and the factors require one; detach them, or use "
            "round at fixed ranks, which has"
        )


def require_same_shape(a: Stack, b: Stack) -> None:
    """Refuse two stacks that differ in layers or in matrix size."""
    if a.shape != b.shape:
        raise FormatError(
            f"both stacks must have one shape (L, m, n); found {a.shape} and {b.shape}"
        )


def require_layer(layers: int, layer: int) -> int:
    """A layer's index from 0 to L - 1, or a refusal; negative ones count from the end."""
    if not -layers <= layer < layers:
        raise FormatError(f"layer must lie in 0 … {layers - 1}; found {layer}")
    return layer % layers
