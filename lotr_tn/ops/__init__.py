"""The algebra of stacks of updates, on factors."""

from lotr_tn.formats import CP, TensorTrain, operators
from lotr_tn.linalg.ranks import ITEM_SIZES
from lotr_tn.ops.apply import apply, apply_transpose, merge_break_even
from lotr_tn.ops.arithmetic import add, scale, subtract, transpose
from lotr_tn.ops.arrays import storage_dtype
from lotr_tn.ops.conversion import convert
from lotr_tn.ops.counts import parameter_count
from lotr_tn.ops.cp import CPPrimitives
from lotr_tn.ops.dense import to_dense
from lotr_tn.ops.distance import distance, layer_distances
from lotr_tn.ops.inner import cosine, gram, inner
from lotr_tn.ops.khatri_rao import khatri_rao, lorta
from lotr_tn.ops.moving import astype, to_device
from lotr_tn.ops.network import plan_of
from lotr_tn.ops.norms import layer_norms, layer_singular_values, norm
from lotr_tn.ops.operator import as_linear_operator
from lotr_tn.ops.primitives import (
    Primitives,
    lowered,
    register_format,
    registered_formats,
    rule,
    unregister_format,
)
from lotr_tn.ops.stacking import concat_layers, take_layers
from lotr_tn.ops.tensor_train import TensorTrainPrimitives
from lotr_tn.ops.tt_lora import digit_reversal, tt_lora

register_format(CP, CPPrimitives())
register_format(TensorTrain, TensorTrainPrimitives())

operators.register(
    add=add,
    subtract=subtract,
    scale=scale,
    transpose=transpose,
    apply=apply,
    take_layers=take_layers,
    storage_dtype=storage_dtype,
    parameter_count=parameter_count,
    item_size=ITEM_SIZES.__getitem__,
)

__all__ = [
    "Primitives",
    "add",
    "apply",
    "apply_transpose",
    "as_linear_operator",
    "astype",
    "concat_layers",
    "convert",
    "cosine",
    "digit_reversal",
    "distance",
    "gram",
    "inner",
    "khatri_rao",
    "layer_distances",
    "layer_norms",
    "layer_singular_values",
    "lorta",
    "lowered",
    "merge_break_even",
    "norm",
    "parameter_count",
    "plan_of",
    "register_format",
    "registered_formats",
    "rule",
    "scale",
    "subtract",
    "take_layers",
    "to_dense",
    "to_device",
    "transpose",
    "tt_lora",
    "unregister_format",
]
