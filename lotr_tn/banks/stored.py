"""Layers as they will stand in a part of a bank, with what they lose."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lotr_tn.adapters.adapter import LoRAGroup, common_dtype
from lotr_tn.analysis.forms import LORA, Form, form_of
from lotr_tn.banks.group import Part
from lotr_tn.banks.layout import rows_of
from lotr_tn.files.bank_tensor import BankTensor


@dataclass(frozen=True, eq=False)
class StoredLayers:
    """Layers of one form, their own numbers in rows."""

    form: Form
    rows: dict[str, np.ndarray]  # the own arrays
    terms: np.ndarray  # (L,) rank terms of each layer; 0 where rows are layers
    scales: np.ndarray  # (L,) of LoRAs that are kept; else 1
    distances: np.ndarray  # (L,) ‖ΔW − ΔŴ‖, measured
    norms: np.ndarray  # (L,) ‖ΔW‖
    method: str  # how they were found

    @classmethod
    def of_stack(
        cls, stack: Any, distances: np.ndarray, norms: np.ndarray, method: str
    ) -> "StoredLayers":
        """Those of a compressed stack."""
        form, count = form_of(stack), len(norms)
        by_term = any(map(form.per_term, form.own))
        terms = np.asarray(form.split(tuple(form.ranks(stack)))[1] if by_term else np.zeros(count))
        return cls(form, rows_of(form, stack), terms, np.ones(count), distances, norms, method)

    @classmethod
    def of_loras(cls, group: LoRAGroup, norms: np.ndarray, method: str) -> "StoredLayers":
        """Those of LoRAs that are kept as they are, which lose nothing."""
        terms = np.array([module.target.rank for module in group.modules])
        scales = np.array([module.scale for module in group.modules])
        return cls(LORA, _lora_rows(group), terms, scales, np.zeros(len(norms)), norms, method)

    def part(
        self, where: np.ndarray, segments: int, tensor_of: Callable[[np.ndarray], BankTensor]
    ) -> Part:
        """The part that they make, in that many segments of the group's bases.

        `where` (L, 3) is adapter, module of the group, and the rank that the LoRA had.
        """
        none = np.zeros(len(self.norms))
        index = np.column_stack([where, self.terms, none]).astype(np.int64)
        figures = np.stack([self.distances, self.norms, none, self.scales], axis=1)
        tensors = {name: tensor_of(rows) for name, rows in self.rows.items()}
        used = segments if self.form.shares else 0
        return Part(self.form.name, used, self.method, tensors, index, figures)


def _lora_rows(group: LoRAGroup) -> dict[str, np.ndarray]:
    """Both factors of all modules with a row for each rank term; a grouped conv's is filled up."""
    names = {x.dtype.name for module in group.modules for x in (module.up, module.down)}
    dtype = np.dtype(common_dtype(names))
    rows = []
    for module in group.modules:
        wide = np.zeros((module.down.shape[0], module.up.shape[0]), dtype=dtype)
        wide[: module.up.shape[1]] = module.up.T
        rows.append(wide)
    downs = [module.down.astype(dtype, copy=False) for module in group.modules]
    return {"up": np.concatenate(rows), "down": np.concatenate(downs)}
