"""Stacks of a bank, made in the format and ranks that were chosen, and measured as stored."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from lotr_tn._arrays import suits_float16
from lotr_tn.adapters.adapter import LoRAGroup, common_dtype
from lotr_tn.analysis.candidates import Stored
from lotr_tn.analysis.division import Point
from lotr_tn.analysis.forms import FORMS, FormatName, Options
from lotr_tn.banks.group import BankGroup, Part
from lotr_tn.banks.making.choosing import Weighed
from lotr_tn.banks.making.measuring import distances_from
from lotr_tn.banks.making.stacks import FleetStack, Reduced
from lotr_tn.decompose.truncation import cut_layers
from lotr_tn.errors import FormatError, PrecisionWarning
from lotr_tn.files.bank_tensor import BankTensor
from lotr_tn.files.spool import Spool
from lotr_tn.formats import LoRAStack, LowRankTucker2, Tucker1, Tucker2
from lotr_tn.linalg.ranks import FixedRank
from lotr_tn.ops.arithmetic import scale
from lotr_tn.ops.arrays import arrays_of
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.moving import astype

__all__ = [
    "Made",
    "kept_group",
    "lora_rows",
    "made_at",
    "made_at_ranks",
    "made_truncated",
    "part_of",
]


@dataclass(frozen=True, eq=False)
class Made:
    """A group of a bank as it will be stored, with what it costs and loses.

    Attributes:
        group: the group, its tensors in the spool.
        distances: (L,) ‖ΔW − ΔŴ‖, measured.
        norms: (L,) ‖ΔW‖.
        adapters: (L,) whose each layer is.
    """

    group: BankGroup
    distances: np.ndarray
    norms: np.ndarray
    adapters: np.ndarray

    @property
    def tensors(self) -> list[BankTensor]:
        """Bases and own numbers."""
        (part,) = self.group.parts
        return [*self.group.outputs, *self.group.inputs, *part.tensors.values()]

    @property
    def bytes(self) -> int:
        """Bytes of its numbers."""
        return sum(tensor.entry.nbytes for tensor in self.tensors)

    @property
    def numbers(self) -> int:
        """How many numbers it stores."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def format(self) -> FormatName:
        """The format of its layers."""
        return self.group.parts[0].format


def made_at(weighed: Weighed, point: Point) -> Made:
    """A stack at a point of its curves."""
    reduced, options, form = weighed.reduced, weighed.options, FORMS[point[0]]
    if form.kept:
        return kept_group(reduced.fleet)
    assert form.make is not None  # as every form with a curve has
    stack, wide = reduced.stack(weighed.factors), replace(options, dtype="float64")
    setting = weighed.curves[form.name].settings[point[1]].tolist()
    with _quiet():  # coordinates are read again for the forms alone that need them
        stored = form.make(stack, setting, wide, lambda: weighed.subject.coordinates)
    return _measured(reduced, scale(stored, _inverse(weighed.factors)), form.name, options)


def made_at_ranks(
    reduced: Reduced, factors: np.ndarray, ranks: FixedRank, options: Options
) -> Made:
    """A stack at ranks that were named."""
    stack, form = reduced.stack(factors), FORMS[options.formats[0]]
    with _quiet():
        stored = form.at_ranks(stack, ranks, replace(options, dtype="float64"))
    return _measured(reduced, scale(stored, _inverse(factors)), form.name, options)


def made_truncated(reduced: Reduced, ranks: np.ndarray, options: Options) -> Made:
    """A stack with each layer's rank cut."""
    stack = reduced.stack(np.ones(len(ranks)))
    assert isinstance(stack, LoRAStack)
    cut = cut_layers(stack, tuple(int(r) for r in ranks), "float64")
    return _measured(reduced, cut, "truncated", options)


def kept_group(fleet: FleetStack) -> Made:
    """A stack whose LoRAs are kept as they are."""
    lora = fleet.lora()
    norms = np.sqrt(fleet.energies)
    part = part_of(fleet, lora, "lora", np.zeros(len(norms)), norms)
    return _made(fleet, part, None, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of precision: what is stored is measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)
        yield


def _inverse(factors: np.ndarray) -> list[float]:
    return [1 / float(f) for f in factors]


def _measured(reduced: Reduced, stored: Stored, format: FormatName, options: Options) -> Made:
    """A stack in its storage dtype, with its distances from the original."""
    narrow, fleet = _narrowed(stored, options.dtype), reduced.fleet
    norms = np.sqrt(fleet.energies)
    if reduced.kept is None:
        original = reduced.stack(np.ones(len(norms)))
        distances = np.asarray(layer_distances(original, astype(narrow, "float64")))
    else:
        assert isinstance(narrow, Tucker2 | LowRankTucker2)
        distances = distances_from(fleet, narrow)
    method = narrow_method(stored)
    part = part_of(fleet, narrow, format, distances, norms, method)
    match narrow:
        case Tucker2() | LowRankTucker2():
            return _made(fleet, part, narrow.u, narrow.v)
        case Tucker1():
            inside_out = narrow.side == "in"
            u, v = (None, narrow.shared) if inside_out else (narrow.shared, None)
            return _made(fleet, part, u, v)
        case LoRAStack():
            return _made(fleet, part, None, None)


def narrow_method(stored: Stored) -> str:
    """How a stack was found."""
    return "" if stored.certificate is None else stored.certificate.method


def _narrowed(stored: Stored, dtype: str) -> Stored:
    """In the storage dtype; in float32 where float16 has no room."""
    if dtype == "float16":
        try:
            narrow = astype(stored, dtype)
        except FormatError:
            return astype(stored, "float32")
        if not all(map(suits_float16, arrays_of(stored).values())):
            return astype(stored, "float32")
        return narrow
    return astype(stored, dtype)


def part_of(
    fleet: FleetStack,
    stack: Stored | LoRAGroup,
    format: FormatName,
    distances: np.ndarray,
    norms: np.ndarray,
    method: str = "",
) -> Part:
    """The layers of a stack as a part of a bank, its arrays in the spool."""
    ranks = fleet.ranks
    scales = np.ones(len(ranks))
    match stack:
        case Tucker2():
            arrays, terms = {"core": stack.core}, np.zeros(len(ranks))
        case Tucker1():
            arrays, terms = {"own": stack.own}, np.zeros(len(ranks))
        case LowRankTucker2() | LoRAStack():
            arrays = {"up": stack.up.T, "down": stack.down}
            terms = np.asarray(stack.ranks)
        case LoRAGroup():
            arrays, scales = lora_rows(stack), np.array([m.scale for m in stack.modules])
            terms = ranks
    index = np.stack([fleet.layers[:, 0], fleet.layers[:, 1], ranks, terms], axis=1)
    figures = np.stack([distances, norms, np.zeros(len(norms)), scales], axis=1)
    segments = 0 if isinstance(stack, LoRAStack | LoRAGroup) else 1
    tensors = {name: spooled(fleet.spool, array) for name, array in arrays.items()}
    return Part(format, segments, method, tensors, index.astype(np.int64), figures)


def lora_rows(group: LoRAGroup) -> dict[str, np.ndarray]:
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


def spooled(spool: Spool, array: np.ndarray) -> BankTensor:
    """An array of a bank, put aside."""
    return BankTensor.of_slot(spool, spool.put(np.ascontiguousarray(array)))


def _made(fleet: FleetStack, part: Part, u: np.ndarray | None, v: np.ndarray | None) -> Made:
    outputs: tuple[BankTensor, ...] = ()
    inputs: tuple[BankTensor, ...] = ()
    if part.segments:
        m, n = fleet.shape
        some = u if u is not None else v
        assert some is not None
        u = np.zeros((m, 0), some.dtype) if u is None else u
        v = np.zeros((n, 0), some.dtype) if v is None else v
        outputs, inputs = (spooled(fleet.spool, u),), (spooled(fleet.spool, v),)
    group = BankGroup(fleet.name, fleet.shape, fleet.places, outputs, inputs, (part,))
    return Made(group, part.figures[:, 0], part.figures[:, 1], fleet.adapters)
