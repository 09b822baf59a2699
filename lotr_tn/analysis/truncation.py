"""What cutting each layer's own rank would cost."""

from lotr_tn._arrays import to_numpy
from lotr_tn.decompose.truncation import global_order
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg import smallest_rank
from lotr_tn.ops.norms import layer_singular_values

__all__ = ["truncated_parameters"]


def truncated_parameters(stack: LoRAStack, relative_error: float) -> int:
    """The fewest LoRA parameters that keep the whole stack within a relative error.

    Each layer keeps its largest singular values; one threshold over all layers is best, since
    every rank term costs m + n.

    Args:
        stack: a LoRA stack (L, m, n).
        relative_error: the Frobenius error allowed, relative to ‖T‖.

    Source: Eckart and Young (1936), applied to the block-diagonal matrix of all layers.
    """
    _, m, n = stack.shape
    tails = global_order([to_numpy(s) for s in layer_singular_values(stack)]).tails
    return smallest_rank(tails, relative_error**2 * tails[0]) * (m + n)
