"""What a stack is like before anything is converted, and what operations make of it."""

from lotr_tn.analysis.break_even import break_even_layers
from lotr_tn.analysis.clustering import Cluster, Clustering, cluster_layers
from lotr_tn.analysis.compress import compress
from lotr_tn.analysis.error_surface import ErrorSurface, RankPair, error_surface
from lotr_tn.analysis.spectra import Spectra, mode_spectra
from lotr_tn.analysis.subspaces import Overlaps, principal_angles, subspace_overlaps
from lotr_tn.analysis.truncation import truncated_parameters

__all__ = [
    "Cluster",
    "Clustering",
    "ErrorSurface",
    "Overlaps",
    "RankPair",
    "Spectra",
    "break_even_layers",
    "cluster_layers",
    "compress",
    "error_surface",
    "mode_spectra",
    "principal_angles",
    "subspace_overlaps",
    "truncated_parameters",
]
