"""The values that U, V and the cores of a group begin with."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lotr_tn._arrays import Array, dtype_name, from_numpy
from lotr_tn.decompose.initialise import (
    initial_factors,
    initial_factors_of_weights,
    random_factors,
    regauge,
)
from lotr_tn.errors import FormatError, OptionError
from lotr_tn.formats import LoRAStack, Tucker2
from lotr_tn.nn.bases import base_of, matrix_of
from lotr_tn.nn.grouping import Group
from lotr_tn.ops.moving import astype

__all__ = ["STARTS", "Start", "Updates", "require_start", "starting_values"]

Start: TypeAlias = Literal[
    "balanced", "orthonormal", "equalised", "reference", "zero-u", "weights", "principal"
]
"""How training begins, where there is nothing to continue."""

STARTS: tuple[Start, ...] = (
    "balanced", "orthonormal", "equalised", "reference", "zero-u", "weights", "principal",
)  # fmt: skip

ZERO_CORE = ("balanced", "orthonormal", "equalised", "reference", "weights")

Updates: TypeAlias = Mapping[str, tuple[Array, Array]]
"""Low-rank updates to continue with: (up (m, r), down (r, n)) by module path, scale inside."""


class _Weights:
    """The weights of a group's layers, each as (m, n) when it is asked for."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules

    def __len__(self) -> int:
        return len(self.modules)

    def __getitem__(self, index: int) -> Tensor:
        return matrix_of(self.modules[index]).cpu()

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))


def require_start(init: str | Updates, trained: str) -> None:
    """Refuse a start that is not known, or from which nothing could be trained.

    Raises:
        OptionError: the start is unknown, or its cores are zero and only factors are to be trained.
    """
    if not isinstance(init, str):
        return
    if init not in STARTS:
        raise OptionError(f"init must be {', '.join(STARTS[:-1])} or {STARTS[-1]}; found {init!r}")
    if trained == "factors" and init in ZERO_CORE:
        raise OptionError(
            f"with init {init!r} the cores are zero, so U and V would have no gradient; to train "
            "the factors alone begin with 'zero-u', 'principal' or an adapter"
        )


def starting_values(
    group: Group,
    modules: Mapping[str, nn.Module],
    init: Start | Updates,
    *,
    seed: int,
    dtype: torch.dtype,
) -> Tucker2:
    """U, V and the cores that a group begins with, scale inside, as torch arrays on the host.

    Raises:
        FormatError: an update to continue with is missing or does not fit its module.
    """
    name = dtype_name(torch.empty(0, dtype=dtype))
    if not isinstance(init, str):
        found = _continued(group, init)
    elif init == "principal":
        wide = "float64" if name == "float64" else "float32"
        weights = _Weights([base_of(modules[path]) for path in group.modules])
        found = initial_factors_of_weights(weights, group.ranks, dtype=wide, seed=seed).factors
    elif init == "weights":
        found = _directions_of_weights(group, modules, seed)
    elif init == "zero-u":
        found = _zero_u(group, seed)
    else:
        gauge = "normal" if init == "reference" else init
        found = random_factors(group.sizes, group.ranks, gauge=gauge, seed=seed, dtype="float64")
    return _on_torch(astype(found, name))


def _on_torch(stack: Tucker2) -> Tucker2:
    u, core, v = (
        x if isinstance(x, Tensor) else from_numpy(x, backend="torch")
        for x in (stack.u, stack.core, stack.v)
    )
    return Tucker2(u, core, v)


def _zero_u(group: Group, seed: int) -> Tucker2:
    """U zero, every core a piece of the identity: like LoRA, with both factors shared."""
    made = random_factors(group.sizes, group.ranks, seed=seed, dtype="float64")
    core = np.broadcast_to(np.eye(*group.ranks), made.core.shape).copy()
    return Tucker2(np.zeros_like(made.u), core, made.v)


def _directions_of_weights(group: Group, modules: Mapping[str, nn.Module], seed: int) -> Tucker2:
    """The leading directions of the weights, as long as random ones would be; cores zero."""
    weights = _Weights([base_of(modules[path]) for path in group.modules])
    made = initial_factors_of_weights(
        weights, group.ranks, gauge="orthonormal", dtype="float64", seed=seed
    ).factors
    (m, n), (r1, r2) = group.shape, group.ranks
    u, v = made.u * (m / r1) ** 0.25, made.v * (n / r2) ** 0.25
    return Tucker2(u, torch.zeros_like(made.core), v)


def _continued(group: Group, updates: Updates) -> Tucker2:
    """The HOOI of low-rank updates, balanced: exact where the ranks are large enough."""
    if missing := [path for path in group.modules if path not in updates]:
        raise FormatError(
            f"the adapter has no update for {', '.join(missing)}; it has "
            f"{', '.join(list(updates)[:4])} …: choose the targets that it has"
        )
    ups, downs = [], []
    for path in group.modules:
        up, down = (np.asarray(_host(x), dtype=np.float64) for x in updates[path])
        if (up.shape[0], down.shape[1]) != group.shape or up.shape[1] != down.shape[0]:
            raise FormatError(
                f"the update of {path} is {up.shape} times {down.shape}; the module needs "
                f"{group.shape}"
            )
        ups.append(up)
        downs.append(down)
    stack = LoRAStack(
        np.concatenate(ups, axis=1), np.concatenate(downs, axis=0), tuple(u.shape[1] for u in ups)
    )
    found = initial_factors(stack, group.ranks).factors
    assert isinstance(found, Tucker2)
    return regauge(found, "balanced")


def _host(x: Any) -> Any:
    return x.detach().cpu().double().numpy() if isinstance(x, Tensor) else x
