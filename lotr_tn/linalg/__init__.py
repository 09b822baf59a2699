"""Linear algebra of tall factors: Gram matrices, bases, SVD of a product, choice of ranks."""

from lotr_tn.linalg.bases import orthonormal_basis, root_of_gram, triangular_factor
from lotr_tn.linalg.gram import cross_gram
from lotr_tn.linalg.product import svd_of_product
from lotr_tn.linalg.ranks import (
    Budget,
    Energy,
    FixedRank,
    RankLimits,
    RankRule,
    RelativeError,
    TotalError,
    smallest_rank,
)
from lotr_tn.linalg.surface import lost_energy_surface

__all__ = [
    "Budget",
    "Energy",
    "FixedRank",
    "RankLimits",
    "RankRule",
    "RelativeError",
    "TotalError",
    "cross_gram",
    "lost_energy_surface",
    "orthonormal_basis",
    "root_of_gram",
    "smallest_rank",
    "svd_of_product",
    "triangular_factor",
]
