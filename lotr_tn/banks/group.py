"""The stacked updates of a group of modules, in bases that adapters share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np

from lotr_tn._arrays import is_finite
from lotr_tn.adapters.adapter import Compressed, Layout, LoRAGroup, LoRAModule, Target
from lotr_tn.analysis.forms import FORMS, FormatName, form_of
from lotr_tn.banks.coded import (
    CODED,
    DTYPE,
    CodedBasis,
    CodedLayers,
    decoded_cores,
    decoded_pairs,
)
from lotr_tn.banks.layout import stack_of_rows, widened
from lotr_tn.coding.cores import levels_of
from lotr_tn.errors import CheckpointError, FormatError
from lotr_tn.files.bank_tensor import BankTensor
from lotr_tn.formats import Certificate, LoRAStack

ADAPTER, MODULE, RANK, TERMS, LENGTH = range(5)
"""Columns of a part's index."""

DISTANCE, NORM, DRIFT, SCALE = range(4)
"""Columns of a part's figures."""


@final
@dataclass(frozen=True, eq=False)
class Part:
    """Layers in one form, in the first columns of their group's bases."""

    format: FormatName  # the form's name
    segments: int  # how many segments of the group's bases it uses
    method: str  # how it was found
    # `core` (L, r1, r2); `own` (L, m or n, r); or `up` (K, m or r1) and `down` (K, n or r2), a row
    # for each rank term, so that each layer's rows lie together; or, in bits, `coded`, the bytes of
    # all layers
    tensors: Mapping[str, BankTensor]
    # (L, 5) whole numbers: adapter, module of the group, the rank that the LoRA had, the rank terms
    # stored, and in bits how many bytes; sorted by adapter, then module
    index: np.ndarray
    # (L, 4): ‖ΔW − ΔŴ‖ as measured against the original, ‖ΔW‖, what later changes added at most,
    # and the scale of a LoRA that is kept as it is
    figures: np.ndarray

    @property
    def is_coded(self) -> bool:
        """Whether it is in bits."""
        return CODED in self.tensors

    @property
    def names(self) -> tuple[str, ...]:
        """What its tensors are called."""
        return (CODED,) if self.is_coded else FORMS[self.format].own

    @property
    def layers(self) -> CodedLayers:
        """Its layers in bits."""
        return CodedLayers(self.tensors[CODED], self.index[:, LENGTH])

    @property
    def dtypes(self) -> set[str]:
        """Those of its numbers."""
        if self.is_coded:
            return {DTYPE}
        return {tensor.dtype for tensor in self.tensors.values()}

    def per_term(self, name: str) -> bool:
        """Whether a tensor has a row for each rank term, not for each layer."""
        return FORMS[self.format].per_term(name)

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
        if self.is_coded:
            return total + self.index[:, LENGTH]
        for name, tensor in self.tensors.items():
            each = tensor.entry.nbytes / max(tensor.shape[0], 1)
            total += each * (self.index[:, TERMS] if self.per_term(name) else 1)
        return total

    def arrays(self, rows: slice) -> dict[str, np.ndarray]:
        """The tensors of some layers, as views."""
        found = {}
        for name, tensor in self.tensors.items():
            terms = slice(int(self.ends[rows.start]), int(self.ends[rows.stop]))
            found[name] = tensor.array[terms if self.per_term(name) else rows]
        return found


@final
@dataclass(frozen=True, eq=False)
class BankGroup:
    """Modules of one shape whose updates, of all adapters, are stacked."""

    name: str
    shape: tuple[int, int]  # (m, n)
    modules: tuple[tuple[str, Layout], ...]  # path and layout of each module
    # segments (m, k) of the output basis; a later one continues an earlier one
    outputs: tuple[BankTensor, ...]
    inputs: tuple[BankTensor, ...]  # segments (n, k) of the input basis, as many
    parts: tuple[Part, ...]
    cluster: int = 0  # the adapters that it is for

    @property
    def tensors(self) -> list[BankTensor]:
        """Bases and own numbers."""
        own = [tensor for part in self.parts for tensor in part.tensors.values()]
        return [*self.outputs, *self.inputs, *own]

    @cached_property
    def _joined(self) -> dict[tuple[str, int], np.ndarray]:
        return {}

    def basis(self, side: str, segments: int) -> np.ndarray:
        """The first segments of one side, `outputs` or `inputs`: one array for all who ask."""
        known = self._joined.get((side, segments))
        if known is None:
            with self._named():
                arrays = [tensor.array for tensor in getattr(self, side)[:segments]]
            known = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)
            if not is_finite(known):
                raise CheckpointError(f"the bases of {self.name} hold NaN or infinite entries")
            self._joined[side, segments] = known
        return known

    def stack(self, part: Part, rows: slice) -> Compressed | LoRAGroup:
        """Some layers of a part as a stack, certified; views of the file."""
        arrays = self._decoded(part, rows) if part.is_coded else part.arrays(rows)
        for name, array in arrays.items():
            if not is_finite(array):
                raise CheckpointError(f"{name} of {self.name} holds NaN or infinite entries")
        certificate = _certificate(part, rows)
        form = FORMS[part.format]
        if form.kept:
            return LoRAGroup(self.name, self._loras(part, rows, arrays), certificate)
        bases = self.bases(part.segments) if part.segments else {}
        terms = tuple(int(k) for k in part.index[rows, TERMS])
        return stack_of_rows(form, arrays, bases, terms, certificate)

    def _decoded(self, part: Part, rows: slice) -> dict[str, np.ndarray]:
        """The tensors of some layers that are in bits; no other layer is decoded."""
        with self._named():
            if FORMS[part.format].shares:
                return decoded_cores(part.layers, rows, self.levels(part.segments))
            return decoded_pairs(part.layers, rows, self.shape, part.index[rows, TERMS])

    def levels(self, segments: int) -> np.ndarray:
        """(k1, k2) levels of cores between the first segments of both bases, which are in bits."""
        sides = (
            [one.columns for one in side[:segments] if isinstance(one, CodedBasis)]
            for side in (self.outputs, self.inputs)
        )
        return levels_of(*sides)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What is said of damaged bits names the group."""
        try:
            yield
        except FormatError as error:
            raise CheckpointError(f"{self.name}: {error}") from None

    def bases(self, segments: int) -> dict[str, np.ndarray]:
        """The first segments of both sides, `out` and `in`."""
        return {"out": self.basis("outputs", segments), "in": self.basis("inputs", segments)}

    def _loras(
        self, part: Part, rows: slice, arrays: Mapping[str, np.ndarray]
    ) -> tuple[LoRAModule, ...]:
        """The modules of LoRAs that are kept."""
        ends = part.ends[rows.start : rows.stop + 1] - part.ends[rows.start]
        modules = []
        for i, row in enumerate(range(rows.start, rows.stop)):
            terms, target = slice(int(ends[i]), int(ends[i + 1])), self.target(part, row)
            wide = arrays["up"][terms].T[:, : target.rank // target.layout.groups]
            scale = float(part.figures[row, SCALE])
            modules.append(LoRAModule(target, wide, arrays["down"][terms], scale))
        return tuple(modules)

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
    """A stack in the first columns of the group's bases, in all of them where it shares both."""
    form = form_of(stack)
    if len(form.shares) < 2:
        return stack
    return widened(form, stack, group.bases(len(group.outputs)))
