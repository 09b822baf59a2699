"""What cutting each layer's own rank would cost."""

import numpy as np

from lotr_tn._arrays import namespace_of, to_numpy
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg import smallest_rank, triangular_factor
from lotr_tn.ops.layers import layer_of

__all__ = ["layer_singular_values", "truncated_parameters"]


def layer_singular_values(stack: LoRAStack) -> list[np.ndarray]:
    """The singular values of each layer's update, largest first, r_l of them, on the host.

    Cost: O((m + n)·r_l²) flops a layer.
    """
    xp = namespace_of(up=stack.up, down=stack.down)
    found = []
    for index in range(stack.shape[0]):
        layer = layer_of(stack, index, xp=xp)
        left, right = triangular_factor(layer.left, xp=xp), triangular_factor(layer.right, xp=xp)
        found.append(to_numpy(xp.linalg.svdvals(left @ xp.matrix_transpose(right))))
    return found


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
    values = np.sort(np.concatenate(layer_singular_values(stack)))[::-1]
    tails = np.append(np.cumsum((values**2)[::-1])[::-1], 0.0)
    return smallest_rank(tails, relative_error**2 * tails[0]) * (m + n)
