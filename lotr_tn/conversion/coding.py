"""LoRAs in bits: a step for a group within its error, or for all within an error or a size."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from lotr_tn.adapters.adapter import LoRAGroup, LoTRGroup
from lotr_tn.adapters.asked import Asked
from lotr_tn.analysis.forms import FORMS, form_named
from lotr_tn.coding.tables import LARGEST
from lotr_tn.conversion.made import certificate_of
from lotr_tn.decompose.coded import CLOSE, Codable, codable, largest_step
from lotr_tn.errors import OptionError
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.ranks import Budget, FixedRank, RankLimits, TotalError


def require_codable(asked: Asked) -> None:
    """Refuse what coding is asked for beside, and could not be kept to."""
    if asked.coding not in ("auto", "none"):
        raise OptionError(f"coding must be auto or none; found {asked.coding!r:.60}")
    if asked.coding == "none":
        return
    if isinstance(asked.rule, FixedRank) or (
        isinstance(asked.rule, Budget) and asked.rule.params is not None
    ):
        raise OptionError(
            "coding spends bits, so that ranks or a number of parameters say nothing of it; ask "
            "for an error or for bytes"
        )
    if asked.form != "auto" and not form_named(asked.form).in_bits:
        able = ", ".join(name for name, form in FORMS.items() if form.in_bits)
        raise OptionError(
            f"coding stores singular directions in bits, and a {asked.form} has none; leave the "
            f"format at auto, or ask for {able}"
        )
    if asked.dtype != "auto" or asked.limits not in (None, RankLimits()):
        found = f"dtype {asked.dtype}" if asked.dtype != "auto" else "limits on the ranks"
        raise OptionError(
            f"coding chooses ranks and precision by one step; leave out the {found}, or the coding"
        )


def coded_within(
    group: LoRAGroup, stack: LoRAStack, epsilon: float, *, each_layer: bool
) -> LoTRGroup | None:
    """A group in the fewest bits within a relative error; None where no code is fine enough."""
    found = codable(stack)
    if found is None:
        return None
    bounds = epsilon**2 * (found.energies if each_layer else found.energies.sum(keepdims=True))

    def over(step: float) -> float:
        lost = found.lost(step)
        lost = lost if each_layer else lost.sum(keepdims=True)
        return float((lost / np.maximum(bounds, LEAST)).max())

    step = largest_step(over, found.largest)
    return None if step is None else coded_at(group, found, step)


def coded_at(group: LoRAGroup, lora: Codable, step: float) -> LoTRGroup | None:
    """A group in bits, at a step."""
    found = lora.at(step)
    return None if found is None else LoTRGroup(group.name, group.targets, *found)


T = TypeVar("T")

FILLED = 0.995
"""The share of a budget that a file is to take at least, where steps go so fine."""

LEAST = 1e-290
"""A squared error that is as good as none."""

NOTHING_LEFT = 1 - 1e-9
"""The share of a squared norm from which on all of it is lost, but for rounding."""

TRIES = 6
"""How often a file is made for a budget: the bits are known to a hundredth before."""


def coded_together(
    groups: Sequence[LoRAGroup],
    codables: Sequence[Codable],
    rule: TotalError | Budget,
    *,
    energy: float,
    size_of: Callable[[Sequence[LoTRGroup]], int],
) -> list[LoTRGroup] | None:
    """All groups in bits by one step, which is best for them together; None where no step does.

    Of a size that leaves nothing of all groups, the smallest that leaves something is returned.

    Args:
        groups: the groups.
        codables: their LoRAs.
        rule: the error of all together, or the bytes of the file.
        energy: ‖T‖², with what is kept as it is.
        size_of: the bytes of the file of some groups.
    """
    largest = max(one.largest for one in codables)
    if isinstance(rule, TotalError):
        allowed = rule.epsilon**2 * energy

        def over(step: float) -> float:
            return sum(float(one.lost(step).sum()) for one in codables) / max(allowed, LEAST)

        step = largest_step(over, largest)
        return None if step is None else _all_at(groups, codables, step)
    whole = sum(float(one.energies.sum()) for one in codables)
    found = finest_within(
        rule.size,
        lambda step: sum(one.bits(step) for one in codables),
        lambda step: _all_at(groups, codables, step),
        size_of,
        largest,
    )
    if found is not None and (not whole or _lost(found) < NOTHING_LEFT * whole):
        return found
    limit = NOTHING_LEFT * whole
    step = coarsest(lambda step: sum(one.lost(step).sum() for one in codables) < limit, largest)
    return None if step is None else _all_at(groups, codables, step)


def coarsest(leaves: Callable[[float], bool], largest: float) -> float | None:
    """The coarsest step, nearly, that leaves something; None where none does."""
    return largest_step(lambda step: 0.5 if leaves(step) else 2.0, largest)


def finest_within(
    budget: int,
    bits: Callable[[float], float],
    make: Callable[[float], T | None],
    size_of: Callable[[T], int],
    largest: float,
) -> T | None:
    """What is made at the finest step whose file fits: bits are told, and mended by files made."""
    best, beside = None, 0.0
    for _ in range(TRIES):
        room = 8 * (budget - beside)

        def below(step: float, room: float = room) -> float:
            return room / max(bits(step), 1.0)

        step = largest_step(below, largest)
        step = largest / LARGEST if step is None else step * (1 + CLOSE)
        made = make(step)
        if made is None:
            return best
        size = size_of(made)
        if size <= budget:
            best = made
            if size >= FILLED * budget or step <= largest / LARGEST:
                break
        beside = size - bits(step) / 8 + (budget // 1000 if size > budget else 0)
    return best


def _lost(made: Sequence[LoTRGroup]) -> float:
    """The squared error of all groups together."""
    return sum(float((certificate_of(one).distances ** 2).sum()) for one in made)


def _all_at(
    groups: Sequence[LoRAGroup], codables: Sequence[Codable], step: float
) -> list[LoTRGroup] | None:
    made = [coded_at(*pair, step) for pair in zip(groups, codables, strict=True)]
    found = [one for one in made if one is not None]
    return found if len(found) == len(made) else None
