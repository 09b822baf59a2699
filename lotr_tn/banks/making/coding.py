"""Stacks of a bank in bits: one step for all of them, between shared bases or layer by layer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn.analysis.forms import LOTR
from lotr_tn.analysis.forms.truncated import FORM as ALONE
from lotr_tn.banks.coded import CodedBasis
from lotr_tn.banks.group import DISTANCE, TERMS, BankGroup, exact_stack
from lotr_tn.banks.making.choosing import DAMPING
from lotr_tn.banks.making.coded_parts import made_within, measured_part
from lotr_tn.banks.making.parts import Made
from lotr_tn.banks.making.settling import above_of, errors_of, relative_errors
from lotr_tn.banks.making.stacks import FleetStack
from lotr_tn.coding.cores import Columns, SharedDirections, encode_core, levels_of
from lotr_tn.coding.directions import encode_directions
from lotr_tn.coding.quantise import cost
from lotr_tn.coding.tables import LARGEST
from lotr_tn.conversion.coding import NOTHING_LEFT, coarsest, finest_within
from lotr_tn.decompose.coded import Codable, codable, largest_step
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.factor import eigh, qr
from lotr_tn.linalg.ranks import Budget, TotalError
from lotr_tn.ops.arithmetic import scale

ROUNDS = 4
"""Times that weights of adapters are refined."""

EVEN = 1.02
"""The worst error over their mean, at which weights are even enough."""

MAY_GAIN = 1.1
"""What refined weights may bring, as a ratio of bytes."""

WIDE = 12
"""Bits of a number up to which no file of numbers, of 16 bits at least, can be smaller."""


@dataclass(frozen=True, eq=False)
class _Stack:
    """A stack, in bases of what it spans."""

    fleet: FleetStack

    @cached_property
    def original(self) -> LoRAStack:
        """The stack in float64."""
        return exact_stack(self.fleet.lora())

    @cached_property
    def _bases(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Orthonormal bases of both sides, and the cores between them."""
        lora = self.original
        left, up = qr(np.asarray(lora.up), xp=xp)
        right, down = qr(np.asarray(lora.down).T, xp=xp)
        return left, right, np.stack([up[:, part] @ down[:, part].T for part in lora.slices])

    def shared(self, factors: np.ndarray) -> SharedDirections:
        """Its layers, times their factors, in the coordinates of their HOSVD.

        Directions by eigenvectors of Gram matrices: those too weak for these take no bits.
        """
        left, right, cores = self._bases
        cores = cores * factors[:, None, None]
        grams = ((cores @ cores.mT).sum(0), (cores.mT @ cores).sum(0))
        # the largest first, and in one piece: products of reversed arrays take long
        turn, other = (np.ascontiguousarray(eigh(x, xp=xp)[1][:, ::-1]) for x in grams)
        return SharedDirections(left @ turn, right @ other, turn.T @ cores @ other)


@dataclass(frozen=True, eq=False)
class _Weighed:
    """A stack whose layers are weighed, as it could be coded."""

    stack: _Stack
    factors: np.ndarray  # (L,)

    @property
    def fleet(self) -> FleetStack:
        """What it is of."""
        return self.stack.fleet

    @cached_property
    def shared(self) -> SharedDirections:
        """Between bases that its layers share."""
        return self.stack.shared(self.factors)

    @cached_property
    def apart(self) -> Codable | None:
        """Layer by layer."""
        return codable(scale(self.stack.original, self.factors.tolist()))

    def cost(self, step: float, *, shares: bool) -> float:
        """Squared error with bits at what they are worth: what is least at a step."""
        return cost(*self.told(step, shares=shares), step)

    def told(self, step: float, *, shares: bool) -> tuple[float, np.ndarray]:
        """About its bits, and (L,) the squared error of each layer, weighed."""
        if shares:
            found = self.shared.at(step)
            return found.bits, found.lost
        assert self.apart is not None
        return self.apart.told(step)

    def made(self, step: float, *, shares: bool) -> Made | None:
        """It in bits, measured; None where a number has no code."""
        return self._between_bases(step) if shares else self._layer_by_layer(step)

    def _between_bases(self, step: float) -> Made | None:
        found = self.shared.at(step)
        left, right = Columns(found.left.T), Columns(found.right.T)
        bases = [CodedBasis.of_columns(left), CodedBasis.of_columns(right)]
        levels = levels_of([left], [right])
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
        fleet, original = self.fleet, self.stack.original
        norms = np.sqrt(fleet.energies)
        where = np.column_stack([fleet.layers[:, :2], fleet.ranks])
        outputs, inputs = tuple(bases[:1]), tuple(bases[1:])
        group = BankGroup(fleet.name, fleet.shape, fleet.places, outputs, inputs, ())
        part = measured_part(group, form, segments, where, layers, terms, original, norms)
        distances = part.figures[:, DISTANCE]
        return Made(replace(group, parts=(part,)), distances, norms, fleet.adapters)


@dataclass(frozen=True, eq=False)
class Coding:
    """Stacks that are coded by one step.

    Attributes:
        stacks: all of them, small enough to be held whole; their factors are, all at once.
        energies: (N,) what the squared error of each adapter is relative to.
        rule: the error, or the size.
        each: whether every adapter keeps to the error; else all together do.
        size_of: bytes of the file of some groups.
    """

    stacks: tuple[FleetStack, ...]
    energies: np.ndarray
    rule: TotalError | Budget
    each: bool
    size_of: Callable[[Sequence[Made]], int]

    def best(self, most: float = np.inf) -> tuple[Made, ...] | None:
        """All stacks in the fewest bits; None where no step does, or over `most` bytes are left."""
        weights, best, least = np.ones(len(self.energies)), None, np.inf
        shares, step = tuple(len(one.layers) > 1 for one in self.stacks), None
        for at in range(ROUNDS):
            together = self._weighed(weights, shares)
            step = together.step(self.rule, step)
            if step is None:
                break
            if at == 0 and (chosen := together.cheaper(step)) != shares:
                together, shares = replace(together, shares=chosen), chosen
                step = together.step(self.rule, step)
                if step is None:
                    break
            size, errors = together.bits(step), together.errors(step)
            if size < least:
                least, best = size, (together, step)
            if size > 8 * MAY_GAIN * most:
                return None
            if isinstance(self.rule, Budget) or not self.each:
                break
            square = (errors[self.present] ** 2).mean()
            if errors.max() ** 2 <= EVEN**2 * square or not square:
                break
            ratios = np.where(errors > 0, errors**2 / square, 1.0)
            weights = weights * np.clip(ratios, 1 / 4, 4) ** DAMPING
            weights = np.clip(weights / weights[self.present].mean(), 1e-4, 1e4)
        return None if best is None else best[0].made(best[1], self)

    @cached_property
    def _stacks(self) -> tuple[_Stack, ...]:
        return tuple(map(_Stack, self.stacks))

    def _weighed(self, weights: np.ndarray, shares: tuple[bool, ...]) -> "_Together":
        """All stacks, with weights of the adapters' squared errors."""
        whole = self.energies if self.each else np.full(len(weights), self.energies.sum())
        factors = np.sqrt(weights / np.where(whole > 0, whole, 1.0))
        stacks = (_Weighed(one, factors[one.fleet.adapters]) for one in self._stacks)
        return _Together(self.energies, self.each, tuple(stacks), shares)

    @cached_property
    def present(self) -> np.ndarray:
        """The adapters that have layers here."""
        return np.unique(np.concatenate([one.adapters for one in self.stacks]))


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
                np.add.at(lost, one.fleet.adapters, each / one.factors**2)
            self._known[step] = bits, lost
        return self._known[step]

    def bits(self, step: float) -> float:
        """About all bits at a step."""
        return self._told(step)[0]

    def errors(self, step: float) -> np.ndarray:
        """(N,) the relative error of each adapter, or (1,) of all together."""
        return relative_errors(self._told(step)[1], self.energies, self.each)

    @cached_property
    def largest(self) -> float:
        """The largest number that is to be coded; 0 where one is beyond what can be."""
        found = [0.0]
        for one, shares in zip(self.stacks, self.shares, strict=True):
            if not shares and one.apart is None:
                return 0.0
            found.append(one.shared.largest if shares or one.apart is None else one.apart.largest)
        return max(found)

    def cheaper(self, step: float) -> tuple[bool, ...]:
        """Whether each stack is better off with shared bases."""
        return tuple(
            shares
            and one.apart is not None
            and one.cost(step, shares=True) < one.cost(step, shares=False)
            for one, shares in zip(self.stacks, self.shares, strict=True)
        )

    def step(self, rule: TotalError | Budget, near: float | None) -> float | None:
        """The largest step within an error; for a size one that takes about as much."""
        if isinstance(rule, Budget):
            room = 8 * rule.size
            finest = largest_step(lambda step: room / max(self.bits(step), 1.0), self.largest)
            return self.largest / LARGEST if finest is None else finest
        within = rule.epsilon
        return largest_step(lambda step: self.errors(step).max() / within, self.largest, near)

    def made(self, step: float, coding: Coding) -> tuple[Made, ...] | None:
        """All stacks, measured; in finer steps where they are above the error, or in a size."""
        rule = coding.rule
        if isinstance(rule, Budget):
            found = finest_within(rule.size, self.bits, self._at, coding.size_of, self.largest)
            if found is not None and self._leaves(errors_of(found, self.energies, self.each)):
                return found
            least = coarsest(lambda step: self._leaves(self.errors(step)), self.largest)
            return None if least is None else self._at(least)
        return made_within(step, self._at, lambda made: not self._above(made, rule.epsilon))

    def _leaves(self, errors: np.ndarray) -> bool:
        """Whether these errors leave something of an adapter; none is left of one that is zero."""
        known = self.energies > 0 if self.each else self.energies.sum(keepdims=True) > 0
        return not known.any() or float(errors[known].min()) < NOTHING_LEFT

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
