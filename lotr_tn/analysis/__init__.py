"""What a stack is like before anything is converted, and what operations make of it."""

from lotr_tn.analysis.break_even import break_even_layers
from lotr_tn.analysis.error_surface import ErrorSurface, RankPair, error_surface
from lotr_tn.analysis.operations import operations_table, sums_table
from lotr_tn.analysis.spectra import Spectra, mode_spectra
from lotr_tn.analysis.truncation import truncated_parameters

__all__ = [
    "ErrorSurface",
    "RankPair",
    "Spectra",
    "break_even_layers",
    "error_surface",
    "mode_spectra",
    "operations_table",
    "sums_table",
    "truncated_parameters",
]
