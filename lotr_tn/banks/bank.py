"""A bank: many adapters of one base, their updates stacked in shared factors."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, final

import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF, from_numpy
from lotr_tn._shown import Shown, lines_of
from lotr_tn.adapters.adapter import Compressed, LoRAGroup, LoTRAdapter, LoTRGroup, common_dtype
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.analysis.forms import FormatName
from lotr_tn.banks.group import (
    ADAPTER,
    DISTANCE,
    DRIFT,
    MODULE,
    NORM,
    BankGroup,
    Part,
    exact_stack,
    in_whole_bases,
)
from lotr_tn.errors import CheckpointError, OptionError, listed, meant, printable
from lotr_tn.files.bank_tensor import BankTensor
from lotr_tn.formats.certificate import ratio
from lotr_tn.linalg.ranks import RelativeError, epsilon_of
from lotr_tn.ops.arrays import arrays_of, storage_dtype, with_arrays
from lotr_tn.ops.conversion import as_lora
from lotr_tn.ops.moving import astype
from lotr_tn.ops.stacking import concat_layers, take_layers

Stacking: TypeAlias = Literal["adapters", "layers", "all"]
"""What a stack is over: the adapters, for each module; over layers too; over all of a shape."""


@final
@dataclass(frozen=True)
class BankAdapter:
    """An adapter of a bank, beside its updates."""

    name: str  # its name in the bank
    config: int  # which of the bank's contents is its configuration
    extras: Mapping[str, int]  # its other tensors: which of the contents each one is, by key
    dtype: str  # in which its LoRA was stored
    parameters: int  # numbers that its LoRA stored
    cluster: int = 0  # which cluster of the bank it belongs to


@final
@dataclass(frozen=True)
class Figures:
    """What a bank keeps of one adapter.

    Attributes:
        relative_error: ‖ΔW − ΔŴ‖ / ‖ΔW‖ of all its modules together: measured when it was stored.
        bound: the same with all that later changes may have added; equal where there were none.
        modules: how many modules it updates.
        own_bytes: what only this adapter takes: its cores, its own tensors.
        formats: the formats of its groups, each once.
        other_bytes: what of it is no update: heads, biases and a configuration of its own.
    """

    relative_error: float
    bound: float
    modules: int
    own_bytes: int
    formats: tuple[FormatName, ...]
    other_bytes: int


@final
@dataclass(frozen=True, eq=False, repr=False)
class Bank(Shown, Mapping[str, LoTRAdapter]):
    """Many adapters of one base in one file; a mapping of names to adapters.

    An adapter is read when it is asked for, from the mapped file: the bases that all share once,
    and its own cores.

    Attributes:
        adapters: the adapters in the order of the file.
        groups: the stacked updates by group.
        contents: configurations and tensors that are no updates, each once.
        asked: the error or size that the bank was made for.
        stacking: `adapters`, `layers` or `all`.
        explanation: why the adapters were stacked and clustered so: figures by name.
        source: the file; None for one made in memory.

    Examples:
        >>> from pathlib import Path
        >>> Bank((), {}, (), {}, "adapters", {}, Path("none")).names
        ()
    """

    adapters: tuple[BankAdapter, ...]
    groups: Mapping[str, BankGroup]
    contents: tuple[BankTensor, ...]
    asked: Mapping[str, Any]
    stacking: Stacking
    explanation: Mapping[str, Any] = field(default_factory=dict)
    source: Path | None = None

    def __repr__(self) -> str:
        source = "" if self.source is None else f", from {printable(str(self.source))}"
        held = f"{len(self.adapters)} adapters in {len(self.groups)} stacks, {self.nbytes:,} bytes"
        return lines_of(f"Bank({held}{source})", map(printable, self.names))

    @property
    def in_bits(self) -> bool:
        """Whether what it holds is in bits where that takes less."""
        return self.asked.get("coding") == "auto"

    @cached_property
    def _places(self) -> dict[str, int]:
        return {adapter.name: place for place, adapter in enumerate(self.adapters)}

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters' names in the order of the file."""
        return tuple(adapter.name for adapter in self.adapters)

    def __getitem__(self, name: str) -> LoTRAdapter:
        if name not in self._places:
            raise KeyError(name)
        return self.load(name)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.adapters)

    def place(self, name: str) -> int:
        """Where an adapter stands.

        Raises:
            CheckpointError: there is none of that name.
        """
        if name not in self._places:
            raise CheckpointError(
                f"{self.source} holds no adapter {name!r}; it holds {listed(self.names)}"
                f"{meant(name, self.names)}"
            )
        return self._places[name]

    def load(self, name: str) -> LoTRAdapter:
        """One adapter, with views of the bank's arrays.

        Args:
            name: the adapter.

        Returns:
            A LoTRAdapter whose groups hold this adapter's layers. Factors that adapters share are
            the very same arrays in each.

        Raises:
            CheckpointError: there is no such adapter, its numbers are not finite, or the file is
                damaged where they lie.

        Cost: reads the adapter's own numbers once, and the bases once for all adapters. Every
        tensor that is used is hashed whole, when it is first used.
        """
        place = self.place(name)
        adapter = self.adapters[place]
        groups: dict[str, LoTRGroup | LoRAGroup] = {}
        for group, part in self.parts:
            rows = part.rows_of(place)
            if rows.start == rows.stop:
                continue
            label = group.name
            while label in groups:
                label += "+"
            stack = group.stack(part, rows)
            if isinstance(stack, LoRAGroup):
                groups[label] = replace(stack, name=label)
                continue
            targets = tuple(group.target(part, row) for row in range(rows.start, rows.stop))
            groups[label] = LoTRGroup(label, targets, stack)
        extras = {key: self.contents[at].whole() for key, at in adapter.extras.items()}
        origin = {"format": "bank", "dtype": adapter.dtype, "group_by": self.stacking}
        source = None if self.source is None else self.source / name
        return LoTRAdapter(groups, extras, self.config_text(name), origin, source, digests=True)

    def config_text(self, name: str) -> str:
        """An adapter's configuration, byte for byte."""
        raw: RawTensor = self.contents[self.adapters[self.place(name)].config].whole()
        text = raw.data.tobytes()
        try:
            fits = isinstance(json.loads(text), dict)
        except (ValueError, RecursionError):
            fits = False
        if not fits:
            raise CheckpointError(
                f"the configuration of {name} in {self.source} is damaged: it is no JSON object; "
                "restore the file from a copy"
            )
        return text.decode()

    def stack(
        self, module: str, *, backend: str = "numpy", device: str | None = None
    ) -> tuple[Compressed, tuple[str, ...]]:
        """The updates of one module by all adapters that have it, as one stack.

        Args:
            module: its path.
            backend: `numpy` or `torch`.
            device: a device of the backend, such as `cuda`.

        Returns:
            The stack, and the adapter of each layer: `apply(stack, x, layer=...)` then takes a
            different adapter for each row of x, and reads the shared factors once. It is a Tucker2
            where the bank stores cores; a LoRAStack where formats are mixed.

        Raises:
            CheckpointError: no adapter updates such a module.
            BackendError: no such backend or device.

        Cost: a copy of the cores where they do not lie together, or for torch; else nothing is
        read.
        """
        stack, names = self._stack(module, exact=False)
        if backend == "numpy" and device is None:
            return stack, names
        arrays = arrays_of(stack).items()
        moved = {name: from_numpy(x, backend=backend, device=device) for name, x in arrays}
        return with_arrays(stack, **moved), names

    def exact_stack(self, module: str) -> tuple[Compressed, tuple[str, ...]]:
        """The same in float64, widened before anything is multiplied."""
        return self._stack(module, exact=True)

    def _stack(self, module: str, *, exact: bool) -> tuple[Compressed, tuple[str, ...]]:
        places: list[int] = []
        stacks: list[Compressed] = []
        for group in self.groups.values():
            paths = [name for name, _ in group.modules]
            if module in paths:
                for owners, stack in self._layers(group, paths.index(module), exact):
                    places += owners.tolist()
                    stacks.append(astype(stack, "float64") if exact else stack)
        if not stacks:
            raise CheckpointError(
                f"no adapter of {self.source} updates {module}; it has {listed(self.modules)}"
                f"{meant(module, self.modules)}"
            )
        return _one_stack(stacks), tuple(self.adapters[place].name for place in places)

    def _layers(
        self, group: BankGroup, module: int, exact: bool
    ) -> Iterator[tuple[np.ndarray, Compressed]]:
        """The adapters that have a module, and their layers in the group's whole bases."""
        for part in group.parts:
            (rows,) = np.nonzero(part.index[:, MODULE] == module)
            if not rows.size:
                continue
            whole = group.stack(part, slice(0, len(part.index)))
            stack = whole
            if isinstance(whole, LoRAGroup):
                stack = exact_stack(whole) if exact else whole.stack
            assert not isinstance(stack, LoRAGroup)
            mine = take_layers(stack, rows.tolist()) if rows.size < len(part.index) else stack
            yield part.index[rows, ADAPTER], in_whole_bases(group, cast("Compressed", mine))

    @property
    def modules(self) -> tuple[str, ...]:
        """The paths of all modules that any adapter updates."""
        groups = self.groups.values()
        return tuple(dict.fromkeys(name for group in groups for name, _ in group.modules))

    @property
    def tensors(self) -> Iterator[BankTensor]:
        """All tensors of numbers and contents."""
        yield from self.contents
        for group in self.groups.values():
            yield from group.tensors

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers and contents."""
        return sum(tensor.entry.nbytes for tensor in self.tensors)

    @property
    def dtype(self) -> str:
        """The finest storage dtype of the stacks."""
        names = {name for _, part in self.parts for name in part.dtypes}
        return min(names, key=lambda name: UNIT_ROUNDOFF[name])

    @cached_property
    def norms(self) -> np.ndarray:
        """(N,) ‖ΔW‖ of each adapter, all its modules together."""
        squares = np.zeros(len(self.adapters))
        for _, part in self.parts:
            np.add.at(squares, part.index[:, ADAPTER], part.figures[:, NORM] ** 2)
        return np.sqrt(squares)

    def error_asked(self, rule: RelativeError | None, whose: str) -> RelativeError:
        """An error that is asked for now, or else the one that the bank was made for.

        Raises:
            OptionError: there is neither.
        """
        asked = self.asked.get("relative_error") if rule is None else epsilon_of(rule)
        if asked is None:
            raise OptionError(
                f"{self.source} was made for a size, not for an error; say which error {whose}, "
                "such as rule=RelativeError(0.05)"
            )
        return RelativeError(float(asked))

    @property
    def parts(self) -> Iterator[tuple[BankGroup, Part]]:
        """All parts, each with its group."""
        for group in self.groups.values():
            yield from ((group, part) for part in group.parts)

    def figures(self, name: str) -> Figures:
        """The error of one adapter, and what it takes."""
        return self._figures[self.place(name)]

    @cached_property
    def relative_error(self) -> float:
        """‖T − T̂‖ / ‖T‖ of all updates of all adapters together, as measured."""
        figures = np.concatenate([part.figures for _, part in self.parts])
        lost, whole = (float(np.linalg.norm(figures[:, c])) for c in (DISTANCE, NORM))
        return ratio(lost, whole)

    @cached_property
    def _figures(self) -> tuple[Figures, ...]:
        count = len(self.adapters)
        sums = np.zeros((count, 4))  # squared distance, bound and norm; modules
        own = np.zeros(count)
        formats: list[dict[FormatName, None]] = [{} for _ in range(count)]
        for _, part in self.parts:
            places, figures = part.index[:, ADAPTER], part.figures
            bound = figures[:, DISTANCE] + figures[:, DRIFT]
            squares = (figures[:, DISTANCE] ** 2, bound**2, figures[:, NORM] ** 2)
            for column, values in enumerate((*squares, np.ones(len(places)))):
                np.add.at(sums[:, column], places, values)
            np.add.at(own, places, part.layer_bytes)
            for place in np.unique(places):
                formats[place][part.format] = None
        holders = np.zeros(len(self.contents), dtype=int)
        used = [{adapter.config, *adapter.extras.values()} for adapter in self.adapters]
        for contents in used:
            holders[list(contents)] += 1
        sizes = [content.entry.nbytes for content in self.contents]
        others = [sum(sizes[at] for at in held if holders[at] == 1) for held in used]
        return tuple(
            Figures(
                float(ratio(sums[i, 0] ** 0.5, sums[i, 2] ** 0.5)),
                float(ratio(sums[i, 1] ** 0.5, sums[i, 2] ** 0.5)),
                int(sums[i, 3]),
                int(own[i]) + others[i],
                tuple(formats[i]),
                others[i],
            )
            for i in range(count)
        )


def _one_stack(stacks: list[Compressed]) -> Compressed:
    """All layers as one stack; LoRA where their formats differ."""
    if len(stacks) == 1:
        return stacks[0]
    if len({type(stack) for stack in stacks}) > 1:
        stacks = [as_lora(stack) for stack in stacks]
    dtypes = {storage_dtype(stack) for stack in stacks}
    if len(dtypes) > 1:
        stacks = [astype(stack, common_dtype(dtypes)) for stack in stacks]
    return cast("Compressed", concat_layers(stacks))
