"""What a stack is like before anything is converted, and what operations make of it."""

from lotr_tn.analysis.architecture import (
    Architecture,
    ModuleShape,
    architecture,
    architecture_from_config,
    architecture_from_shapes,
)
from lotr_tn.analysis.break_even import break_even_layers
from lotr_tn.analysis.clustering import Cluster, Clustering, cluster_layers
from lotr_tn.analysis.compress import compress
from lotr_tn.analysis.counts import CountRow, CountTable, GroupCount, count_table
from lotr_tn.analysis.error_surface import ErrorSurface, RankPair, error_surface
from lotr_tn.analysis.operations import operations_table, sums_table
from lotr_tn.analysis.spectra import Spectra, mode_spectra
from lotr_tn.analysis.subspaces import Overlaps, principal_angles, subspace_overlaps
from lotr_tn.analysis.truncation import truncated_parameters

__all__ = [
    "Architecture",
    "Cluster",
    "Clustering",
    "CountRow",
    "CountTable",
    "ErrorSurface",
    "GroupCount",
    "ModuleShape",
    "Overlaps",
    "RankPair",
    "Spectra",
    "architecture",
    "architecture_from_config",
    "architecture_from_shapes",
    "break_even_layers",
    "cluster_layers",
    "compress",
    "count_table",
    "error_surface",
    "mode_spectra",
    "operations_table",
    "principal_angles",
    "subspace_overlaps",
    "sums_table",
    "truncated_parameters",
]
