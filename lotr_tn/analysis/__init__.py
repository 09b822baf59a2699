"""What a stack is like before anything is converted."""

from lotr_tn.analysis.truncation import layer_singular_values, truncated_parameters

__all__ = ["layer_singular_values", "truncated_parameters"]
