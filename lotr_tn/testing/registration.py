"""Stacks for `hypothesis.strategies.from_type`; hypothesis finds `register` by its entry point."""

from typing import TYPE_CHECKING, get_args

from lotr_tn.formats import Format, Stack

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def register(*kinds: type) -> None:
    """Tell hypothesis how to draw formats: all of the package's, or those named."""
    from hypothesis.strategies import register_type_strategy

    for kind in kinds or get_args(Stack):
        register_type_strategy(kind, _strategy_of)


def _strategy_of(kind: type) -> "SearchStrategy":
    from hypothesis.strategies import integers, one_of

    from lotr_tn.testing import formats, strategies

    if kind is Format:  # any of a person's own
        own = [each for each in formats.known_formats() if issubclass(each, Format)]
        drawn = [strategies.stacks_of(each) for each in own]
        return one_of(drawn or [integers().filter(lambda _: False)])
    return strategies.stacks_of(kind)
