"""Stacks of a bank, made in the format and ranks that were chosen, and measured as stored."""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lotr_tn._arrays import suits_float16
from lotr_tn.analysis.candidates import Stored
from lotr_tn.analysis.division import Point
from lotr_tn.analysis.forms import FORMS, FormatName, Options
from lotr_tn.banks.group import BankGroup, Part
from lotr_tn.banks.layout import bases_of
from lotr_tn.banks.making.choosing import Weighed
from lotr_tn.banks.making.measuring import distances_from
from lotr_tn.banks.making.stacks import FleetStack, ReducedStack
from lotr_tn.banks.stored import StoredLayers
from lotr_tn.decompose.truncation import cut_layers
from lotr_tn.errors import PrecisionWarning
from lotr_tn.files.bank_tensor import BankTensor
from lotr_tn.files.spool import Spool
from lotr_tn.linalg.ranks import FixedRank
from lotr_tn.ops.arithmetic import scale
from lotr_tn.ops.arrays import arrays_of
from lotr_tn.ops.conversion import as_lora
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.moving import astype


@dataclass(frozen=True, eq=False)
class Made:
    """A group of a bank as it will be stored, with what it costs and loses."""

    group: BankGroup  # the group, its tensors in the spool
    distances: np.ndarray  # (L,) ‖ΔW − ΔŴ‖, measured
    norms: np.ndarray  # (L,) ‖ΔW‖
    adapters: np.ndarray  # (L,) whose each layer is

    @property
    def bytes(self) -> int:
        """Bytes of its numbers."""
        return sum(tensor.entry.nbytes for tensor in self.group.tensors)

    @property
    def numbers(self) -> int:
        """How many numbers it stores."""
        return sum(math.prod(tensor.shape) for tensor in self.group.tensors)

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
    return _measured(reduced, scale(stored, (1 / weighed.factors).tolist()), options)


def made_at_ranks(
    reduced: ReducedStack, factors: np.ndarray, ranks: FixedRank, options: Options
) -> Made:
    """A stack at ranks that were named."""
    stack, form = reduced.stack(factors), FORMS[options.formats[0]]
    with _quiet():
        stored = form.at_ranks(stack, ranks, replace(options, dtype="float64"))
    return _measured(reduced, scale(stored, (1 / factors).tolist()), options)


def made_truncated(reduced: ReducedStack, ranks: np.ndarray, options: Options) -> Made:
    """A stack with each layer's rank cut."""
    stack = as_lora(reduced.stack(np.ones(len(ranks))))
    cut = cut_layers(stack, tuple(int(r) for r in ranks), "float64")
    return _measured(reduced, cut, options)


def kept_group(fleet: FleetStack) -> Made:
    """A stack whose LoRAs are kept as they are, those of each dtype together."""
    parts = []
    for rows in fleet.by_dtype().values():
        some = fleet.take(rows, fleet.name)
        layers = StoredLayers.of_loras(some.lora(), np.sqrt(some.energies), "")
        parts.append(_part(some, layers))
    group = BankGroup(fleet.name, fleet.shape, fleet.places, (), (), tuple(parts))
    norms = np.sqrt(fleet.energies)
    return Made(group, np.zeros(len(norms)), norms, fleet.adapters)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of precision: what is stored is measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)
        yield


def _measured(reduced: ReducedStack, stored: Stored, options: Options) -> Made:
    """A stack in its storage dtype, with its distances from the original."""
    narrow, fleet = _narrowed(stored, options), reduced.fleet
    norms = np.sqrt(fleet.energies)
    if reduced.kept is None:
        original = reduced.stack(np.ones(len(norms)))
        distances = np.asarray(layer_distances(original, astype(narrow, "float64")))
    else:
        distances = distances_from(fleet, narrow)
    method = "" if stored.certificate is None else stored.certificate.method
    layers = StoredLayers.of_stack(narrow, distances, norms, method)
    return _made(fleet, layers, bases_of(layers.form, narrow))


def _narrowed(stored: Stored, options: Options) -> Stored:
    """In the storage dtype; where float16 has no room, in bfloat16 if that is let, or float32."""
    dtype, other = options.dtype, "bfloat16" if "bfloat16" in options.others else "float32"
    roomy = dtype != "float16" or all(map(suits_float16, arrays_of(stored).values()))
    return astype(stored, dtype if roomy else other)


def spooled(spool: Spool, array: np.ndarray) -> BankTensor:
    """An array of a bank, put aside."""
    return BankTensor.of_slot(spool, spool.put(np.ascontiguousarray(array)))


def _part(fleet: FleetStack, layers: StoredLayers) -> Part:
    """The part of some layers."""
    where = np.column_stack([fleet.layers[:, :2], fleet.ranks])
    return layers.part(where, 1, partial(spooled, fleet.spool))


def _made(fleet: FleetStack, layers: StoredLayers, bases: Mapping[str, np.ndarray]) -> Made:
    """The group of some layers; a side that they do not share has an empty basis."""
    part = _part(fleet, layers)
    outputs: tuple[BankTensor, ...] = ()
    inputs: tuple[BankTensor, ...] = ()
    if part.segments:
        (some, *_) = bases.values()
        m, n = (np.zeros((size, 0), some.dtype) for size in fleet.shape)
        outputs = (spooled(fleet.spool, bases.get("out", m)),)
        inputs = (spooled(fleet.spool, bases.get("in", n)),)
    group = BankGroup(fleet.name, fleet.shape, fleet.places, outputs, inputs, (part,))
    return Made(group, layers.distances, layers.norms, fleet.adapters)
