"""Parameter counts of stacks, by what they store."""

import math

from lotr_tn._arguments import door
from lotr_tn.formats import Stack
from lotr_tn.ops.arrays import arrays_of


@door
def parameter_count(stack: Stack) -> int:
    """The number of stored entries.

    LoRA: Σ r_l (m + n). Tucker-2: m r1 + n r2 + L r1 r2; with low-rank cores
    m r1 + n r2 + Σ k_l (r1 + r2). Dense: L m n.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import Tucker2
        >>> parameter_count(Tucker2(np.ones((768, 2)), np.ones((24, 2, 2)), np.ones((768, 2))))
        3168
    """
    return sum(math.prod(array.shape) for array in arrays_of(stack).values())
