"""Decompositions: stacks in, compressed formats out."""

from lotr_tn.decompose.cp import cp
from lotr_tn.decompose.cp_gauge import core_consistency
from lotr_tn.decompose.gauges import first_step_gain, random_factors, regauge
from lotr_tn.decompose.initialise import Initialisation, initial_factors
from lotr_tn.decompose.initialise_weights import WeightInitialisation, initial_factors_of_weights
from lotr_tn.decompose.legs import PUBLISHED, balanced
from lotr_tn.decompose.low_rank_cores import low_rank_tucker2
from lotr_tn.decompose.merging import merge
from lotr_tn.decompose.metric import hooi_in_metric, metric_distances
from lotr_tn.decompose.rounding import canonicalize, round_stack
from lotr_tn.decompose.stack_sketch import Sketch
from lotr_tn.decompose.streaming import Bases, Block, grow, joined, project
from lotr_tn.decompose.tensor_train import mpo, orthogonalise, tensor_train
from lotr_tn.decompose.tucker import hooi, hosvd, st_hosvd
from lotr_tn.decompose.tucker1 import tucker1

__all__ = [
    "PUBLISHED",
    "Bases",
    "Block",
    "Initialisation",
    "Sketch",
    "WeightInitialisation",
    "balanced",
    "canonicalize",
    "core_consistency",
    "cp",
    "first_step_gain",
    "grow",
    "hooi",
    "hooi_in_metric",
    "hosvd",
    "initial_factors",
    "initial_factors_of_weights",
    "joined",
    "low_rank_tucker2",
    "merge",
    "metric_distances",
    "mpo",
    "orthogonalise",
    "project",
    "random_factors",
    "regauge",
    "round_stack",
    "st_hosvd",
    "tensor_train",
    "tucker1",
]
