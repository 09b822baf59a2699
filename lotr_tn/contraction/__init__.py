"""Contraction plans: an order of pairwise products, found once and run many times."""

from lotr_tn.contraction.lowering import Step
from lotr_tn.contraction.plan import ContractionPlan, plan

__all__ = ["ContractionPlan", "Step", "plan"]
