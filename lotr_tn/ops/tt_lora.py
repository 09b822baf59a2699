"""TT-LoRA's cores as tensor trains, in both of the index orders in which they are used."""

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Literal

import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, namespace_of
from lotr_tn.errors import FormatError, OptionError, not_among
from lotr_tn.formats import TensorTrain

Order = Literal["reconstruction", "contraction"]
"""How TT-LoRA's cores make a matrix.

`reconstruction`: the contracted tensor is the matrix (out, in), row by row. `contraction`: the
first cores eat the input, of which each takes the fastest digit that is left, and the others append
the digits of the output.
"""

ORDERS: tuple[Order, ...] = ("reconstruction", "contraction")


@door
def tt_lora(
    layers: Sequence[Sequence[Array]], shape: tuple[int, int], order: Order = "reconstruction"
) -> TensorTrain:
    """The trains of TT-LoRA adapters of one shape.

    Args:
        layers: for each layer its cores (r, d, r'), as files have them.
        shape: (m, n), outputs and inputs of the module.
        order: in which of its two ways the method makes a matrix of them; for the same cores these
            are different matrices, contraction[o, i] = reconstruction[p[i], o] with the
            permutation p = `digit_reversal(legs of the first side)`.

    Returns:
        A TensorTrain (L, m, n) that holds the cores as they are; α is not inside.

    Raises:
        FormatError: layers differ in their cores, or no number of cores multiplies to the side
            that stands first.
        OptionError: no such order.
        BackendError: cores differ in library, dtype or device.

    Source: TT-LoRA (arXiv 2408.01008), the repositories of TTLoRAMoE and ScalableTTLoRA.

    Examples:
        >>> import numpy as np
        >>> cores = [np.ones((1, 4, 2)), np.ones((2, 3, 2)), np.ones((2, 6, 1))]
        >>> tt_lora([cores, cores], (12, 6)).shape, tt_lora([cores], (6, 12), "contraction").into
        ((2, 12, 6), (3, 4))
    """
    if order not in ORDERS:
        raise OptionError(not_among("order", order, ORDERS))
    sizes = [tuple(tuple(core.shape) for core in cores) for cores in layers]
    if not sizes or len({*sizes}) > 1 or any(len(size) != 3 for size in sizes[0]):
        raise FormatError(
            "layers must each have the same cores (r, d, r'); found those of shapes "
            f"{sorted({*sizes})!s:.200}"
        )
    legs, (m, n) = [size[1] for size in sizes[0]], shape
    first = m if order == "reconstruction" else n
    products = list(itertools.accumulate(legs, operator.mul, initial=1))
    if first not in products or products[-1] != m * n:
        raise FormatError(
            f"cores of legs {legs} make no {m} x {n} by {order}: their first legs must multiply to "
            f"{first}, and all of them to {m * n}"
        )
    count = products.index(first)
    cores = []
    for k, parts in enumerate(zip(*layers, strict=True)):
        xp = namespace_of(**{f"layer_{index}": part for index, part in enumerate(parts)})
        whole = xp.stack(list(parts))
        out = (k < count) == (order == "reconstruction")
        cores.append(whole[:, :, :, None, :] if out else whole[:, :, None, :, :])
    places = tuple(range(len(cores)))
    return TensorTrain(tuple(cores), places, places if order == "reconstruction" else places[::-1])


@door
def digit_reversal(legs: Sequence[int]) -> np.ndarray:
    """For every index the one whose digits are its own read backwards.

    Args:
        legs: sizes of the digits that are read, the slowest first.

    Returns:
        (Π legs,) a permutation p: the index (a_1, …, a_k) of the reversed legs, the slowest digit
        first, stands at p in an axis of legs (d_1, …, d_k) as (a_k, …, a_1).

    Examples:
        >>> digit_reversal((2, 3))
        array([0, 3, 1, 4, 2, 5])
    """
    return np.arange(math.prod(legs)).reshape(tuple(legs)).T.reshape(-1)
