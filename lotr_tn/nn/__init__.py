"""Trainable forms for PyTorch; LoTR has U and V shared by a group of layers, one small core each.

Importing this module loads torch. `add_lotr` adapts a model in place, and `add` does it with any
form, one of your own too; `lotr_tn.peft` does the same through PEFT.
"""

from lotr_tn.catalogue.methods import Method, Site
from lotr_tn.nn.adapted import AdaptedEmbedding, AdaptedLinear
from lotr_tn.nn.form import FORMS, Form, Own, Start, register
from lotr_tn.nn.forms.tucker2 import Tucker2Form
from lotr_tn.nn.grouping import Group
from lotr_tn.nn.holding import AdaptedLayer
from lotr_tn.nn.model import (
    add,
    add_lotr,
    disabled,
    merge,
    merged_copy,
    plan_groups,
    remove_lotr,
    set_active,
    set_stacks,
    stacks_of,
    unmerge,
)
from lotr_tn.nn.sharding import shard_lotr
from lotr_tn.nn.shared_product import SharedProduct
from lotr_tn.nn.training import (
    lotr_layers,
    parameter_count,
    parameter_groups,
    shared_factors,
    shared_parameters,
    train_only,
)

# names from when there was one form
LoTREmbedding, LoTRLayer, LoTRLinear = AdaptedEmbedding, AdaptedLayer, AdaptedLinear
SharedFactors = Tucker2Form

__all__ = [
    "FORMS",
    "AdaptedEmbedding",
    "AdaptedLayer",
    "AdaptedLinear",
    "Form",
    "Group",
    "LoTREmbedding",
    "LoTRLayer",
    "LoTRLinear",
    "Method",
    "Own",
    "SharedFactors",
    "SharedProduct",
    "Site",
    "Start",
    "Tucker2Form",
    "add",
    "add_lotr",
    "disabled",
    "lotr_layers",
    "merge",
    "merged_copy",
    "parameter_count",
    "parameter_groups",
    "plan_groups",
    "register",
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
