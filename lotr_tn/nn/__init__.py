"""LoTR layers for PyTorch: U and V shared by a group of layers, one small core each.

Importing this module loads torch. `add_lotr` adapts a model in place; `lotr_tn.peft` does the same
through PEFT.
"""

from lotr_tn.nn.adapted import LoTREmbedding, LoTRLinear
from lotr_tn.nn.factors import SharedFactors
from lotr_tn.nn.grouping import Group, plan_groups
from lotr_tn.nn.layer import LoTRLayer
from lotr_tn.nn.model import (
    add_lotr,
    disabled,
    merge,
    merged_copy,
    remove_lotr,
    set_active,
    set_stacks,
    stacks_of,
    unmerge,
)
from lotr_tn.nn.sharding import shard_lotr
from lotr_tn.nn.training import (
    lotr_layers,
    parameter_count,
    parameter_groups,
    shared_factors,
    shared_parameters,
    train_only,
)

__all__ = [
    "Group",
    "LoTREmbedding",
    "LoTRLayer",
    "LoTRLinear",
    "SharedFactors",
    "add_lotr",
    "disabled",
    "lotr_layers",
    "merge",
    "merged_copy",
    "parameter_count",
    "parameter_groups",
    "plan_groups",
    "remove_lotr",
    "set_active",
    "set_stacks",
    "shard_lotr",
    "shared_factors",
    "shared_parameters",
    "stacks_of",
    "train_only",
    "unmerge",
]
