"""Stacks for `hypothesis.strategies.from_type`, registered when hypothesis is imported.

Hypothesis finds `register` by the package's entry point, so nobody has to import this module. The
strategies themselves are imported when the first of them is asked for.
"""

from typing import TYPE_CHECKING

from lotr_tn.formats import Dense, LoRAStack, LowRankTucker2, Tucker1, Tucker2

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["register"]

STRATEGIES = {
    LoRAStack: "lora_stacks",
    Tucker2: "tucker2s",
    LowRankTucker2: "low_rank_tucker2s",
    Tucker1: "tucker1s",
    Dense: "dense_stacks",
}
"""The strategy of `lotr_tn.testing.strategies` for each format."""


def register() -> None:
    """Tell hypothesis how to draw each format. Requires the hypothesis package."""
    from hypothesis.strategies import register_type_strategy

    for kind in STRATEGIES:
        register_type_strategy(kind, _strategy_of)


def _strategy_of(kind: type) -> "SearchStrategy":
    from lotr_tn.testing import strategies

    return getattr(strategies, STRATEGIES[kind])()
