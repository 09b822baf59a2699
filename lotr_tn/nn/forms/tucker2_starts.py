"""The values that U, V and the cores of a group begin with."""

from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from lotr_tn._arrays import dtype_name, from_numpy
from lotr_tn.decompose.gauges import random_factors, regauge
from lotr_tn.decompose.initialise import initial_factors
from lotr_tn.decompose.initialise_weights import Matrices, initial_factors_of_weights
from lotr_tn.formats import LoRAStack, Tucker2
from lotr_tn.nn.form import Start
from lotr_tn.nn.grouping import Group
from lotr_tn.ops.moving import astype

TuckerStart: TypeAlias = Literal[
    "balanced", "orthonormal", "equalised", "reference", "zero-u", "weights", "principal"
]
"""How training begins, where there is nothing to continue."""

STARTS: tuple[TuckerStart, ...] = get_args(TuckerStart)

ZERO_CORE = (*STARTS[:4], "weights")


def starting_values(group: Group, start: Start) -> Tucker2:
    """U, V and the cores that a group begins with, scale inside, as torch arrays on the host."""
    name = dtype_name(torch.empty(0, dtype=start.like.dtype))
    sizes, ranks, init, seed = group.sizes, group.options["ranks"], start.init, start.seed
    if not isinstance(init, str):
        found = _continued(init, ranks)
    elif init == "principal":
        wide = "float64" if name == "float64" else "float32"
        found = initial_factors_of_weights(start.weights, ranks, dtype=wide, seed=seed).factors
    elif init == "weights":
        found = _directions_of_weights(start.weights, group, seed)
    elif init == "zero-u":
        found = _zero_u(sizes, ranks, seed)
    else:
        gauge: Any = "normal" if init == "reference" else init
        found = random_factors(sizes, ranks, gauge=gauge, seed=seed, dtype="float64")
    found = astype(found, name)
    if isinstance(found.u, Tensor):
        return found
    return Tucker2(*(from_numpy(x, backend="torch") for x in (found.u, found.core, found.v)))


def _zero_u(sizes: tuple[int, int, int], ranks: tuple[int, int], seed: int) -> Tucker2:
    """U zero, every core a piece of the identity: like LoRA, with both factors shared."""
    made = random_factors(sizes, ranks, seed=seed, dtype="float64")
    core = np.broadcast_to(np.eye(*ranks), made.core.shape).copy()
    return Tucker2(np.zeros_like(made.u), core, made.v)


def _directions_of_weights(weights: Matrices, group: Group, seed: int) -> Tucker2:
    """The leading directions of the weights, as long as random ones would be; cores zero."""
    (m, n), (r1, r2) = group.shape, group.options["ranks"]
    made = initial_factors_of_weights(
        weights, (r1, r2), gauge="orthonormal", dtype="float64", seed=seed
    ).factors
    u, v = made.u * (m / r1) ** 0.25, made.v * (n / r2) ** 0.25
    return Tucker2(u, torch.zeros_like(made.core), v)


def _continued(updates: LoRAStack, ranks: tuple[int, int]) -> Tucker2:
    """The HOOI of low-rank updates, balanced: exact where the ranks are large enough."""
    found = initial_factors(updates, ranks).factors
    assert isinstance(found, Tucker2)
    return regauge(found, "balanced")
