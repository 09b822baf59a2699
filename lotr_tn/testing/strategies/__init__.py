"""Hypothesis strategies for stacks of updates and adapters. Requires the hypothesis package.

Sizes are drawn first, then a kind of entries, then a seed from which the entries follow: so what
shrinks is the sizes, then the kind, and a falsifying example ends small, with whole numbers as
entries. Axes differ in size, so that a transposed or swapped axis cannot hide.

Degenerate input is ordinary input and drawn on purpose: single layers, axes of size 1, rank 0,
ranks above min(m, n), layers that are zero or alike, dependent columns, tied singular values, and
entries of 1e-12 or 1e8.

All arguments are keywords. Every strategy that draws arrays takes `dtype`, a storage dtype by name,
and `array`, a function that each NumPy array goes through, such as `torch.from_numpy`.

Examples:
    >>> from hypothesis import given, settings
    >>> from lotr_tn import transpose
    >>> from lotr_tn.testing import laws, strategies
    >>> @settings(derandomize=True)
    ... @given(stack=strategies.tucker1s())
    ... def test_transposing(stack):
    ...     laws.transposing_twice_changes_nothing(transpose, stack)
    >>> test_transposing()
"""

from lotr_tn.testing.strategies.formats import (
    dense_stacks,
    lora_stacks,
    low_rank_tucker2s,
    nearly_low_rank,
    stacks,
    stacks_of,
    stacks_of_one_shape,
    tucker1s,
    tucker2s,
)
from lotr_tn.testing.strategies.gauge import gauges
from lotr_tn.testing.strategies.peft import adapter_configs, adapters, peft_state_dicts
from lotr_tn.testing.strategies.sizes import distinct_sizes, ranks, shapes

__all__ = [
    "adapter_configs",
    "adapters",
    "dense_stacks",
    "distinct_sizes",
    "gauges",
    "lora_stacks",
    "low_rank_tucker2s",
    "nearly_low_rank",
    "peft_state_dicts",
    "ranks",
    "shapes",
    "stacks",
    "stacks_of",
    "stacks_of_one_shape",
    "tucker1s",
    "tucker2s",
]
