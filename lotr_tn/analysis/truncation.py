"""What cutting each layer's own rank would cost."""

import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import to_numpy
from lotr_tn.decompose.truncation import global_order
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg import smallest_rank
from lotr_tn.ops.norms import layer_singular_values


@door
def truncated_parameters(stack: LoRAStack, relative_error: float) -> int:
    """The fewest LoRA parameters that keep the whole stack within a relative error.

    Each layer keeps its largest singular values; one threshold over all layers is best, since
    every rank term costs m + n.

    Args:
        stack: a LoRA stack (L, m, n).
        relative_error: the Frobenius error allowed, relative to ‖T‖.

    Source: Eckart and Young (1936), applied to the block-diagonal matrix of all layers.
    """
    return cut_parameters(cut_tails(stack), stack.shape, relative_error)


def cut_tails(stack: LoRAStack) -> np.ndarray:
    """(R + 1,) squared norm that is lost when 0, 1, ... rank terms of all layers are kept."""
    return global_order([to_numpy(s) for s in layer_singular_values(stack)]).tails


def cut_parameters(tails: np.ndarray, shape: tuple[int, int, int], relative_error: float) -> int:
    """The same as `truncated_parameters`, of a stack whose losses are known."""
    return smallest_rank(tails, relative_error**2 * tails[0]) * (shape[1] + shape[2])
