"""Adapters in memory: modules with their factors, and everything else that the file held."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import numpy as np

from lotr_tn._arrays import LARGEST, UNIT_ROUNDOFF, from_numpy, is_finite
from lotr_tn._shown import Shown, lines_of
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.errors import CheckpointError, printable
from lotr_tn.formats import (
    Certificate,
    LoRAStack,
    LowRankTucker2,
    TensorTrain,
    Tucker1,
    Tucker2,
)
from lotr_tn.ops.arrays import storage_dtype
from lotr_tn.ops.counts import parameter_count

Compressed: TypeAlias = Tucker2 | LowRankTucker2 | Tucker1 | LoRAStack | TensorTrain
"""The formats in which a compressed group is stored."""


@final
@dataclass(frozen=True)
class Layout:
    """How a module's matrix lies in the file and in the model.

    Attributes:
        kind: `linear` (also GPT-2's Conv1D, whose factors lie alike), `embedding` or `conv`.
        kernel: the kernel's sizes, for conv; the matrix is then (out, in · kernel).
        groups: groups of a grouped conv, whose output factor is block diagonal.
    """

    kind: Literal["linear", "embedding", "conv"] = "linear"
    kernel: tuple[int, ...] = ()
    groups: int = 1


@final
@dataclass(frozen=True)
class Target:
    """A module that is updated: its path in the model, how it lies, the rank it was stored with."""

    name: str
    layout: Layout
    rank: int


FLOAT32_NORMAL = 2.0**-126
"""The smallest number that float32 holds in full precision."""


@final
@dataclass(frozen=True, eq=False)
class LoRAModule:
    """One LoRA update ΔW = scale · up · down, as stored.

    Attributes:
        target: what it updates.
        up: (m, r), or (m, r / groups) for a grouped conv.
        down: (r, n).
        scale: the multiplier that belongs to the update; multiplied in by `factors`.
    """

    target: Target
    up: np.ndarray
    down: np.ndarray
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not -LARGEST["float64"] <= self.scale <= LARGEST["float64"]:
            raise CheckpointError(
                f"module {self.target.name} has the scale {self.scale:g}; needed a finite number: "
                "look at lora_alpha, r and their patterns"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def stored(self) -> int:
        """The number of stored entries."""
        return self.up.size + self.down.size

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Up (m, r) with the scale inside, and down (r, n), in float32 or float64.

        A scale that is no power of two rounds once, in that dtype. It is float64 where a factor is
        stored so, and where float32 has no room for the scale, or for what it makes of up.

        Raises:
            CheckpointError: not even float64 has.
        """
        wide = "float64" in (self.up.dtype.name, self.down.dtype.name)
        fits = self.scale == 0 or FLOAT32_NORMAL <= abs(self.scale) <= LARGEST["float32"]
        up = self._scaled(np.float64 if wide or not fits else np.float32)
        if not is_finite(up) and up.dtype != np.float64:
            up = self._scaled(np.float64)
        if not is_finite(up):
            raise CheckpointError(
                f"module {self.target.name} holds NaN or infinite entries, or too large ones for "
                f"its scale {self.scale:g}"
            )
        return up, self.down.astype(up.dtype)

    def _scaled(self, dtype: type[np.floating]) -> np.ndarray:
        up = self.up.astype(dtype)
        if self.target.layout.groups > 1:
            up = block_diagonal(up, self.target.layout.groups)
        with np.errstate(over="ignore", invalid="ignore"):
            return up if self.scale == 1 else up * dtype(self.scale)


def common_dtype(names: Collection[str]) -> str:
    """The narrowest dtype that holds all entries of these: float32 for float16 and bfloat16."""
    if {"float16", "bfloat16"} <= set(names):
        names = {*names, "float32"}
    return min(names, key=lambda name: UNIT_ROUNDOFF[name])


def block_diagonal(up: np.ndarray, groups: int) -> np.ndarray:
    """(m, r / g) stored factor of a grouped conv as the (m, r) block-diagonal one it means."""
    m, width = up.shape
    full = np.zeros((groups, m // groups, groups, width), dtype=up.dtype)
    for group in range(groups):
        full[group, :, group, :] = up.reshape(groups, m // groups, width)[group]
    return full.reshape(m, groups * width)


@final
@dataclass(frozen=True, eq=False)
class LoRAGroup:
    """Modules of one shape that are stacked, in stack order, each with its own factors.

    Attributes:
        name: the group.
        modules: the modules in stack order.
        certificate: norms and no distances, where the group was kept as it is in a conversion.
    """

    name: str
    modules: tuple[LoRAModule, ...]
    certificate: Certificate | None = None

    @property
    def targets(self) -> tuple[Target, ...]:
        """What the layers of the stack update."""
        return tuple(module.target for module in self.modules)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, m, n)."""
        return len(self.modules), *self.modules[0].shape

    @property
    def stack(self) -> LoRAStack:
        """The updates as one stack on NumPy, built anew each time it is read."""
        return self.to_stack()

    @property
    def stored(self) -> int:
        """Stored entries of all factors."""
        return sum(module.stored for module in self.modules)

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        return sum(module.up.nbytes + module.down.nbytes for module in self.modules)

    @property
    def dtype(self) -> str:
        """The finest storage dtype of the factors."""
        names = {a.dtype.name for module in self.modules for a in (module.up, module.down)}
        return min(names, key=lambda name: UNIT_ROUNDOFF[name])

    def to_stack(self, backend: str = "numpy", device: str | None = None) -> LoRAStack:
        """The updates as one stack, scale inside, in float32, or float64 where any factor is.

        Args:
            backend: `numpy` or `torch`.
            device: a device of the backend.

        Raises:
            BackendError: no such backend or device.

        Cost: one copy of the group's factors.
        """
        ups, downs = zip(*(module.factors() for module in self.modules), strict=True)
        up, down = np.concatenate(ups, axis=1), np.concatenate(downs, axis=0)
        wide = np.result_type(up, down)
        ranks = tuple(factor.shape[1] for factor in ups)
        return LoRAStack(
            from_numpy(up.astype(wide, copy=False), backend=backend, device=device),
            from_numpy(down.astype(wide, copy=False), backend=backend, device=device),
            ranks,
        )


@final
@dataclass(frozen=True, eq=False)
class LoTRGroup:
    """Modules that are stored as one compressed stack, on NumPy.

    Attributes:
        name: the group.
        targets: what the layers of the stack update.
        stack: a Tucker2, and where another format was asked for or chosen a LowRankTucker2, a
            Tucker1, or a LoRAStack whose layers' ranks were cut.
        coded: the bits of which the stack's numbers are made, as a file holds them; None where
            the numbers themselves are stored.
    """

    name: str
    targets: tuple[Target, ...]
    stack: Compressed
    coded: bytes | None = None

    def __post_init__(self) -> None:
        if len(self.targets) != self.stack.shape[0]:
            raise CheckpointError(
                f"group {self.name} names {len(self.targets)} modules for "
                f"{self.stack.shape[0]} layers"
            )

    @property
    def certificate(self) -> Certificate | None:
        """What was lost."""
        return self.stack.certificate

    @property
    def stored(self) -> int:
        """Stored entries of all factors."""
        return parameter_count(self.stack)

    @property
    def nbytes(self) -> int:
        """Bytes of all factors, or of the bits that they are made of."""
        return self.stack.nbytes if self.coded is None else len(self.coded)

    @property
    def dtype(self) -> str:
        """The storage dtype of the factors; of those in bits, the one that they come back in."""
        return storage_dtype(self.stack)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, m, n)."""
        return self.stack.shape


@final
@dataclass(frozen=True, eq=False, repr=False)
class LoRAAdapter(Shown):
    """A LoRA checkpoint.

    Attributes:
        modules: the low-rank updates, in file order.
        extras: every other tensor by its key: heads, biases, embeddings.
        config: the adapter's configuration.
        config_text: the same, byte for byte as the file had it.
        source: where it was read from; None for one made in memory.
        notes: what was read otherwise than it stands in the file, a sentence each.
    """

    modules: tuple[LoRAModule, ...]
    extras: Mapping[str, RawTensor]
    config: Mapping[str, Any]
    config_text: str
    source: Path | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        updates = f"{len(self.modules)} modules, {self.parameters:,} parameters"
        return f"LoRAAdapter({updates}{_dtype_of(self)}{_source_of(self)})"

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, the others too."""
        updates = sum(module.up.nbytes + module.down.nbytes for module in self.modules)
        return updates + sum(tensor.nbytes for tensor in self.extras.values())

    @property
    def dtype(self) -> str:
        """The finest storage dtype of the factors."""
        return LoRAGroup("", self.modules).dtype

    @property
    def parameters(self) -> int:
        """Stored entries of all updates."""
        return LoRAGroup("", self.modules).stored


@final
@dataclass(frozen=True, eq=False, repr=False)
class LoTRAdapter(Shown):
    """A LoTR checkpoint: groups of modules, each stored as one compressed stack or kept as it is.

    Attributes:
        groups: the groups by name; a LoRAGroup where the LoRA's own factors were kept.
        extras: every other tensor of the adapter it came from, by its key.
        config_text: that adapter's configuration, byte for byte.
        origin: the file format and the factors' dtype it came from.
        source: where it was read from; None for one made in memory.
        digests: whether its file tells damage by digests; None where it is no file of ours.
    """

    groups: Mapping[str, LoTRGroup | LoRAGroup]
    extras: Mapping[str, RawTensor]
    config_text: str
    origin: Mapping[str, Any]
    source: Path | None = None
    digests: bool | None = None

    @staticmethod
    def of_lora(
        lora: LoRAAdapter, groups: Mapping[str, LoTRGroup | LoRAGroup], group_by: str
    ) -> "LoTRAdapter":
        """What was made of a LoRA's groups by some rule, with all else that the LoRA has."""
        origin = {"format": "peft-lora", "dtype": lora.dtype, "group_by": group_by}
        return LoTRAdapter(groups, lora.extras, lora.config_text, origin)

    def __repr__(self) -> str:
        updates = f"{len(self.groups)} groups, {self.parameters:,} parameters"
        head = f"LoTRAdapter({updates}{_dtype_of(self)}{_source_of(self)})"
        return lines_of(head, (_line(group) for group in self.groups.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, the others too."""
        updates = sum(group.nbytes for group in self.groups.values())
        return updates + sum(tensor.nbytes for tensor in self.extras.values())

    @property
    def dtype(self) -> str:
        """The finest storage dtype of the groups."""
        names = {group.dtype for group in self.groups.values()}
        return min(names, key=lambda name: UNIT_ROUNDOFF[name])

    @property
    def parameters(self) -> int:
        """Stored entries of all groups."""
        return sum(group.stored for group in self.groups.values())

    @property
    def coded(self) -> tuple[str, ...]:
        """The names of the groups that are stored in bits."""
        return tuple(name for name, group in self.groups.items() if is_coded(group))


def is_coded(group: LoTRGroup | LoRAGroup) -> bool:
    """Whether a group is stored in bits."""
    return isinstance(group, LoTRGroup) and group.coded is not None


def _dtype_of(adapter: "Adapter") -> str:
    empty = isinstance(adapter, LoTRAdapter) and not adapter.groups
    return "" if empty or adapter.parameters == 0 else f", {adapter.dtype}"


def _source_of(adapter: "Adapter") -> str:
    return "" if adapter.source is None else f", from {printable(str(adapter.source))}"


def _line(group: LoTRGroup | LoRAGroup) -> str:
    layers, m, n = group.shape
    kind = "LoRA as it was" if isinstance(group, LoRAGroup) else type(group.stack).__name__
    lost = group.certificate
    error = "" if lost is None else f", relative error {lost.relative_error:.3g}"
    kind += ", coded" if is_coded(group) else ""
    return f"{printable(group.name)}: {layers} x {m}x{n}, {kind}{error}"


Adapter: TypeAlias = LoRAAdapter | LoTRAdapter
"""An adapter as a file holds it."""
