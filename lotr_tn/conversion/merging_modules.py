"""One module's updates by several adapters, in orthonormal bases of all their factors.

A factor that several adapters share, which is the very same array in each, stands in a basis once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.adapters.adapter import (
    Adapter,
    LoRAAdapter,
    LoRAGroup,
    LoRAModule,
    LoTRGroup,
    Target,
    block_diagonal,
)
from lotr_tn.adapters.paths import require_common, shapes_of
from lotr_tn.errors import CheckpointError
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.factor import qr
from lotr_tn.ops.layers import between_shared, two_factors
from lotr_tn.ops.stacking import layer_in_hub

ROUNDING = 8 * UNIT_ROUNDOFF["float64"]
"""Share of the sizes of factors that the float64 arithmetic on them may lose."""


@dataclass(frozen=True)
class Update:
    """One adapter's update of a module, left @ middle @ rightᵀ."""

    left: np.ndarray  # (m, p)
    middle: np.ndarray | None  # (p, q) float64; None is the identity
    right: np.ndarray  # (n, q)


@dataclass(frozen=True)
class ModuleUpdates:
    """A module, and how to get its update by each adapter that has it."""

    target: Target
    shape: tuple[int, int]
    by_adapter: dict[str, Callable[[], Update]]

    def reduced(self, bases: "Bases") -> "ReducedUpdates":
        """All updates in common orthonormal bases.

        Cost: 4·(m + n)·R² flops for the summed rank R of the factors that differ; nothing where
        all share the factors of the module before.
        """
        updates = [update() for update in self.by_adapter.values()]
        left, rows = bases.of("left", [update.left for update in updates])
        right, columns = bases.of("right", [update.right for update in updates])
        wide = all(u.left.dtype == u.right.dtype == np.float64 for u in updates)
        terms = tuple(
            (a, update.middle, b) for a, update, b in zip(rows, updates, columns, strict=True)
        )
        return ReducedUpdates(left[0], left[1], right[0], right[1], terms, wide)


@dataclass(frozen=True)
class ReducedUpdates:
    """Updates left (a_l G_l b_lᵀ) rightᵀ; a_l and b_l are columns of both coordinates."""

    left: np.ndarray  # (m, k1) orthonormal
    rows: np.ndarray  # (k1, P) coordinates of the output factors that differ
    right: np.ndarray  # (n, k2)
    columns: np.ndarray  # (k2, Q)
    terms: tuple[tuple[slice, np.ndarray | None, slice], ...]
    wide: bool

    def total(self, weights: Sequence[float]) -> np.ndarray:
        """(k1, k2) Σ w_l a_l G_l b_lᵀ: cores between the same factors are added first."""
        cores: dict[tuple[int, ...], tuple[slice, np.ndarray, slice]] = {}
        for weight, (a, middle, b) in zip(weights, self.terms, strict=True):
            own = np.eye(a.stop - a.start) if middle is None else middle
            key = a.start, a.stop, b.start, b.stop  # factors of rank 0 start where others do
            known = cores.get(key)
            cores[key] = (a, weight * own if known is None else known[1] + weight * own, b)
        total = np.zeros((len(self.rows), len(self.columns)))
        for a, core, b in cores.values():
            total += self.rows[:, a] @ core @ self.columns[:, b].T
        return total

    def small(self) -> LoRAStack:
        """The updates (L, k1, k2) in both bases."""
        ups, downs = [], []
        for a, middle, b in self.terms:
            rows = self.rows[:, a]
            ups.append(rows if middle is None else rows @ middle)
            downs.append(self.columns[:, b].T)
        ranks = tuple(up.shape[1] for up in ups)
        return LoRAStack(np.concatenate(ups, axis=1), np.concatenate(downs), ranks)

    def gram(self) -> np.ndarray:
        """(L, L) inner products of the updates."""
        small = self.small()
        flat = np.stack([(small.up[:, s] @ small.down[s]).ravel() for s in small.slices])
        return flat @ flat.T

    def noise(self, weights: Sequence[float]) -> float:
        """What float64 arithmetic may leave of terms that cancel."""
        sizes = (
            abs(weight)
            * np.linalg.norm(self.rows[:, a])
            * (1.0 if middle is None else np.linalg.norm(middle))
            * np.linalg.norm(self.columns[:, b])
            for weight, (a, middle, b) in zip(weights, self.terms, strict=True)
        )
        return ROUNDING * float(sum(sizes))


@dataclass
class Bases:
    """Orthonormal bases of factors; that of the last one that was alone on its side is kept.

    A factor is known again by where it lies in memory. That says something only while the array is
    alive, so the one that was factored is held beside its basis: a product made later cannot lie
    at the same place.
    """

    _kept: dict[str, tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)

    def of(
        self, side: str, factors: Sequence[np.ndarray]
    ) -> tuple[tuple[np.ndarray, np.ndarray], list[slice]]:
        """Q (m, k) and its coordinates (k, P) for the factors that differ, and where each is."""
        places: dict[tuple, slice] = {}
        different, end = [], 0
        for factor in factors:
            if (key := _identity(factor)) not in places:
                places[key] = slice(end, end + factor.shape[1])
                different.append(factor)
                end += factor.shape[1]
        found = [places[_identity(factor)] for factor in factors]
        if len(different) > 1:
            wide = [factor.astype(np.float64) for factor in different]
            return qr(np.concatenate(wide, axis=1), xp=xp), found
        known = self._kept.get(side)
        if known is None or _identity(known[0]) not in places:
            known = different[0], qr(different[0].astype(np.float64), xp=xp)
            self._kept[side] = known
        return known[1], found


def _identity(factor: np.ndarray) -> tuple:
    """Where a living array lies in memory, and how it is read there."""
    return factor.ctypes.data, factor.shape, factor.strides, factor.dtype


def updates_of(adapters: Mapping[str, Adapter]) -> dict[str, ModuleUpdates]:
    """Every module that any adapter updates, by path, in order of coming.

    Raises:
        CheckpointError: adapters have no module in common, or shapes or layouts differ.
    """
    found: dict[str, ModuleUpdates] = {}
    owners: dict[str, str] = {}
    for name, adapter in adapters.items():
        owned = {path: (owners[path], updates.shape) for path, updates in found.items()}
        require_common(owned, name, shapes_of(adapter))
        for target, shape, update in _modules_of(adapter):
            known = found.get(target.name)
            if known is None:
                known = found[target.name] = ModuleUpdates(target, shape, {})
                owners[target.name] = name
            elif (known.shape, known.target.layout) != (shape, target.layout):
                raise CheckpointError(
                    f"module {target.name} is {_described(known.target, known.shape)} in "
                    f"{owners[target.name]} and {_described(target, shape)} in {name}; only "
                    "adapters of one base model can be merged"
                )
            known.by_adapter[name] = update
    return found


def _described(target: Target, shape: tuple[int, int]) -> str:
    layout = target.layout
    kernel = f" of kernel {'x'.join(map(str, layout.kernel))}" if layout.kernel else ""
    groups = f" in {layout.groups} groups" if layout.groups > 1 else ""
    return f"a {layout.kind} {shape[0]}x{shape[1]}{kernel}{groups}"


def _modules_of(adapter: Adapter) -> list[tuple[Target, tuple[int, int], Callable[[], Update]]]:
    if isinstance(adapter, LoRAAdapter):
        return [_of_module(module) for module in adapter.modules]
    found = []
    for group in adapter.groups.values():
        if isinstance(group, LoRAGroup):
            found += [_of_module(module) for module in group.modules]
        else:
            found += [_of_layer(group, index) for index in range(len(group.targets))]
    return found


def _of_module(module: LoRAModule) -> tuple[Target, tuple[int, int], Callable[[], Update]]:
    def update() -> Update:
        up = module.up
        if module.target.layout.groups > 1:
            up = block_diagonal(up, module.target.layout.groups)
        middle = None if module.scale == 1 else module.scale * np.eye(up.shape[1])
        return Update(up, middle, module.down.T)

    return module.target, module.shape, update


def _of_layer(group: LoTRGroup, index: int) -> tuple[Target, tuple[int, int], Callable[[], Update]]:
    def update() -> Update:
        layer = between_shared(*layer_in_hub(group.stack, index), xp=xp)
        if layer.left is None or layer.right is None:
            left, right = two_factors(layer, xp=xp)
            return Update(left, None, right)
        return Update(layer.left, layer.middle, layer.right)

    return group.targets[index], group.shape[1:], update
