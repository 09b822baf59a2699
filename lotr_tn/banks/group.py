"""The stacked updates of a group of modules, in bases that adapters share."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np

from lotr_tn.adapters.adapter import Compressed, Layout, LoRAGroup, LoRAModule, Target
from lotr_tn.analysis.forms import FormatName
from lotr_tn.errors import CheckpointError
from lotr_tn.files.bank_tensor import BankTensor
from lotr_tn.formats import Certificate, LoRAStack, LowRankTucker2, Tucker1, Tucker2

__all__ = [
    "ADAPTER",
    "DISTANCE",
    "DRIFT",
    "MODULE",
    "NORM",
    "RANK",
    "SCALE",
    "TERMS",
    "BankGroup",
    "Part",
    "exact_stack",
    "in_whole_bases",
]

ADAPTER, MODULE, RANK, TERMS = range(4)
"""Columns of a part's index."""

DISTANCE, NORM, DRIFT, SCALE = range(4)
"""Columns of a part's figures."""


@final
@dataclass(frozen=True, eq=False)
class Part:
    """Layers in one format, in the first columns of their group's bases.

    Attributes:
        format: `lotr`, `lotr-low-rank`, `shared-in`, `shared-out`, `truncated` or `lora`.
        segments: how many segments of the group's bases it uses.
        method: how it was found.
        tensors: `core` (L, r1, r2); `own` (L, m or n, r); or `up` (K, m or r1) and `down`
            (K, n or r2), a row for each rank term, so that each layer's rows lie together.
        index: (L, 4) whole numbers: adapter, module of the group, the rank that the LoRA had, and
            the rank terms stored; sorted by adapter, then module.
        figures: (L, 4): ‖ΔW − ΔŴ‖ as measured against the original, ‖ΔW‖, what later changes added
            at most, and the scale of a LoRA that is kept as it is.
    """

    format: FormatName
    segments: int
    method: str
    tensors: Mapping[str, BankTensor]
    index: np.ndarray
    figures: np.ndarray

    @cached_property
    def ends(self) -> np.ndarray:
        """(L + 1,) where the rows of each layer's rank terms begin and end."""
        return np.concatenate([[0], np.cumsum(self.index[:, TERMS])])

    def rows_of(self, adapter: int) -> slice:
        """The layers of one adapter."""
        first, last = np.searchsorted(self.index[:, ADAPTER], [adapter, adapter + 1])
        return slice(int(first), int(last))

    @property
    def layer_bytes(self) -> np.ndarray:
        """(L,) bytes of each layer's own numbers."""
        total = np.zeros(len(self.index))
        for name, tensor in self.tensors.items():
            each = tensor.entry.nbytes / max(tensor.shape[0], 1)
            total += each * (1 if name in ("core", "own") else self.index[:, TERMS])
        return total

    def arrays(self, rows: slice) -> dict[str, np.ndarray]:
        """The tensors of some layers, as views."""
        found = {}
        for name, tensor in self.tensors.items():
            if name in ("core", "own"):
                found[name] = tensor.array[rows]
            else:
                found[name] = tensor.array[int(self.ends[rows.start]) : int(self.ends[rows.stop])]
        return found


@final
@dataclass(frozen=True, eq=False)
class BankGroup:
    """Modules of one shape whose updates, of all adapters, are stacked.

    Attributes:
        name: the group.
        shape: (m, n).
        modules: path and layout of each module.
        outputs: segments (m, k) of the output basis; a later one continues an earlier one.
        inputs: segments (n, k) of the input basis, as many.
        parts: the layers.
        cluster: the adapters that it is for.
    """

    name: str
    shape: tuple[int, int]
    modules: tuple[tuple[str, Layout], ...]
    outputs: tuple[BankTensor, ...]
    inputs: tuple[BankTensor, ...]
    parts: tuple[Part, ...]
    cluster: int = 0

    @cached_property
    def _joined(self) -> dict[tuple[str, int], np.ndarray]:
        return {}

    def basis(self, side: str, segments: int) -> np.ndarray:
        """The first segments of one side, `outputs` or `inputs`: one array for all who ask."""
        known = self._joined.get((side, segments))
        if known is None:
            arrays = [tensor.array for tensor in getattr(self, side)[:segments]]
            known = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)
            if not np.isfinite(known.astype(np.float32, copy=False)).all():
                raise CheckpointError(f"the bases of {self.name} hold NaN or infinite entries")
            self._joined[side, segments] = known
        return known

    def stack(self, part: Part, rows: slice) -> Compressed | LoRAGroup:
        """Some layers of a part as a stack, certified; views of the file."""
        arrays, count = part.arrays(rows), rows.stop - rows.start
        for name, array in arrays.items():
            if not np.isfinite(array.astype(np.float32, copy=False)).all():
                raise CheckpointError(f"{name} of {self.name} holds NaN or infinite entries")
        certificate = _certificate(part, rows)
        ranks = tuple(int(k) for k in part.index[rows, TERMS])
        u, v = (
            self.basis(side, part.segments) if part.segments else None
            for side in ("outputs", "inputs")
        )
        match part.format:
            case "lotr":
                return Tucker2(u, arrays["core"], v, certificate)
            case "lotr-low-rank":
                up, down = arrays["up"].T, arrays["down"]
                return LowRankTucker2(u, up, down, v, ranks, certificate)
            case "shared-in":
                return Tucker1(v, arrays["own"], "in", certificate)
            case "shared-out":
                return Tucker1(u, arrays["own"], "out", certificate)
            case "truncated":
                return LoRAStack(arrays["up"].T, arrays["down"], ranks, certificate)
            case "lora":
                ends = part.ends[rows.start : rows.stop + 1] - part.ends[rows.start]
                modules = []
                for i in range(count):
                    row = rows.start + i
                    terms = slice(int(ends[i]), int(ends[i + 1]))
                    target = self.target(part, row)
                    wide = arrays["up"][terms].T[:, : target.rank // target.layout.groups]
                    scale = float(part.figures[row, SCALE])
                    modules.append(LoRAModule(target, wide, arrays["down"][terms], scale))
                return LoRAGroup(self.name, tuple(modules), certificate)

    def target(self, part: Part, row: int) -> Target:
        """The module of a layer."""
        name, layout = self.modules[int(part.index[row, MODULE])]
        return Target(name, layout, int(part.index[row, RANK]))


def exact_stack(group: LoRAGroup) -> LoRAStack:
    """Modules as a stack in float64, so that no scale is rounded."""
    wide = (
        replace(module, up=module.up.astype(np.float64), down=module.down.astype(np.float64))
        for module in group.modules
    )
    return replace(group, modules=tuple(wide)).to_stack()


def _certificate(part: Part, rows: slice) -> Certificate:
    figures = part.figures[rows]
    distances = figures[:, DISTANCE] + figures[:, DRIFT]
    upper = np.float64(np.linalg.norm(distances))
    return Certificate(distances, figures[:, NORM], np.float64(0.0), upper, part.method, 0)


def in_whole_bases(group: BankGroup, stack: Compressed) -> Compressed:
    """A stack in the first columns of the group's bases, in all of them: cores filled by zeros."""
    if not isinstance(stack, Tucker2 | LowRankTucker2):
        return stack
    u, v = (group.basis(side, len(group.outputs)) for side in ("outputs", "inputs"))
    left, right = u.shape[1] - stack.u.shape[1], v.shape[1] - stack.v.shape[1]
    if isinstance(stack, Tucker2):
        return Tucker2(u, np.pad(stack.core, ((0, 0), (0, left), (0, right))), v)
    up, down = np.pad(stack.up, ((0, left), (0, 0))), np.pad(stack.down, ((0, 0), (0, right)))
    return LowRankTucker2(u, up, down, v, stack.ranks)
