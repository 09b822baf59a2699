"""New adapters for a bank, without a change to those it holds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn._arguments import door
from lotr_tn.adapters.adapter import Adapter, LoRAAdapter, LoRAGroup, LoRAModule
from lotr_tn.adapters.as_lora import as_lora_adapter
from lotr_tn.adapters.base_models import base_model_in, base_model_of, require_same_base
from lotr_tn.adapters.paths import require_common, shapes_of
from lotr_tn.adapters.storage import storage_dtype_for
from lotr_tn.banks.bank import Bank
from lotr_tn.banks.changing.coding import Newcomer, in_bits, lost_by
from lotr_tn.banks.changing.ways import Way, cheapest, ways_of
from lotr_tn.banks.contents import Contents
from lotr_tn.banks.file import bank_size, load_bank, save_bank
from lotr_tn.banks.group import ADAPTER, BankGroup, Part, exact_stack
from lotr_tn.banks.making.survey import (
    bank_adapter,
    require_modules,
    require_same_module,
)
from lotr_tn.banks.stored import StoredLayers
from lotr_tn.decompose.extension import Extension, extension_of
from lotr_tn.errors import CheckpointError
from lotr_tn.files.bank_tensor import BankTensor
from lotr_tn.files.locking import exclusive
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.factor import qr
from lotr_tn.linalg.ranks import RelativeError
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.moving import astype
from lotr_tn.ops.norms import layer_norms

ATTEMPTS = 4
"""Times that an adapter is stored anew when what is measured is above what was asked."""


METHOD = "projection"
"""What a part says of how its layers were found."""


@dataclass(frozen=True, eq=False)
class Appended:
    """A bank with new adapters.

    Attributes:
        bank: the bank, opened again.
        names: the new adapters.
        bytes_before: of the file.
        bytes_after: of the file.
        new_directions: columns that were added to bases.
        met: whether every new adapter keeps to the error.
        shared: of each new adapter the share of its squared norm that lay in the bank's bases.
    """

    bank: Bank
    names: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    new_directions: int
    met: bool
    shared: tuple[float, ...] = ()


@door
def add_adapters(
    path: str | Path,
    adapters: Mapping[str, Adapter],
    *,
    rule: RelativeError | None = None,
    any_base: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Appended:
    """Add adapters to a bank; every adapter that it holds comes out as before, bit for bit.

    Each new one is projected on the bases. Where that leaves too much, the strongest directions
    that the bases lack are added to them, or the layer gets factors of its own: what takes fewest
    bytes over all modules within the adapter's error.

    Args:
        path: the bank; it is replaced when everything is written, and meanwhile locked.
        adapters: by name; one at a time is in memory.
        rule: the error of each new adapter; the one that the bank was made for where left out.
        any_base: whether another name of the base model is let through.
        progress: called with each name.

    Raises:
        CheckpointError: a name is taken, an adapter does not fit the bank, or the bank is being
            changed by another process; then nothing was changed.
        OptionError: no error was given, and the bank was not made for one.

    Cost: for each module O((m + n)·(k + r)²) flops for bases of k directions; the file is copied.
    """
    before = Path(path)
    with exclusive(before) as real:
        bank = load_bank(real)
        epsilon = bank.error_asked(rule, "new adapters may have").epsilon
        size, met, directions = real.stat().st_size, True, 0
        shared: list[float] = []
        for name in adapters:
            if progress is not None:
                progress(name)
            if name in bank:
                raise CheckpointError(
                    f"{bank.source} holds an adapter {name!r} already; give the new one another "
                    "name"
                )
            lora = as_lora_adapter(adapters[name])
            require_modules(name, lora)
            if not any_base:
                known = bank.names[0], base_model_in(bank.config_text(bank.names[0]))
                require_same_base(known, (name, base_model_of(lora)))
            known = {
                path: (str(before), group.shape)
                for group in bank.groups.values()
                for path, _ in group.modules
            }
            require_common(known, name, shapes_of(lora))
            bank, error, added, share = _Addition(bank, name, lora, epsilon).appended()
            shared.append(share)
            met, directions = met and error <= epsilon, directions + added
        save_bank(bank, real, force=True)
    return Appended(
        load_bank(before),
        tuple(adapters),
        size,
        before.stat().st_size,
        directions,
        met,
        tuple(shared),
    )


@dataclass(frozen=True, eq=False)
class _Task:
    """Some modules of a new adapter, and the group that they go into."""

    group: BankGroup
    modules: tuple[LoRAModule, ...]
    places: tuple[int, ...]  # of the modules in the group
    stack: LoRAStack  # float64
    extension: Extension | None
    dtype: str  # of the group's bases
    ways: tuple[Way, ...]

    def where(self, place: int) -> np.ndarray:
        """(L, 3) adapter, module of the group, and rank of each layer of the adapter there."""
        pairs = zip(self.places, self.modules, strict=True)
        return np.array([(place, at, module.target.rank) for at, module in pairs])


@dataclass(frozen=True, eq=False)
class _Addition:
    """One adapter that is appended."""

    bank: Bank
    name: str
    lora: LoRAAdapter
    epsilon: float

    def appended(self) -> tuple[Bank, float, int, float]:
        """The bank with the adapter, its error, how many directions were added, what it shares."""
        tasks = list(self._tasks())
        energy = sum(float((layer_norms(task.stack) ** 2).sum()) for task in tasks)
        allowed, best = self.epsilon**2 * energy, None
        for _ in range(ATTEMPTS):
            picks = cheapest([task.ways for task in tasks], allowed)
            stored = [_stored(task, way) for task, way in zip(tasks, picks, strict=True)]
            lost = sum(float((one.distances**2).sum()) for one in stored)
            best = stored, picks, lost
            excess = lost - self.epsilon**2 * energy
            if excess <= 0:
                break
            allowed = max(allowed - 1.5 * excess, 0.0)
        assert best is not None
        stored, picks, lost = best
        bank, new = self._joined(tasks, picks, stored), sum(sum(way.new) for way in picks)
        if (coded := self._in_bits(tasks, energy)) is not None:
            in_numbers = lost <= self.epsilon**2 * energy and bank_size(bank) < bank_size(coded[0])
            bank, lost, new = (bank, lost, new) if in_numbers else coded
        error = (lost / energy) ** 0.5 if energy else 0.0
        outside = sum(_outside(task) for task in tasks)
        share = max(0.0, 1 - outside / energy) if energy else 1.0
        return bank, error, new, share

    def _in_bits(self, tasks: Sequence[_Task], energy: float) -> tuple[Bank, float, int] | None:
        """The bank with the adapter in bits, its squared error, and how many directions were added.

        None where the bank has numbers, or where no step is fine enough.
        """
        if not self.bank.in_bits:
            return None
        place = len(self.bank.adapters)
        newcomers = [
            Newcomer(task.group, task.where(place), task.stack, task.extension) for task in tasks
        ]
        found = in_bits(newcomers, self.epsilon**2 * energy)
        if found is None:
            return None
        groups, new = dict(self.bank.groups), 0
        for task, (group, part) in zip(tasks, found, strict=True):
            groups[group.name] = replace(group, parts=_with_part(task.group.parts, part))
            before = len(task.group.outputs)
            new += sum(x.shape[1] for x in (*group.outputs[before:], *group.inputs[before:]))
        lost = lost_by(part for _, part in found)
        return replace(self._entered, groups=groups), lost, new

    def _tasks(self) -> Iterator[_Task]:
        """The adapter's modules by the groups that they go into."""
        own = storage_dtype_for(self.lora.dtype, RelativeError(self.epsilon))
        by_group: dict[str, list[LoRAModule]] = {}
        for module in self.lora.modules:
            by_group.setdefault(self._group_of(module), []).append(module)
        for name, modules in by_group.items():
            group = self.bank.groups.get(name) or _empty_group(name, modules, self.cluster)
            known = [path for path, _ in group.modules]
            ordered = sorted(modules, key=lambda module: known.index(module.target.name))
            places = tuple(known.index(module.target.name) for module in ordered)
            lora = LoRAGroup(name, tuple(ordered))
            stack = exact_stack(lora)
            extension, dtype = None, own
            if group.outputs:
                u, v = (group.basis(side, len(group.outputs)) for side in ("outputs", "inputs"))
                extension, dtype = extension_of(u, v, stack), u.dtype.name
            ways = tuple(ways_of(stack, lora, extension, dtype, own))
            yield _Task(group, tuple(ordered), places, stack, extension, dtype, ways)

    @cached_property
    def captured(self) -> Mapping[str, Mapping[str, float]]:
        """For each module its groups, with how much of its squared norm lies in their bases."""
        groups = self.bank.groups.values()
        layouts = {group.name: dict(group.modules) for group in groups}
        clustered = len({group.cluster for group in groups}) > 1
        bases: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        found: dict[str, dict[str, float]] = {}
        for module in self.lora.modules:
            name = module.target.name
            having = [group for group in groups if name in layouts[group.name]]
            mine = found.setdefault(name, {})
            for group in having:
                known = str(self.bank.source), group.shape, layouts[group.name][name]
                require_same_module(module, self.name, *known)
                mine[group.name] = 0.0
                if clustered or len(having) > 1:
                    if group.name not in bases:
                        bases[group.name] = _orthonormal(group)
                    mine[group.name] = _inside(*bases[group.name], module)
        return found

    @cached_property
    def cluster(self) -> int:
        """The cluster whose bases hold most of the adapter; the first of several."""
        best: dict[tuple[int, str], float] = {}
        for module, groups in self.captured.items():
            for name, energy in groups.items():
                key = self.bank.groups[name].cluster, module
                best[key] = max(best.get(key, 0.0), energy)
        sums = {adapter.cluster: 0.0 for adapter in self.bank.adapters}
        for (cluster, _), energy in best.items():
            sums[cluster] = sums.get(cluster, 0.0) + energy
        return max(sorted(sums), key=lambda cluster: sums[cluster])

    def _group_of(self, module: LoRAModule) -> str:
        """The group for a module: of those of the cluster, the one whose bases hold most of it."""
        path, groups = module.target.name, self.bank.groups
        mine = {
            name: energy
            for name, energy in self.captured[path].items()
            if groups[name].cluster == self.cluster
        }
        if mine:
            return max(mine, key=lambda name: mine[name])
        fresh = path
        while fresh in groups:  # of another cluster
            fresh += f"@{self.cluster}"
        return fresh

    def _joined(
        self, tasks: Sequence[_Task], picks: Sequence[Way], stored: Sequence[StoredLayers]
    ) -> Bank:
        place = len(self.bank.adapters)
        groups = dict(self.bank.groups)
        for task, way, one in zip(tasks, picks, stored, strict=True):
            group = groups.get(task.group.name, task.group)
            groups[group.name] = _with_layers(group, task, way, one, place)
        return replace(self._entered, groups=groups)

    @cached_property
    def _entered(self) -> Bank:
        """The bank with all of the adapter but its layers; other tensors are packed but once."""
        contents = Contents.of(self.bank.contents, packs=self.bank.in_bits)
        adapter = bank_adapter(self.name, self.lora, contents, None, self.cluster)
        adapters = (*self.bank.adapters, adapter)
        return replace(self.bank, adapters=adapters, contents=tuple(contents.tensors))


def _outside(task: _Task) -> float:
    """The squared norm of an adapter's layers that its group's bases do not hold."""
    if task.extension is not None:
        return float(task.extension.lost[0, 0])
    return float((layer_norms(task.stack) ** 2).sum())


def _empty_group(name: str, modules: Sequence[LoRAModule], cluster: int) -> BankGroup:
    """A group for modules that no adapter of the cluster has."""
    places = tuple((module.target.name, module.target.layout) for module in modules)
    return BankGroup(name, modules[0].shape, places, (), (), (), cluster)


def _orthonormal(group: BankGroup) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal bases of what a group's bases span."""
    if not group.outputs:
        return np.zeros((group.shape[0], 0)), np.zeros((group.shape[1], 0))
    bases = (group.basis(side, len(group.outputs)) for side in ("outputs", "inputs"))
    u, v = (qr(basis, xp=xp)[0] for basis in bases)
    return u, v


def _inside(u: np.ndarray, v: np.ndarray, module: LoRAModule) -> float:
    """‖UUᵀ ΔW VVᵀ‖²; where there is one side alone, as if the other held the same share."""
    x = exact_stack(LoRAGroup("", (module,)))
    up, down = np.asarray(x.up), np.asarray(x.down)
    whole = float(((up.T @ up) * (down @ down.T)).sum())
    sides = int(u.shape[1] > 0) + int(v.shape[1] > 0)
    if not sides or whole <= 0:
        return 0.0
    up = u.T @ up if u.shape[1] else up
    down = down @ v if v.shape[1] else down
    inside = float(((up.T @ up) * (down @ down.T)).sum())
    return inside if sides == 2 else inside**2 / whole


def _stored(task: _Task, way: Way) -> StoredLayers:
    norms = np.asarray(layer_norms(task.stack))
    if way.make is None:
        return StoredLayers.of_loras(LoRAGroup(task.group.name, task.modules), norms, METHOD)
    made = way.make(way)
    distances = np.asarray(layer_distances(task.stack, astype(made, "float64")))
    return StoredLayers.of_stack(made, distances, norms, METHOD)


def _with_layers(
    group: BankGroup, task: _Task, way: Way, stored: StoredLayers, place: int
) -> BankGroup:
    """A group with an adapter's layers, and with the directions that they added."""
    if task.extension is not None and any(way.new):
        outputs, inputs = map(BankTensor.of, task.extension.directions(*way.new, task.dtype))
        group = replace(group, outputs=(*group.outputs, outputs), inputs=(*group.inputs, inputs))
    part = stored.part(task.where(place), len(group.outputs), BankTensor.of)
    return replace(group, parts=_with_part(group.parts, part))


def _with_part(parts: tuple[Part, ...], new: Part) -> tuple[Part, ...]:
    """The parts with another one; it continues one of the same format, bases and dtype."""
    for at, part in enumerate(parts):
        dtypes = {name: tensor.entry.code for name, tensor in part.tensors.items()}
        others = {name: tensor.entry.code for name, tensor in new.tensors.items()}
        alike = (part.format, part.segments) == (new.format, new.segments) and dtypes == others
        if alike and part.index[-1, ADAPTER] < new.index[0, ADAPTER]:
            tensors = {name: part.tensors[name].continued(new.tensors[name]) for name in others}
            joined = replace(
                part,
                tensors=tensors,
                index=np.concatenate([part.index, new.index]),
                figures=np.concatenate([part.figures, new.figures]),
            )
            return (*parts[:at], joined, *parts[at + 1 :])
    return (*parts, new)
