"""The stacks of many adapters: which updates stand together, and how they become small.

A stack is seen whole while its rank terms are few. Beyond, its layers pass by in blocks, and what
they span is collected in orthonormal bases that grow only as the error asks for it. Either way the
result is the stack in the coordinates of its own HOSVD, from which everything is chosen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np

from lotr_tn.adapters.adapter import Layout, LoRAGroup, LoRAModule, common_dtype
from lotr_tn.adapters.stackings import LARGEST_STACK, natural
from lotr_tn.analysis.coordinates import Coordinates, coordinates_of
from lotr_tn.banks.bank import Stacking
from lotr_tn.banks.group import exact_stack
from lotr_tn.banks.making.survey import ModuleLayers, Survey
from lotr_tn.catalogue.grouping import EACH, group_paths
from lotr_tn.decompose.stack_sketch import Sketch
from lotr_tn.decompose.streaming import Bases, Block, grow, joined, project
from lotr_tn.files.spool import Slot, Spool
from lotr_tn.formats import LoRAStack, LowRankTucker2, Stack
from lotr_tn.linalg.ranks import ITEM_SIZES
from lotr_tn.ops.arithmetic import scale
from lotr_tn.ops.stacking import take_layers

Route: TypeAlias = Literal["auto", "whole", "updated", "sketch", "apart"]

WHOLE_UP_TO = 512
"""Rank terms up to which a stack is held whole: its factors, and two eigenproblems of that size."""

SMALL = 2**20
"""Numbers of a stack's factors up to which it is held whole and tried, however many its terms."""

BLOCK = 64
"""Rank terms that pass by at a time."""

PIECE = 512
"""Rank terms of the stacks into which layers that share too little are cut."""

LEFT_OUT = 1 / 2
"""Share of the squared error allowed that growing bases may leave out; the rest is for the choice
of formats and ranks. Most of what is left out would be cut off in any case."""


@dataclass(frozen=True, eq=False)
class FleetStack:
    """Updates of one shape, of many adapters."""

    name: str
    shape: tuple[int, int]  # (m, n)
    modules: tuple[ModuleLayers, ...]  # the modules
    # (L, 3) whole numbers, adapter, module and row of the module's layers, sorted
    layers: np.ndarray
    spool: Spool  # where the factors are

    @property
    def places(self) -> tuple[tuple[str, Layout], ...]:
        """Path and layout of each module."""
        return tuple((layers.name, layers.layout) for layers in self.modules)

    @property
    def adapters(self) -> np.ndarray:
        """(L,) whose each layer is."""
        return self.layers[:, 0]

    @property
    def ranks(self) -> np.ndarray:
        """(L,) ranks of the LoRAs."""
        return self._each([layers.integers[:, 1] for layers in self.modules])

    @property
    def energies(self) -> np.ndarray:
        """(L,) ‖ΔW‖²."""
        return self._each([layers.reals[:, 1] for layers in self.modules])

    def _each(self, columns: list[np.ndarray]) -> np.ndarray:
        """(L,) what the columns of all modules say of each layer."""
        starts = np.cumsum([0, *map(len, columns)])
        return np.concatenate(columns)[starts[self.layers[:, 1]] + self.layers[:, 2]]

    @property
    def dtype(self) -> str:
        """The finest dtype of the LoRAs."""
        return common_dtype({layers.dtype() for layers in self.modules})

    def by_dtype(self) -> dict[str, np.ndarray]:
        """The rows of the layers of each dtype, the finer one of both factors."""
        codes = [self._each([layers.integers[:, at] for layers in self.modules]) for at in (4, 5)]
        rows: dict[str, list[int]] = {}
        for row, pair in enumerate(zip(*codes, strict=True)):
            rows.setdefault(common_dtype({ModuleLayers.DTYPES[code] for code in pair}), []).append(
                row
            )
        return {name: np.array(found) for name, found in rows.items()}

    @property
    def stored(self) -> int:
        """Numbers that the LoRAs store."""
        return int(self._stored.sum())

    @cached_property
    def bytes(self) -> np.ndarray:
        """(L,) bytes of the LoRAs."""
        found = self._stored
        for name, rows in self.by_dtype().items():
            found[rows] *= ITEM_SIZES[name]
        return found

    @property
    def _stored(self) -> np.ndarray:
        """(L,) numbers that the LoRAs store."""
        m, n = self.shape
        groups = np.array([layers.layout.groups for layers in self.modules])
        return m * self.ranks // groups[self.layers[:, 1]] + n * self.ranks

    def lora(self, rows: slice = slice(None)) -> LoRAGroup:
        """Some layers as they were stored, read from the spool."""
        return LoRAGroup(self.name, tuple(self._modules(rows)))

    def _modules(self, rows: slice) -> Iterator[LoRAModule]:
        for _, module, row in self.layers[rows]:
            yield self.modules[module].module(int(row), self.spool)

    def blocks(self) -> Iterator[tuple[slice, LoRAStack, np.ndarray]]:
        """All layers in order, a few rank terms at a time: rows, layers without scale, scales."""
        ends, start = np.cumsum(self.ranks), 0
        while start < len(self.layers):
            before = ends[start - 1] if start else 0
            stop = max(int(np.searchsorted(ends, before + BLOCK, side="right")), start + 1)
            lora = self.lora(slice(start, stop))
            scales = np.array([module.scale for module in lora.modules])
            bare = tuple(replace(module, scale=1.0) for module in lora.modules)
            yield slice(start, stop), LoRAGroup(self.name, bare).to_stack(), scales
            start = stop

    def take(self, rows: np.ndarray, name: str) -> "FleetStack":
        """Some of the layers as a stack of its own."""
        return replace(self, layers=self.layers[rows], name=name)


def stacks_of(survey: Survey, stacking: Stacking, group_by: str = "kind") -> list[FleetStack]:
    """All updates in stacks: for each module, for each kind of modules, or for each shape."""
    known = list(survey.modules.values())
    rule = {"adapters": EACH, "layers": group_by, "all": "shape"}[stacking]
    members = group_paths([(layers.name, layers.shape) for layers in known], rule)
    return [
        _stack(name, [known[at] for at in members[name]], survey.spool)
        for name in sorted(members, key=natural)
    ]


def _stack(name: str, modules: list[ModuleLayers], spool: Spool) -> FleetStack:
    owners = [layers.integers[:, 0] for layers in modules]
    columns = [
        np.stack([own, np.full(len(own), at), np.arange(len(own))], axis=1)
        for at, own in enumerate(owners)
    ]
    layers = np.concatenate(columns)
    order = np.lexsort((layers[:, 1], layers[:, 0]))
    return FleetStack(name, modules[0].shape, tuple(modules), layers[order], spool)


@dataclass(frozen=True, eq=False)
class Goal:
    """How exact bases have to be."""

    epsilon: float  # the error that they are for; 0 where nothing may be left out
    energies: np.ndarray  # (N,) what the squared error of each adapter is relative to
    norms: np.ndarray  # (N,) ‖ΔW‖² of each adapter, all modules together
    modules: np.ndarray  # (N,) how many modules each one updates
    factors: np.ndarray  # (N,) what multiplies each adapter where all count together

    def allowed(self, fleet: FleetStack) -> np.ndarray:
        """(L,) squared norm that may be left out of each layer.

        Half of an adapter's share is spread evenly over its modules, half by their squared norms.
        """
        whose = fleet.adapters
        whole = self.norms[whose]
        parts = np.divide(fleet.energies, whole, out=np.zeros(len(whose)), where=whole > 0)
        share = (1 / self.modules[whose] + parts) / 2
        return LEFT_OUT * self.epsilon**2 * self.energies[whose] * share


@dataclass(frozen=True, eq=False)
class _Kept:
    """A stack between growing bases, spooled."""

    left: Slot
    right: Slot
    up: Slot
    down: Slot
    ranks: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ReducedStack:
    """A stack made small."""

    fleet: FleetStack
    route: str  # how it was made small: `whole`, `updated` or `sketch`
    missed: np.ndarray  # (L,) squared norm of each layer that the bases left out, measured
    kept: _Kept | None
    saved: tuple[Slot, Slot]
    slices: tuple[slice, ...] = field(repr=False)
    rows: np.ndarray | None = None  # of the kept stack, where they are not all

    def coordinates(self) -> Coordinates:
        """The stack in the coordinates of its HOSVD, read from the spool."""
        left, right = (self.fleet.spool.get(slot) for slot in self.saved)
        shape = (len(self.fleet.layers), *self.fleet.shape)
        none = np.zeros(0)
        return Coordinates(shape, self.slices, left, right, none, none)

    def stack(self, factors: np.ndarray) -> Stack:
        """The stack in float64, layer l times factors[l]."""
        if self.kept is None:
            whole: Stack = exact_stack(self.fleet.lora())
        else:
            kept = self.kept
            slots = kept.left, kept.up, kept.down, kept.right
            u, up, down, v = map(self.fleet.spool.get, slots)
            whole = LowRankTucker2(u, up, down, v, kept.ranks)
            if self.rows is not None:
                whole = take_layers(whole, self.rows.tolist())
        return scale(whole, factors.tolist())

    def take(self, adapters: np.ndarray, name: str) -> "ReducedStack | None":
        """The layers of some adapters as a stack of its own; None where they have none."""
        rows = np.flatnonzero(np.isin(self.fleet.adapters, adapters))
        if not rows.size:
            return None
        coordinates = self.coordinates().take(rows.tolist())
        put = self.fleet.spool.put
        return replace(
            self,
            fleet=self.fleet.take(rows, name),
            missed=self.missed[rows],
            saved=(put(coordinates.left), put(coordinates.right)),
            slices=coordinates.slices,
            rows=rows if self.rows is None else self.rows[rows],
        )


def reduce_stack(
    fleet: FleetStack, goal: Goal, route: Route, sketch: int, seed: int, *, most: int | None = None
) -> ReducedStack | None:
    """A stack made small, or None where growing bases needed more directions than `most`.

    The routes are `whole`; `updated`: growing bases; `sketch`: bases of a given size, found in a
    pass of their own; and `auto`: `whole` up to 512 rank terms, else `updated`. Cost: `whole`
    (m + n)·R numbers and O(R³); `updated` 16·(m + n)·k bytes and O((m + n)·k·R) flops.
    """
    if route == "auto":
        route = "whole" if is_whole(fleet) else "updated"
    if route in ("whole", "apart"):
        stack = fleet.lora().to_stack()
        return _reduced(fleet, "whole", stack, np.zeros(len(fleet.layers)), None)
    fixed = route == "sketch"
    bases = _sketched(fleet, goal, sketch, seed) if fixed else Bases.empty(*fleet.shape)
    blocks: list[Block] = []
    for rows, block, scales in fleet.blocks():
        if fixed:
            blocks.append(_scaled(project(bases, block), scales))
        else:
            limits, none = np.full(len(scales), np.inf), scales == 0
            np.divide(goal.allowed(fleet)[rows], scales**2, out=limits, where=~none)
            bases, found = grow(bases, block, limits)
            blocks.append(_scaled(found, scales))
            if most is not None and max(bases.left.shape[1], bases.right.shape[1]) > most:
                return None
    stack, missed = joined(bases, blocks)
    put = fleet.spool.put
    kept = _Kept(put(stack.u), put(stack.v), put(stack.up), put(stack.down), stack.ranks)
    return _reduced(fleet, route, stack, missed, kept)


def is_whole(fleet: FleetStack) -> bool:
    """Whether a stack is held whole where that is left to its size."""
    terms = int(fleet.ranks.sum())
    return terms <= WHOLE_UP_TO or terms * sum(fleet.shape) <= SMALL


def too_large(fleet: Sequence[FleetStack]) -> str | None:
    """Why stacks are too large to be tried; None where they are not."""
    wide = [one for one in fleet if int(one.ranks.sum()) * sum(one.shape) > SMALL]
    largest = max((int(one.ranks.sum()) for one in wide), default=0)
    if largest <= LARGEST_STACK:
        return None
    return f"not measured: {largest:,} rank terms in one stack"


def _scaled(block: Block, scales: np.ndarray) -> Block:
    """A block with layer l times scales[l]; in float64, so that no scale is rounded before."""
    each, squares = np.repeat(scales, block.ranks), scales**2
    missed, norms = block.missed * squares, block.norms * squares
    return replace(block, up=block.up * each, missed=missed, norms=norms)


def reduce_all(
    fleet: FleetStack, goal: Goal, route: Route, sketch: int, seed: int
) -> list[ReducedStack]:
    """A stack made small; where its layers share too little for bases, in several stacks.

    Bases of k directions with cores in low rank take (m + n)·k + 2·R·k numbers, R·(m + n) as they
    came. Beyond the k at which the first is more, layers are better apart.
    """
    terms, (m, n) = int(fleet.ranks.sum()), fleet.shape
    if route == "apart" or (route == "auto" and not is_whole(fleet)):
        most = terms * (m + n) // (m + n + 2 * terms)
        if route == "auto":
            found = reduce_stack(fleet, goal, "updated", sketch, seed, most=most)
            if found is not None:
                return [found]
        return [_required(piece, goal, "whole", sketch, seed) for piece in _pieces(fleet)]
    return [_required(fleet, goal, route, sketch, seed)]


def _required(fleet: FleetStack, goal: Goal, route: Route, sketch: int, seed: int) -> ReducedStack:
    found = reduce_stack(fleet, goal, route, sketch, seed)
    assert found is not None  # without a limit bases grow until they hold everything
    return found


def _pieces(fleet: FleetStack) -> list[FleetStack]:
    """Runs of layers of few rank terms."""
    piece = np.maximum(np.cumsum(fleet.ranks) - 1, 0) // PIECE
    # an adapter's layers stay together
    first = {int(a): int(p) for a, p in zip(fleet.adapters[::-1], piece[::-1], strict=True)}
    which = np.array([first[int(a)] for a in fleet.adapters])
    return [
        fleet.take(np.flatnonzero(which == number), f"{fleet.name}#{at}")
        for at, number in enumerate(np.unique(which), 1)
    ]


def _sketched(fleet: FleetStack, goal: Goal, size: int, seed: int) -> Bases:
    sketch = Sketch.empty(*fleet.shape, size, seed=seed)
    for rows, block, scales in fleet.blocks():
        sketch = sketch.including(block, abs(scales) * goal.factors[fleet.adapters[rows]])
    return sketch.bases()


def _reduced(
    fleet: FleetStack,
    route: str,
    stack: LoRAStack | LowRankTucker2,
    missed: np.ndarray,
    kept: _Kept | None,
) -> ReducedStack:
    coordinates = coordinates_of(stack)
    saved = fleet.spool.put(coordinates.left), fleet.spool.put(coordinates.right)
    return ReducedStack(fleet, route, missed, kept, saved, coordinates.slices)
