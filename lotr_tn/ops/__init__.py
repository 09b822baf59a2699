"""The algebra of stacks of updates, on factors."""

from lotr_tn.ops.apply import apply
from lotr_tn.ops.arithmetic import subtract
from lotr_tn.ops.counts import parameter_count
from lotr_tn.ops.dense import to_dense
from lotr_tn.ops.distance import distance, layer_distances
from lotr_tn.ops.inner import cosine, inner
from lotr_tn.ops.layers import take_layers
from lotr_tn.ops.norms import layer_norms, norm

__all__ = [
    "apply",
    "cosine",
    "distance",
    "inner",
    "layer_distances",
    "layer_norms",
    "norm",
    "parameter_count",
    "subtract",
    "take_layers",
    "to_dense",
]
