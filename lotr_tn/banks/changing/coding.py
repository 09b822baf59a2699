"""New adapters of a bank in bits: in its bases and new directions, or each layer by itself."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lotr_tn.analysis.forms import LOTR
from lotr_tn.analysis.forms.truncated import FORM as ALONE
from lotr_tn.banks.coded import CodedBasis
from lotr_tn.banks.group import DISTANCE, BankGroup, Part
from lotr_tn.banks.making.coded_parts import made_within, measured_part
from lotr_tn.coding.cores import Columns, GrownDirections, encode_core
from lotr_tn.coding.directions import encode_directions
from lotr_tn.coding.quantise import cost
from lotr_tn.decompose.coded import Codable, codable, largest_step
from lotr_tn.decompose.extension import Extension
from lotr_tn.formats import LoRAStack
from lotr_tn.ops.norms import layer_norms


@dataclass(frozen=True, eq=False)
class Newcomer:
    """Layers of a new adapter, and the group that they go into.

    Attributes:
        group: the group, as it is.
        where: (L, 3) adapter, module of the group, and the rank that the LoRA had.
        stack: the layers in float64.
        extension: they in the group's bases and beyond; None where it has none.
    """

    group: BankGroup
    where: np.ndarray
    stack: LoRAStack
    extension: Extension | None

    @cached_property
    def apart(self) -> Codable | None:
        """Layer by layer; None where numbers are beyond those that can be coded."""
        return codable(self.stack)

    @cached_property
    def grown(self) -> GrownDirections | None:
        """In the group's bases and beyond; None where these are not in bits."""
        group, extension = self.group, self.extension
        bases = [x for x in (*group.outputs, *group.inputs) if isinstance(x, CodedBasis)]
        if extension is None or len(bases) < 2 * len(group.outputs):
            return None
        sides = extension.left, extension.right
        u, v = (side.basis.astype(np.float64) for side in sides)
        own = u @ extension.left.solve, v @ extension.right.solve
        beyond = extension.left.beyond, extension.right.beyond
        cores = np.stack(extension.cores(*extension.most))
        return GrownDirections((u, v), own, beyond, cores)

    def told(self, step: float, *, shares: bool) -> tuple[float, np.ndarray]:
        """About its bits, and (L,) the squared error of each layer."""
        if shares:
            assert self.grown is not None
            found = self.grown.at(step)
            return found.bits, found.lost
        assert self.apart is not None
        return self.apart.told(step)

    def cost(self, step: float, *, shares: bool) -> float:
        """Squared error with bits at what they are worth: what is least at a step."""
        return cost(*self.told(step, shares=shares), step)

    def made(self, step: float, *, shares: bool) -> tuple[BankGroup, Part] | None:
        """The group with new directions, and the part of the layers, measured.

        None where a number has no code.
        """
        return self._in_bases(step) if shares else self._by_itself(step)

    def _in_bases(self, step: float) -> tuple[BankGroup, Part] | None:
        assert self.grown is not None
        found, group = self.grown.at(step), self.group
        if found.left.shape[1] or found.right.shape[1]:
            sides = (found.left, found.right)
            outputs, inputs = (CodedBasis.of_columns(Columns(whole.T)) for whole in sides)
            if outputs is None or inputs is None:
                return None
            group = replace(
                group, outputs=(*group.outputs, outputs), inputs=(*group.inputs, inputs)
            )
        segments = len(group.outputs)
        levels = group.levels(segments)
        cores = [encode_core(core, levels, step) for core in found.cores]
        return self._part(group, LOTR.name, segments, np.zeros(len(cores)), cores)

    def _by_itself(self, step: float) -> tuple[BankGroup, Part] | None:
        assert self.apart is not None
        pairs = self.apart.pairs(step)
        terms = np.array([len(one.weights) for one in pairs])
        layers = [encode_directions([one]) for one in pairs]
        return self._part(self.group, ALONE.name, 0, terms, layers)

    def _part(
        self,
        group: BankGroup,
        form: str,
        segments: int,
        terms: np.ndarray,
        layers: Sequence[bytes | None],
    ) -> tuple[BankGroup, Part] | None:
        known = [one for one in layers if one is not None]
        if len(known) < len(layers):
            return None
        norms, stack = np.asarray(layer_norms(self.stack)), self.stack
        part = measured_part(group, form, segments, self.where, known, terms, stack, norms)
        return group, part


def in_bits(newcomers: Sequence[Newcomer], allowed: float) -> list[tuple[BankGroup, Part]] | None:
    """All layers of an adapter by one step, within a squared error; None where no step does."""
    if any(one.apart is None for one in newcomers):
        return None
    shares = tuple(one.grown is not None for one in newcomers)
    step = _step(newcomers, shares, allowed)
    if step is None:
        return None
    cheaper = tuple(
        both and one.cost(step, shares=True) < one.cost(step, shares=False)
        for one, both in zip(newcomers, shares, strict=True)
    )
    if cheaper != shares:
        shares, step = cheaper, _step(newcomers, cheaper, allowed)
    if step is None:
        return None

    def make(at: float) -> list[tuple[BankGroup, Part]] | None:
        pairs = zip(newcomers, shares, strict=True)
        made = [one.made(at, shares=both) for one, both in pairs]
        found = [one for one in made if one is not None]
        return found if len(found) == len(made) else None

    return made_within(step, make, lambda found: lost_by(part for _, part in found) <= allowed)


def lost_by(parts: Iterable[Part]) -> float:
    """The squared error of all their layers, as measured."""
    return sum(float((part.figures[:, DISTANCE] ** 2).sum()) for part in parts)


def _step(newcomers: Sequence[Newcomer], shares: Sequence[bool], allowed: float) -> float | None:
    """The largest step within a squared error."""
    pairs = list(zip(newcomers, shares, strict=True))
    largest = max(
        one.grown.largest if both and one.grown else one.apart.largest if one.apart else 0.0
        for one, both in pairs
    )

    def over(step: float) -> float:
        lost = sum(float(one.told(step, shares=both)[1].sum()) for one, both in pairs)
        return lost / max(allowed, 1e-290)

    return largest_step(over, largest)
