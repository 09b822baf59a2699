"""Adapters merged into one LoRA adapter, module by module, on factors and cores."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import UNIT_ROUNDOFF, require_dtype
from lotr_tn.adapters.adapter import Adapter, LoRAAdapter, LoRAModule, Target
from lotr_tn.adapters.as_lora import as_dtype, fits_float16, portable_lora
from lotr_tn.adapters.base_models import base_model_of, require_same_base
from lotr_tn.adapters.own_factors import no_update
from lotr_tn.adapters.storage import storage_dtype_for
from lotr_tn.conversion.carried import carried
from lotr_tn.conversion.merging_modules import Bases, ModuleUpdates, updates_of
from lotr_tn.decompose.gauges import require_count
from lotr_tn.decompose.merging import (
    MergeMethod,
    exact_rank,
    merged_core,
    require_merging,
    require_slerp,
    require_weights,
    slerp_coefficients,
)
from lotr_tn.errors import FormatError, OptionError, listed, meant
from lotr_tn.formats import LoRAStack
from lotr_tn.formats.certificate import ratio
from lotr_tn.linalg import RelativeError, smallest_rank
from lotr_tn.linalg.factor import svd
from lotr_tn.linalg.ranks import epsilon_of, tail_energies
from lotr_tn.ops import layer_distances


@final
@dataclass(frozen=True)
class MergedModule:
    """One module of a merged adapter.

    Attributes:
        name: its path.
        rank: the rank that was kept, before modules are filled up to one rank.
        exact_rank: the rank that the merged update has.
        norm: ‖ΔW‖ of the merged update.
        distance: ‖ΔW − ΔŴ‖ for ΔŴ as stored.
    """

    name: str
    rank: int
    exact_rank: int
    norm: float
    distance: float

    @property
    def relative_error(self) -> float:
        """‖ΔW − ΔŴ‖ / ‖ΔW‖."""
        return ratio(self.distance, self.norm)


@final
@dataclass(frozen=True, eq=False)
class Merged:
    """Several adapters merged into one.

    Attributes:
        adapter: the LoRA adapter, scale inside, in the form that every loader reads alike.
        method: how they were merged.
        weights: the weight of each adapter that took part, by name.
        coefficients: what its updates were multiplied with; for slerp not the weights.
        modules: each module, in the order in which the adapters name them.
        dtype: storage dtype of the factors.
        asked: the relative error that was allowed, or None.
    """

    adapter: LoRAAdapter
    method: MergeMethod
    weights: Mapping[str, float]
    coefficients: Mapping[str, float]
    modules: tuple[MergedModule, ...]
    dtype: str
    asked: float | None = None

    @property
    def norm(self) -> float:
        """‖T‖ of the merged update, over all modules."""
        return _root_sum_squares(module.norm for module in self.modules)

    @property
    def relative_error(self) -> float:
        """‖T − T̂‖ / ‖T‖, measured on what is stored."""
        return ratio(_root_sum_squares(m.distance for m in self.modules), self.norm)

    @property
    def met(self) -> bool:
        """Whether the relative error is within what was allowed."""
        return not self.asked or self.relative_error <= self.asked


@door
def merge_adapters(
    adapters: Mapping[str, Adapter],
    weights: Mapping[str, float] | None = None,
    *,
    method: MergeMethod = "linear",
    density: float = 1.0,
    seed: int = 0,
    rank: int | None = None,
    rule: RelativeError | None = None,
    extras_from: str | None = None,
    dtype: str = "auto",
    any_base: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Merged:
    """Several adapters of one base as one LoRA adapter.

    Each module's updates are merged as `merge` does; an adapter that lacks a module makes no update
    there. For "slerp" the angle is that between both adapters, over all modules. Factors that
    adapters share, which are the very same arrays, are taken once: then only cores are added, and
    the one new core is multiplied out.

    Args:
        adapters: by name; read only where the weight is not zero.
        weights: of some or all adapters, 0 for the others. Left out, 1/N each; 1 each for "ties"
            and "dare-ties", which take a mean themselves.
        method: "linear", "ties", "dare", "dare-ties" or "slerp".
        density: as for `merge`.
        seed: of the draws of "dare", which depend on it and on a module's path alone.
        rank: the largest rank that a module keeps; what is exact where left out.
        rule: in place of `rank`, the smallest common rank whose relative error over all
            modules, measured on what is stored, is at most this.
        extras_from: whose other tensors (heads, biases) and configuration to keep, by name, or
            "none". Left out, they must be equal in all adapters.
        dtype: storage dtype, or `auto`: float32, or float64 where an adapter has it; with
            `rule` the adapters' own where its rounding is invisible beside the error.
        any_base: whether differing names of the base model are let through.
        progress: called with each module's path before it is merged.

    Returns:
        The adapter, which `save_adapter` writes as a PEFT folder, and what was measured.

    Raises:
        OptionError: an option makes no sense, or a name belongs to no adapter.
        CheckpointError: adapters name different base models, modules of one path differ in shape
            or layout, or other tensors differ.
        FormatError: "slerp" of opposite adapters, an entry too large for float16, or updates
            so small that they are zero in the dtype.

    Cost: O((m + n)·R²) flops a module for the summed rank R of the factors that differ, and
    O(L·r1·r2) for each that L adapters share; for "ties" and "dare" also L·K1·K2 numbers. Memory
    of one module, and of the merged factors; with `rule` these in float64.
    """
    require_merging(method, density, seed)
    _require_cut(rank, rule, dtype)
    chosen = _weights_of(adapters, weights, method)
    used = {name: adapters[name] for name in chosen}
    if not any_base:
        _require_one_base(used)
    extras, config = carried(adapters, used, extras_from, any_base=any_base)
    job = _Merging(method, density, seed, _dtype_for(used.values(), dtype, rule), Bases())
    modules = updates_of(used)
    coefficients = job.coefficients(modules, chosen)
    found = job.merged(modules, coefficients, progress)
    if rule is None:
        stored, kept = job.dtype, [_Kept.of(one, rank, job.dtype) for one in found]
        if dtype == "auto" and _vanished(kept, stored):
            stored, job = "float64", replace(job, dtype="float64")
            again = job.merged(modules, coefficients, None)
            kept = [_Kept.of(one, rank, stored) for one in again]
    else:
        stored, kept = _within(list(found), rule.epsilon, job.dtype, may_widen=dtype == "auto")
    if vanished := _vanished(kept, stored):
        raise FormatError(
            f"the merged update of {vanished.name} is of norm {vanished.norm:.3g}, whose factors "
            f"are zero in {stored}: give larger weights, or a wider dtype"
        )
    export = portable_lora([one.module for one in kept], config, extras, dtype=stored)
    figures = tuple(one.figures for one in kept)
    return Merged(
        export.adapter, method, chosen, coefficients, figures, stored, rule and rule.epsilon
    )


def _require_one_base(adapters: Mapping[str, Adapter]) -> None:
    named = [(name, base_model_of(adapter)) for name, adapter in adapters.items()]
    known = [(name, base) for name, base in named if base]
    for other in known[1:]:
        require_same_base(known[0], other)


@dataclass(frozen=True)
class _Found:
    """One merged update up @ down in its exact rank, float64."""

    target: Target
    up: np.ndarray  # (m, k)
    down: np.ndarray  # (k, n)
    values: np.ndarray  # (k,) its singular values

    @property
    def rank(self) -> int:
        return self.values.size


@dataclass(frozen=True)
class _Kept:
    """What is stored of a merged update, and its figures."""

    module: LoRAModule
    figures: MergedModule

    @property
    def vanished(self) -> bool:
        """Whether an update that is not zero is stored as zero."""
        return self.figures.norm > 0 and not (self.module.up.any() and self.module.down.any())

    @staticmethod
    def of(found: _Found, rank: int | None, dtype: str) -> "_Kept":
        """At most `rank` leading terms in a storage dtype, measured."""
        target, most = found.target, found.rank
        kept = most if rank is None else min(rank, most)
        norm = math.hypot(*found.values)
        figures = MergedModule(target.name, kept, most, norm, 0.0)
        if most == 0:
            return _Kept(no_update(target, len(found.up), found.down.shape[1]), figures)
        cut = LoRAModule(replace(target, rank=kept), found.up[:, :kept], found.down[:kept])
        stored = as_dtype(cut, dtype)
        exact = LoRAStack(found.up, found.down, (most,))
        up, down = stored.up.astype(np.float64), stored.down.astype(np.float64)
        distance = float(layer_distances(exact, LoRAStack(up, down, (kept,)))[0])
        return _Kept(stored, replace(figures, distance=distance))


@dataclass(frozen=True)
class _Merging:
    """One merging: how, and in which dtype the result is stored."""

    method: MergeMethod
    density: float
    seed: int
    dtype: str
    bases: Bases

    def coefficients(
        self, modules: Mapping[str, ModuleUpdates], weights: Mapping[str, float]
    ) -> dict[str, float]:
        """What each adapter's updates are multiplied with."""
        if self.method != "slerp":
            return dict(weights)
        require_slerp([*weights.values()])
        names, grams = list(weights), np.zeros((2, 2))
        for updates in modules.values():
            places = [names.index(name) for name in updates.by_adapter]
            grams[np.ix_(places, places)] += updates.reduced(self.bases).gram()
        norms = float(grams[0, 0]) ** 0.5, float(grams[1, 1]) ** 0.5
        found = slerp_coefficients([*weights.values()], norms, float(grams[0, 1]))
        return dict(zip(weights, found, strict=True))

    def merged(
        self,
        modules: Mapping[str, ModuleUpdates],
        coefficients: Mapping[str, float],
        progress: Callable[[str], None] | None,
    ) -> Iterator[_Found]:
        """Every module's merged update, one at a time."""
        for name, updates in modules.items():
            if progress is not None:
                progress(name)
            yield self._one(updates, [coefficients[adapter] for adapter in updates.by_adapter])

    def _one(self, updates: ModuleUpdates, weights: Sequence[float]) -> _Found:
        reduced, path = updates.reduced(self.bases), updates.target.name.encode()
        if self.method in ("linear", "slerp"):
            core = reduced.total(weights)
        else:
            core = merged_core(
                reduced.small(),
                weights,
                method=self.method,
                density=self.density,
                entropy=[self.seed, int.from_bytes(hashlib.sha256(path).digest()[:8])],
                wide=reduced.wide,
            )
        if 0 in core.shape:
            core = np.zeros((core.shape[0], core.shape[1]))
            u, s, vt = core[:, :0], np.zeros(0), core[:0]
        else:
            u, s, vt = svd(core, xp=xp)
        rank = exact_rank(s, reduced.noise(weights), self.dtype)
        root = np.sqrt(s[:rank])
        up, down = (
            reduced.left @ (u[:, :rank] * root),
            (root[:, None] * vt[:rank]) @ reduced.right.T,
        )
        return _Found(updates.target, up, down, s[:rank])


def _vanished(kept: Sequence[_Kept], dtype: str) -> MergedModule | None:
    """The largest update that a dtype stores as zero, where that counts in the whole."""
    lost = [one.figures for one in kept if one.vanished]
    whole = _root_sum_squares(one.figures.norm for one in kept)
    if _root_sum_squares(one.norm for one in lost) <= UNIT_ROUNDOFF[dtype] * whole:
        return None
    return max(lost, key=lambda one: one.norm)


def _within(
    found: list[_Found], epsilon: float, dtype: str, *, may_widen: bool
) -> tuple[str, list[_Kept]]:
    """The smallest common rank that keeps to an error, as stored; or all there is."""
    most = max(one.rank for one in found)
    lost = np.zeros(most + 1)
    for one in found:
        tails = tail_energies(one.values)
        lost[: tails.size] += tails
    rank = smallest_rank(lost, epsilon**2 * lost[0])
    while True:
        kept = [_Kept.of(one, rank, dtype) for one in found]
        if may_widen and dtype == "float16" and not all(fits_float16(one.module) for one in kept):
            dtype = "float32"
            continue
        if may_widen and dtype != "float64" and _vanished(kept, dtype):
            dtype = "float64"
            continue
        distance = _root_sum_squares(one.figures.distance for one in kept)
        if rank == most or distance <= epsilon * lost[0] ** 0.5:
            return dtype, kept
        rank += 1  # rounding to the dtype took what was left


def _dtype_for(adapters: Iterable[Adapter], dtype: str, rule: RelativeError | None) -> str:
    if dtype != "auto":
        return dtype
    own = min((adapter.dtype for adapter in adapters), key=lambda name: UNIT_ROUNDOFF[name])
    return storage_dtype_for(own, rule or RelativeError(0))


def _require_cut(rank: int | None, rule: RelativeError | None, dtype: str) -> None:
    if rule is not None:
        epsilon_of(rule)
    if rank is not None and rule is not None:
        raise OptionError("give a rank or an error, and not both: each says how much to keep")
    if rank is not None:
        require_count("rank", rank, 1)
    require_dtype(dtype, "auto")


def _weights_of(
    adapters: Mapping[str, Adapter], weights: Mapping[str, float] | None, method: str
) -> dict[str, float]:
    """The weights that are not zero, by name, in the order of the adapters."""
    names = list(adapters)
    if not names:
        raise OptionError("there is no adapter to merge; name at least one")
    if weights is None:
        return dict.fromkeys(names, 1.0 if method in ("ties", "dare-ties") else 1 / len(names))
    for name in weights:
        if name not in names:
            raise OptionError(
                f"there is no adapter {name!r} to weigh; there are {listed(names)}"
                f"{meant(name, names)}"
            )
    given = [weights.get(name, 0.0) for name in names]
    checked = dict(zip(names, require_weights(given, len(names)), strict=True))
    if method == "slerp" and len(names) == 2:
        return checked
    used = {name: weight for name, weight in checked.items() if weight != 0}
    if not used:
        raise OptionError("all weights are zero, so nothing would be left; give one another weight")
    return used


def _root_sum_squares(values: Iterable[float]) -> float:
    return math.hypot(*values)
