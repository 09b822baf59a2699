"""Stacks of a bank in bits: one step for all of them, between shared bases or layer by layer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lotr_tn.analysis.forms import LOTR
from lotr_tn.analysis.forms.truncated import FORM as ALONE
from lotr_tn.banks.coded import CodedBasis, coded_layers
from lotr_tn.banks.group import DISTANCE, TERMS, BankGroup, Part
from lotr_tn.banks.making.parts import Made
from lotr_tn.banks.making.settling import above_of
from lotr_tn.banks.making.stacks import ReducedStack
from lotr_tn.coding.cores import Columns, SharedDirections, encode_core, levels_of
from lotr_tn.coding.directions import encode_directions
from lotr_tn.coding.quantise import SLOPE
from lotr_tn.conversion.coding import finest_within
from lotr_tn.decompose.coded import METHOD, Codable, codable, largest_step
from lotr_tn.decompose.tucker import hosvd
from lotr_tn.linalg.ranks import Budget, FixedRank, TotalError
from lotr_tn.ops.arithmetic import scale
from lotr_tn.ops.conversion import as_lora
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.moving import astype

ROUNDS = 4
"""Times that weights of adapters are refined."""

EVEN = 1.02
"""The worst error over their mean, at which weights are even enough."""

DAMPING = 0.8
"""Power of an adapter's squared error, over the mean, by which its weight grows."""

FINER = 1e-3
"""By how much the step is made finer where what is measured is above what was asked."""

WIDE = 12
"""Bits of a number up to which no file of numbers, of 16 bits at least, can be smaller."""


@dataclass(frozen=True, eq=False)
class _Weighed:
    """A stack whose layers are weighed, as it could be coded."""

    reduced: ReducedStack
    factors: np.ndarray  # (L,)

    @cached_property
    def original(self) -> Any:
        """The stack in float64."""
        return self.reduced.stack(np.ones(len(self.factors)))

    @cached_property
    def weighed(self) -> Any:
        """Its layers, each times its factor."""
        return scale(self.original, self.factors.tolist())

    @cached_property
    def shared(self) -> SharedDirections:
        """Between bases that its layers share."""
        _, m, n = self.weighed.shape
        terms = int(self.reduced.fleet.ranks.sum())
        found = hosvd(self.weighed, FixedRank(min(m, terms), min(n, terms)))
        return SharedDirections(*(np.asarray(x) for x in (found.u, found.v, found.core)))

    @cached_property
    def apart(self) -> Codable | None:
        """Layer by layer."""
        return codable(as_lora(self.weighed))

    def cost(self, step: float, *, shares: bool) -> float:
        """Squared error with bits at what they are worth: what is least at a step."""
        bits, lost = self.told(step, shares=shares)
        return float(lost.sum()) + SLOPE * step**2 * bits

    def told(self, step: float, *, shares: bool) -> tuple[float, np.ndarray]:
        """About its bits, and (L,) the squared error of each layer, weighed."""
        if shares:
            found = self.shared.at(step)
            return found.bits, found.lost
        assert self.apart is not None
        return self.apart.bits(step), self.apart.lost(step)

    def made(self, step: float, *, shares: bool) -> Made | None:
        """It in bits, measured; None where a number has no code."""
        return self._between_bases(step) if shares else self._layer_by_layer(step)

    def _between_bases(self, step: float) -> Made | None:
        found = self.shared.at(step)
        left, right = Columns(found.left.T), Columns(found.right.T)
        bases = [CodedBasis.of_columns(left), CodedBasis.of_columns(right)]
        levels = levels_of(left, right)
        cores = [
            encode_core(core, levels, step / factor)
            for core, factor in zip(found.cores, self.factors, strict=True)
        ]
        if None in bases or None in cores:
            return None
        return self._group(LOTR.name, 1, np.zeros(len(cores)), cores, bases)

    def _layer_by_layer(self, step: float) -> Made | None:
        assert self.apart is not None
        pairs, factors = self.apart.pairs(step), self.factors
        own = [replace(x, weights=x.weights / f) for x, f in zip(pairs, factors, strict=True)]
        layers = [encode_directions([one]) for one in own]
        if None in layers:
            return None
        terms = np.array([len(one.weights) for one in own])
        return self._group(ALONE.name, 0, terms, layers, ())

    def _group(
        self, form: str, segments: int, terms: np.ndarray, layers: Sequence[Any], bases: Any
    ) -> Made:
        """The group of coded layers, and what comes back out of it compared with the original."""
        fleet = self.reduced.fleet
        norms = np.sqrt(fleet.energies)
        index = np.column_stack([fleet.layers[:, :2], fleet.ranks, terms]).astype(np.int64)
        none = np.zeros(len(norms))
        figures = np.stack([none, norms, none, np.ones(len(norms))], axis=1)
        part = Part(form, segments, METHOD, coded_layers(layers), index, figures)
        outputs, inputs = tuple(bases[:1]), tuple(bases[1:])
        group = BankGroup(fleet.name, fleet.shape, fleet.places, outputs, inputs, (part,))
        back: Any = group.stack(part, slice(0, len(index)))
        distances = np.asarray(layer_distances(self.original, astype(back, "float64")))
        figures = figures.copy()
        figures[:, DISTANCE] = distances
        part = replace(part, figures=figures)
        return Made(replace(group, parts=(part,)), distances, norms, fleet.adapters)


@dataclass(frozen=True, eq=False)
class Coding:
    """Stacks that are coded by one step.

    Attributes:
        stacks: all of them, small enough to be held whole.
        energies: (N,) what the squared error of each adapter is relative to.
        rule: the error, or the size.
        each: whether every adapter keeps to the error; else all together do.
        size_of: bytes of the file of some groups.
    """

    stacks: tuple[ReducedStack, ...]
    energies: np.ndarray
    rule: TotalError | Budget
    each: bool
    size_of: Callable[[Sequence[Made]], int]

    def best(self) -> tuple[Made, ...] | None:
        """All stacks in the fewest bits; None where numbers take less, or no step does."""
        weights, best, least = np.ones(len(self.energies)), None, np.inf
        for _ in range(ROUNDS):
            found = self._at_weights(weights)
            if found is None:
                return best
            step, one = found
            size, errors = one.bits(step), one.errors(step)
            if size < least:
                least, best = size, one.made(step, self)
            if isinstance(self.rule, Budget) or not self.each or best is None:
                break
            square = (errors[self.present] ** 2).mean()
            if errors.max() ** 2 <= EVEN**2 * square or not square:
                break
            ratios = np.where(errors > 0, errors**2 / square, 1.0)
            weights = weights * np.clip(ratios, 1 / 4, 4) ** DAMPING
            weights = np.clip(weights / weights[self.present].mean(), 1e-4, 1e4)
        return best

    @cached_property
    def present(self) -> np.ndarray:
        """The adapters that have layers here."""
        return np.unique(np.concatenate([one.fleet.adapters for one in self.stacks]))

    def _at_weights(self, weights: np.ndarray) -> "tuple[float, _Together] | None":
        whole = self.energies if self.each else np.full(len(weights), self.energies.sum())
        factors = np.sqrt(weights / np.where(whole > 0, whole, 1.0))
        stacks = [_Weighed(one, factors[one.fleet.adapters]) for one in self.stacks]
        if any(one.apart is None for one in stacks):
            return None
        several = [len(one.factors) > 1 for one in stacks]
        together = _Together(self.energies, self.each, tuple(stacks), tuple(several))
        step = together.step(self)
        if step is None:
            return None
        chosen = [
            able and one.cost(step, shares=True) < one.cost(step, shares=False)
            for one, able in zip(stacks, several, strict=True)
        ]
        if chosen != several:
            together = replace(together, shares=tuple(chosen))
            step = together.step(self)
        return None if step is None else (step, together)


@dataclass(frozen=True, eq=False)
class _Together:
    """All stacks, and whether each shares bases."""

    energies: np.ndarray
    each: bool
    stacks: tuple[_Weighed, ...]
    shares: tuple[bool, ...]

    @cached_property
    def _known(self) -> dict[float, tuple[float, np.ndarray]]:
        return {}

    def _told(self, step: float) -> tuple[float, np.ndarray]:
        """About all bits, and (N,) the squared error of each adapter, as it is."""
        if step not in self._known:
            lost, bits = np.zeros(len(self.energies)), 0.0
            for one, shares in zip(self.stacks, self.shares, strict=True):
                more, each = one.told(step, shares=shares)
                bits += more
                np.add.at(lost, one.reduced.fleet.adapters, each / one.factors**2)
            self._known[step] = bits, lost
        return self._known[step]

    def bits(self, step: float) -> float:
        """About all bits at a step."""
        return self._told(step)[0]

    def errors(self, step: float) -> np.ndarray:
        """(N,) the relative error of each adapter, or (1,) of all together."""
        lost, whole = self._told(step)[1], self.energies
        if not self.each:
            lost, whole = lost.sum(keepdims=True), whole.sum(keepdims=True)
        return np.sqrt(np.divide(lost, whole, out=np.zeros_like(lost), where=whole > 0))

    @property
    def largest(self) -> float:
        """The largest number that is to be coded."""
        found = [0.0]
        for one, shares in zip(self.stacks, self.shares, strict=True):
            assert one.apart is not None
            found.append(one.shared.largest if shares else one.apart.largest)
        return max(found)

    def step(self, coding: Coding) -> float | None:
        """The largest step within an error; for a size one that takes about as much."""
        rule = coding.rule
        if isinstance(rule, Budget):
            room = 8 * rule.size
            finest = largest_step(lambda step: self.bits(step) > room, self.largest)
            return self.largest / 1000 if finest is None else finest
        within = rule.epsilon
        return largest_step(lambda step: self.errors(step).max() <= within, self.largest)

    def made(self, step: float, coding: Coding) -> tuple[Made, ...] | None:
        """All stacks, measured; in finer steps where they are above the error, or in a size."""
        rule = coding.rule
        if isinstance(rule, Budget):
            return finest_within(rule.size, self.bits, self._at, coding.size_of, self.largest)
        made = self._at(step)
        while made is not None and self._above(made, rule.epsilon):
            step *= 1 - FINER
            made = self._at(step)
        return made

    def _at(self, step: float) -> tuple[Made, ...] | None:
        pairs = zip(self.stacks, self.shares, strict=True)
        made = [one.made(step, shares=shares) for one, shares in pairs]
        found = tuple(one for one in made if one is not None)
        return found if len(found) == len(made) else None

    def _above(self, made: Sequence[Made], epsilon: float) -> bool:
        return above_of(made, self.energies, epsilon, self.each) > 1


def is_narrow(made: Sequence[Made]) -> bool:
    """Whether numbers take so few bits that no file of numbers can be smaller."""
    bits, numbers = 0, 0
    for one in made:
        (part,), group = one.group.parts, one.group
        bits += 8 * one.bytes
        numbers += sum(math.prod(tensor.shape) for tensor in (*group.outputs, *group.inputs))
        numbers += int(part.index[:, TERMS].sum()) * sum(group.shape)
    return bits <= WIDE * numbers
