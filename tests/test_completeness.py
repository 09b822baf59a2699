"""Every format has all that the house needs of it; what is missing is named."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import Phase, find, settings

import lotr_tn as lt
from lotr_tn._arrays import Array
from lotr_tn.analysis.forms import all_forms, form_named
from lotr_tn.catalogue.operations import operations_table
from lotr_tn.errors import FormatError
from lotr_tn.formats import Dense, Format, Stack
from lotr_tn.ops.primitives import CORE, lowered, registered_formats
from lotr_tn.testing import laws, register_format_laws, strategies
from lotr_tn.testing.formats import known_formats, laws_of
from tests import toy_format

NEVER_STORED = (Dense,)
"""Formats of the computation alone: no file holds them."""

RULES: dict[str, Callable[[Any], Any]] = {
    "add": lambda s: lt.add(s, s),
    "apply": lambda s: lt.apply(s, np.ones((2, s.shape[2]))),
    "canonicalize": lt.canonicalize,
    "concat_layers": lambda s: lt.concat_layers([s, s]),
    "convert": lambda s: [lt.convert(s, kind) for kind in CORE],
    "hosvd": lambda s: lt.hosvd(s, 1),
    "inner": lambda s: lt.inner(s, s),
    "layer_distances": lambda s: lt.layer_distances(s, s),
    "layer_norms": lt.layer_norms,
    "merge": lambda s: lt.merge(s, (1.0,) * s.shape[0]),
    "round": lambda s: lt.round(s, 1),
    "scale": lambda s: lt.scale(s, 2.0),
    "take_layers": lambda s: lt.take_layers(s, [0]),
    "to_dense": lt.to_dense,
    "transpose": lt.transpose,
}


def formats() -> list[type]:
    """The union of formats, with those that are registered in place of their base class."""
    return [*(kind for kind in get_args(Stack) if kind is not Format), *registered_formats()]


def example(kind: type) -> Any:
    quick = settings(phases=(Phase.generate,), max_examples=500, database=None, derandomize=True)
    drawn = strategies.stacks_of(kind)
    return find(drawn, lambda s: min(s.shape[:2]) > 1, settings=quick)


def missing(kind: type) -> list[str]:
    """What the house lacks of a format."""
    found = []
    if kind not in (*CORE, *registered_formats()):
        found.append("primitives or core rules")
    if kind not in known_formats():
        found += ["a strategy", "a dense oracle", "a gauge"]
    else:
        known, stack = laws_of(kind), example(kind)
        if laws.dense_updates(stack).shape != stack.shape:
            found.append("a dense oracle")
        if kind is not Dense and not known.gauge_sizes(stack):
            found.append("a gauge")
        found += [f"a rule of {name}" for name, does in RULES.items() if not _works(does, stack)]
    headings = [line for line in operations_table().splitlines() if line.startswith("Operation")]
    if kind.__name__ not in " ".join(headings).split():
        found.append("a column in the table of operations")
    stored = {form_named(name).stack for name in all_forms()}
    if kind not in NEVER_STORED and kind not in stored:
        found.append("a Form")
    return found


def _works(operation: Callable[[Any], Any], stack: Any) -> bool:
    try:
        operation(stack)
    except (FormatError, AssertionError):
        return False
    return True


@pytest.mark.parametrize("kind", formats(), ids=lambda kind: kind.__name__)
def test_nothing_is_missing(kind):
    assert missing(kind) == []


@dataclass(frozen=True, eq=False, repr=False)
class Stranger(Format):
    """A format that is in the union, and nowhere else."""

    w: Array

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.w.shape


def test_a_format_in_the_union_alone_lacks_each_piece():
    union = Stack | Stranger
    (added,) = set(get_args(union)) - set(get_args(Stack))
    assert missing(added) == [
        "primitives or core rules",
        "a strategy",
        "a dense oracle",
        "a gauge",
        "a column in the table of operations",
        "a Form",
    ]


def test_a_format_from_outside_lacks_only_the_form_that_it_has_not_registered():
    toy_format.register()
    try:
        assert missing(toy_format.Toy) == ["a Form"]
    finally:
        toy_format.unregister()


@pytest.mark.parametrize(
    "law",
    [
        laws.result_fits_the_stack,
        laws.rank_is_kept,
        laws.bounds_bracket_the_error,
        laws.error_is_nearly_the_best,
        laws.exact_at_full_rank,
        laws.twice_is_once,
    ],
)
def test_a_law_refuses_a_result_that_it_does_not_know(law):
    stack = lt.LoRAStack(np.ones((4, 2)), np.ones((2, 3)), (1, 1))
    with pytest.raises(AssertionError, match=r"must return a stack or factors .* found Stranger"):
        law(lambda stack, ranks: Stranger(np.ones(stack.shape)), stack, (1, 1))


def test_a_law_refuses_a_format_whose_ranks_it_does_not_know():
    toy_format.register()
    register_format_laws(replace(toy_format.LAWS, cuts=None))
    try:
        stack = example(toy_format.Toy)
        for law in (laws.rank_is_kept, laws.error_is_nearly_the_best):
            with pytest.raises(AssertionError, match="the laws know no ranks of a Toy"):
                law(lambda stack, ranks: stack, stack, (1, 1))
    finally:
        toy_format.unregister()
    with pytest.raises(AssertionError, match="the laws do not know the format Toy"):
        laws.dense_updates(stack)


def test_a_stranger_to_the_algebra_is_refused_by_name():
    with pytest.raises(FormatError, match="Stranger has no primitives"):
        lowered(Stranger(np.ones((2, 3, 4))))
